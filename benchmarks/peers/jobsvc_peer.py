"""jobsvc itself, asked what its peers are asked: through HTTP, by its own client.

Single durable `PUT`s come from 32 callers, as `benchmarks.figures` measures them, since a service that
answers when a record is on disk is made for many callers at once. What one caller gets is measured beside it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import psutil

from jobsvc import bench, service
from jobsvc.client import Client
from jobsvc.client_jobs import Job, JobSet
from jobsvc.settings import PoolSettings, Settings
from tests.s3_server import BUCKET

from .. import bench_tasks
from ..figures import CONNECTIONS, MILLION, Bench
from ..http_load import Connection, closed_loop
from .peer import RESULT_SECONDS, Peer, Say, address, folder, mode

QUEUE = "bench"
SINGLES_MAX = 5_000
BUSY_SECONDS = 3.0
COST_JOBS = 50_000
SETTLE_SECONDS = 3.0
WORKERS = 2
TASKS = {"noop": bench_tasks.noop, "sha": bench_tasks.sha, "nap": bench_tasks.noted_nap}


def settings() -> Settings:
    is_s3 = mode() == "s3"
    return Settings(
        data=f"s3://{BUCKET}/bench" if is_s3 else address(),
        s3_endpoint_url=address() if is_s3 else None,
        tasks=("benchmarks.bench_tasks",),
        pools={"default": PoolSettings(min_workers=WORKERS, max_workers=WORKERS)},
    )


class Driver(Peer):
    each_by = f"PUT over HTTP, {CONNECTIONS} callers"
    bulk_by = "Client.map()"
    memory_of = "growth of the leader's RSS"
    more_memory_jobs = MILLION

    def open(self) -> None:
        run_dir = folder() / "run"
        info = service.up(settings(), run_dir=run_dir, say=lambda _: None)
        self._bench = Bench(settings(), run_dir, info)
        self._client = self._bench.client
        self._singles: dict[str, str] = {}  # job to argument
        deadline = time.monotonic() + RESULT_SECONDS
        while len(self._client.workers()) < WORKERS and time.monotonic() < deadline:
            time.sleep(0.1)

    def close(self) -> None:
        service.down(run_dir=self._bench.run_dir, say=lambda _: None)

    # --- jobs ---

    def singles_of(self, jobs: int) -> int:
        return min(SINGLES_MAX, jobs // 2)

    def enqueue_one(self, kind: str, argument: str) -> Job:
        return self._client.enqueue(TASKS[kind], argument, queue=QUEUE)

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        """To the endpoint that hashes its body, here once. `start_workers` looks at the results."""
        self._singles_after = self._client.feed_end()
        self._singles = asyncio.run(_put_all(self._bench.url, iter(arguments)))
        return []

    def enqueue_bulk(self, kind: str, arguments: Sequence[str]) -> JobSet:
        return self._client.map(TASKS[kind], arguments, queue=QUEUE, progress=False)

    def finished(self) -> int:
        return 0  # a set of jobs reads the feed

    def wait(self, handles: Sequence[Any], finished_before: int, seconds: float) -> bool:
        return self._set_of(handles).wait(seconds) == {"succeeded": len(handles)}

    def result(self, handle: Job) -> Any:
        return handle.result(RESULT_SECONDS)

    def results(self, handles: Sequence[Any]) -> list[Any]:
        return self._set_of(handles).results(RESULT_SECONDS)

    def _set_of(self, handles: Sequence[Any]) -> JobSet:
        if isinstance(handles, JobSet):
            return handles
        return JobSet(self._client, [job.id for job in handles], self._singles_after)

    def held(self) -> int:
        counts = self._client.status()["counts"]
        return int(counts["queued"] + counts["running"] + counts["scheduled"])

    # --- workers ---

    def hold(self) -> None:
        for queue in ("default", QUEUE):
            self._client.pause(queue)

    def start_workers(self) -> None:
        """They run all the time; what was held is let go, single jobs first, which are not timed."""
        self._client.resume("default")
        if self._singles:
            digests = JobSet(self._client, list(self._singles), self._singles_after).results(RESULT_SECONDS)
            wrong = sum(
                digest != hashlib.sha512(text.encode()).hexdigest()
                for text, digest in zip(self._singles.values(), digests, strict=True)
            )
            if wrong:
                raise AssertionError(f"{wrong} wrong results of single PUTs")
        self._client.resume(QUEUE)

    def kill_workers(self) -> None:
        """Workers and the processes of their jobs."""
        for worker in self._client.workers():
            try:
                top = psutil.Process(worker["pid"])
                tree = [top, *top.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for process in tree:
                _kill(process.pid)

    def restart_workers(self) -> None:
        """The pool does it."""

    # --- what only jobsvc is asked ---

    def memory_bytes(self) -> int:
        time.sleep(SETTLE_SECONDS)
        return int(psutil.Process(self._bench.leader()["pid"]).memory_info().rss)

    def extras(self, say: Say, scale: float) -> None:
        seconds = max(0.5, BUSY_SECONDS * min(1.0, scale))
        body = b"x" * 200
        for measure, callers in (("enqueue_each_busy", CONNECTIONS), ("enqueue_each_one_caller", 1)):
            count, spent, _ = asyncio.run(
                closed_loop(self._bench.url, callers, seconds, lambda _: _put(body))
            )
            say(measure, count / spent, "jobs/s", jobs=count, by=f"PUT, {callers} callers, workers running")
            self._bench.wait_until_drained()
        if mode() == "s3":
            for figure in bench.batches(self._another_client, self._client, int(COST_JOBS * scale)):
                if figure.unit in ("PUTs", "$"):
                    say(MEASURE_OF_UNIT[figure.unit], figure.value, figure.unit, by=figure.how)

    def _another_client(self) -> Client:
        return Client(self._bench.info.urls, deadline_seconds=RESULT_SECONDS)


MEASURE_OF_UNIT = {"PUTs": "s3_puts_per_thousand", "$": "s3_dollars_per_million"}


def _put(body: bytes) -> tuple[str, str, bytes, str]:
    return "PUT", "/enqueue?iterations=1", body, ""


async def _put_all(url: str, arguments: Iterator[str]) -> dict[str, str]:
    """Each caller sends its next one when the last is answered; returns job to argument."""
    found: dict[str, str] = {}

    async def one() -> None:
        connection = Connection(url)
        for text in arguments:
            status, answer = await connection.request(*_put(text.encode()))
            if status != 200:
                raise RuntimeError(f"answered {status}: {answer[:300]!r}")
            found[msgspec.json.decode(answer)["id"]] = text
        connection.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
