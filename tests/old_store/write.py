"""Write the store of a service that is killed in the middle of its work, and what is to be read from it.

    python -m tests.old_store.write ARCHIVE.tar.gz

Run once, by version 0.1.0: `store-0.1.tar.gz` beside this file is what it wrote, and `test_old_store` reads
it with whatever the code has become. Run it again only to keep the store of another version, elsewhere.

It holds: jobs in all six states, alone and frozen in segments; payloads, results and output inline, as
objects and in packs; jobs that came back, were pulled, were retired from the middle of the feed; a paused
queue; keys; code by value; two epochs and several snapshots; and what two workers wrote to the outbox while
no manager answered.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from jobsvc.client import Client
from jobsvc.settings import PoolSettings
from tests.cluster.conftest import RunningService, start, wait_until

SETTINGS: dict[str, Any] = {
    "tasks": ("tests.old_store.old_tasks",),
    "pools": {
        "default": PoolSettings(min_workers=2, max_workers=2),
        "other": PoolSettings(min_workers=0, max_workers=0),
    },
    "queues": {"elsewhere": "other"},
    "lease_seconds": 30.0,
    "allow_code": True,
    "snapshot_records": 60,
}


def main(archive: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        service = start(Path(folder), **SETTINGS)
        try:
            expected = fill(service)
            outbox = service_dies_while_workers_finish(service)
        finally:
            service.kill_everything()
        expected["outbox"] = outbox
        keep(Path(folder) / "data" / "objects", expected, archive)


def fill(service: RunningService) -> dict[str, Any]:
    client = service.client
    client.pause("held")
    ended = finished_jobs(service, client)
    kill_the_leader(service)
    waiting = waiting_jobs(client)
    ids = {**ended, **waiting}
    documents = {name: httpx.get(f"{service.url}/v1/jobs/{job}").json() for name, job in ids.items()}
    feed = httpx.get(f"{service.url}/v1/completions?after=0&limit=5000").json()
    return {
        "at": time.time(),
        "documents": documents,
        "feed": [entry["id"] for entry in feed["entries"]],
        "feed_next": feed["next"],
        "counts": client.status()["counts"],
        "queues": {queue["name"]: queue["counts"] for queue in client.queues()},
    }


def finished_jobs(service: RunningService, client: Client) -> dict[str, str]:
    big = "x" * 20_000
    jobs = {
        "inline": client.enqueue("old.double", 21, labels={"who": "me"}, batch="of old"),
        "large": client.enqueue("old.say", big, 1),  # payload, result and output are objects
        "failed": client.enqueue("old.fail", "no luck"),
        "crashed": client.enqueue("old.crash"),
        "raw": client.enqueue_bytes("jobsvc.sha512", b"some bytes", iterations=3),
        "code": client.enqueue(lambda number: number + 1, 1),
    }
    for name in jobs:
        jobs[name].wait(60)
    assert len(httpx.post(f"{service.url}/pullCompleted?top=1").json()) == 1
    jobs["unpulled"] = client.enqueue_bytes("jobsvc.sha512", b"\x00\xff", iterations=1)
    jobs["unpulled"].wait(60)
    many = client.map("old.double", range(300), retention_seconds=1.0, progress=False)
    many.wait(60)
    jobs["after the hole"] = client.enqueue("old.say", "small", 2)
    jobs["after the hole"].wait(60)
    wait_until(lambda: client.status()["counts"]["succeeded"] < 300, "300 jobs to be retired")
    jobs["revived"] = client.enqueue("old.fail", "twice")
    jobs["revived"].wait(60)
    jobs["revived"].retry()
    jobs["revived"].wait(60)
    jobs["cancelled"] = client.enqueue("old.double", 1, queue="held")
    jobs["cancelled"].cancel()
    jobs["killed"] = client.enqueue("old.nap", 1000)
    wait_until(lambda: jobs["killed"].refresh()["state"] == "running", "a job to run")
    jobs["killed"].cancel()
    jobs["killed"].wait(60)
    return {name: job.id for name, job in jobs.items()}


def kill_the_leader(service: RunningService) -> None:
    os.kill(service.whole_pair()["leader"]["pid"], signal.SIGKILL)
    service.whole_pair()


def waiting_jobs(client: Client) -> dict[str, str]:
    later = client.enqueue("old.later")
    wait_until(lambda: later.refresh()["state"] == "scheduled", "a job to wait for its next attempt")
    wait = {
        "frozen": client.map("old.double", range(3000), queue="held", progress=False),
        "large ones": client.map("old.say", [("y" * 9_000, 1)] * 3, queue="held", progress=False),
    }
    held = client.enqueue("old.double", 7, queue="held", priority=5)
    keyed = client.enqueue("old.double", 8, queue="held", key="a key of mine")
    scheduled = client.enqueue("old.double", 9, delay=100_000_000)
    elsewhere = client.enqueue("old.double", 10, queue="elsewhere")
    code = client.enqueue(lambda: "by value", queue="held")
    return {
        "retries": later.id,
        "frozen first": wait["frozen"].ids[0],
        "frozen last": wait["frozen"].ids[-1],
        "large waiting": wait["large ones"].ids[1],
        "held": held.id,
        "keyed": keyed.id,
        "scheduled": scheduled.id,
        "elsewhere": elsewhere.id,
        "code waiting": code.id,
    }


def service_dies_while_workers_finish(service: RunningService) -> dict[str, Any]:
    """Two jobs finish while both managers sleep, so their workers write them down; two more run on."""
    jobs = [service.client.enqueue("old.nap", 6.0) for _ in range(2)]
    behind = [service.client.enqueue("old.nap", 1000) for _ in range(2)]
    wait_until(lambda: all(job.refresh()["state"] == "running" for job in jobs), "both to run")
    for manager in service.managers().values():
        psutil.Process(manager["pid"]).suspend()
    outbox = service.run_dir.parent / "data" / "objects" / "outbox"
    wait_until(lambda: len([each for each in outbox.rglob("*") if each.is_file()]) >= 2, "two outboxes")
    return {"finished": [job.id for job in jobs], "behind": [job.id for job in behind]}


def keep(objects: Path, expected: dict[str, Any], archive: str) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(objects, "objects", filter=_plain)
        text = msgspec.json.format(msgspec.json.encode(expected), indent=1)
        entry = tarfile.TarInfo("expected.json")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


if __name__ == "__main__":
    main(sys.argv[1])
