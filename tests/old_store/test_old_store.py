"""A store of version 0.1, read by the code as it is: nothing that was accepted then is lost now."""

from __future__ import annotations

import asyncio
import tarfile
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from jobsvc import commands as c
from jobsvc.jobs import TERMINAL, Grant, State, id_bytes, id_text
from jobsvc.manager import Manager
from jobsvc.queue_snapshot import check_invariants, fingerprint
from jobsvc.settings import PoolSettings

from ..unit.manager_world import START, Pair, done, run, until

ARCHIVE = Path(__file__).parent / "store-0.1.tar.gz"
SETTINGS: dict[str, Any] = {
    "pools": {"default": PoolSettings(max_workers=0), "other": PoolSettings(max_workers=0)},
    "queues": {"elsewhere": "other"},
    "allow_code": True,
    "snapshot_records": 60,
}


def opened(pair: Pair) -> dict[str, Any]:
    """Put the archive into the pair's store, set its clocks to that day, and return what is expected."""
    with tarfile.open(ARCHIVE) as tar:
        for entry in tar.getmembers():
            if entry.isfile() and entry.name.startswith("objects/"):
                data = tar.extractfile(entry)
                assert data is not None
                pair.store._objects[entry.name.removeprefix("objects/")] = data.read()
        text = tar.extractfile("expected.json")
        assert text is not None
        expected: dict[str, Any] = msgspec.json.decode(text.read())
    for name in ("manager-a", "manager-b"):
        pair.clock_errors[name] = expected["at"] - START
    return expected


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def view(pair: Pair, leader: Manager, job_id: str) -> c.JobView:
    [found] = await pair.ask(leader, c.GetJobs([id_bytes(job_id)]))
    assert isinstance(found.items[0], c.JobView), found.items[0]
    return found.items[0]


async def same_job(pair: Pair, leader: Manager, document: dict[str, Any]) -> None:
    """Every field that the old service told of this job is what the new one tells."""
    job = await view(pair, leader, document["id"])
    for name in ("task", "queue", "pool", "priority", "max_attempts", "max_crashes", "batch", "content"):
        assert getattr(job.options, name) == document[name], (name, document)
    assert dict(job.options.labels) == document["labels"]
    for name in ("attempt", "failures", "crashes", "payload_bytes", "pulled"):
        assert getattr(job, name) == document[name], (name, document)
    assert job.state.value == document["state"]
    assert abs(job.created_at - seconds(document["created_at"])) < 0.002
    assert [(each.number, each.outcome.value) for each in job.history] == [
        (each["number"], each["outcome"]) for each in document["attempts"]
    ]
    if document["result"] is not None:
        assert job.result is not None
        data = await pair.store_bytes(job.result.data, job.result.ref)
        assert len(data) == document["result"]["bytes"]
        if "value" in document["result"]:
            assert msgspec.json.decode(data) == document["result"]["value"]
    for each in job.history:
        if each.log is not None:
            assert len(await pair.store_bytes(None, each.log)) == each.log.length


def test_what_the_old_service_told_is_what_the_new_one_tells() -> None:
    async def story(pair: Pair) -> None:
        # given a store of version 0.1, with what two workers wrote down after its managers had stopped
        expected = opened(pair)
        leader, standby = await pair.leader_and_standby()
        # then each job is as it was, and so are the feed, its hole, the queues and the key
        for document in expected["documents"].values():
            await same_job(pair, leader, document)
        [page] = await pair.ask(leader, c.ReadFeed(0, 5000))
        assert [id_text(entry.id) for entry in page.entries] == expected["feed"]
        [queues] = await pair.ask(leader, c.GetQueues())
        told = {queue.name: queue.counts for queue in queues.queues}
        for name, counts in expected["queues"].items():
            if name != "default":  # in there, more was enqueued before the end
                assert told[name] == counts
        assert next(queue for queue in queues.queues if queue.name == "held").paused
        # then the standby is in the same state
        assert fingerprint(standby.state) == fingerprint(leader.state)
        check_invariants(leader.state)

    run(story, **SETTINGS)


def test_what_the_old_workers_wrote_down_is_taken_and_the_rest_goes_on() -> None:
    async def story(pair: Pair) -> None:
        # given the old store, whose workers never come back
        expected = opened(pair)
        leader, _ = await pair.leader_and_standby()
        ended = [id_bytes(job_id) for job_id in expected["outbox"]["finished"]]
        behind = [id_bytes(job_id) for job_id in expected["outbox"]["behind"]]
        # when the leader has missed them
        await until(lambda: all(leader.state.jobs[job].state in TERMINAL for job in ended), 120.0)
        # then what they had finished is finished, and what they held waits again
        assert all(leader.state.jobs[job].state is State.SUCCEEDED for job in ended)
        await until(lambda: all(leader.state.jobs[job].state is State.QUEUED for job in behind))
        await until(lambda: not any(key.startswith("outbox/") for key in pair.store_keys()))
        # when the queue goes on and a new worker takes all there is
        await pair.ask(leader, c.PatchQueue("held", False))
        while grants := await everything(pair, leader):
            await pair.report(leader, finished=[done(grant) for grant in grants])
        # then nothing of it is left but what waits for its time and for another pool
        waiting = {job for job, entry in expected["documents"].items() if entry["state"] == "scheduled"}
        counts = leader.state.totals()
        assert counts[State.SCHEDULED] == len(waiting) and counts[State.QUEUED] == 1
        assert counts[State.RUNNING] == 0
        check_invariants(leader.state)

    run(story, **SETTINGS)


async def everything(pair: Pair, leader: Manager) -> list[Grant]:
    orders = await pair.report(leader, can_take=1000)
    return orders.grants


def jobs_of(manager: Manager) -> dict[str, State]:
    jobs = map(manager.state.jobs.peek, manager.state.jobs)
    return {id_text(job.id): job.state for job in jobs if job is not None}


def test_the_second_start_reads_what_the_first_one_added() -> None:
    async def story(pair: Pair) -> None:
        # given the old store, led by the new code long enough for snapshots of its own
        expected = opened(pair)
        leader, _ = await pair.leader_and_standby()
        for number in range(200):
            await pair.enqueue(leader, number + 1)
            await asyncio.sleep(0.05)
        mine = jobs_of(leader)
        snapshots = [key for key in pair.store_keys() if key.startswith("snapshots/")]
        assert any(int(key.split("/")[1]) > 2 for key in snapshots), "a snapshot of the new code"
        # when all is killed, and another one starts
        pair.kill("manager-a")
        pair.kill("manager-b")
        second = pair.start("manager-b")
        await until(lambda: second.role == "leader")
        # then it knows the old and the new jobs
        assert jobs_of(second) == mine
        assert len(mine) >= sum(expected["counts"].values()) + 200
        for document in expected["documents"].values():
            await same_job(pair, second, document)

    run(story, **SETTINGS)
