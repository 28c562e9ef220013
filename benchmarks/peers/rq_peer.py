"""RQ on Redis: its default worker forks for each job; the variant `simple` does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from rq import Queue

from .. import work
from .peer import RESULT_SECONDS, Peer, address, variant

QUEUE = "bench"
NAMES = {each.__name__: f"{each.__module__}.{each.__name__}" for each in (work.noop, work.sha, work.nap)}


class Driver(Peer):
    bulk_by = "Queue.enqueue_many()"

    def open(self) -> None:
        self._redis = redis.Redis.from_url(address())
        self._queue = Queue(QUEUE, connection=self._redis)

    def worker_commands(self) -> list[list[str]]:
        worker = "rq.worker.SimpleWorker" if variant() == "simple" else "rq.worker.Worker"
        pool = ["-m", "rq.cli", "worker-pool", "--quiet", "--num-workers", "2"]
        return [[*pool, "--url", address(), "--worker-class", worker, QUEUE]]

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        name = NAMES[kind]
        return [self._queue.enqueue(name, each) for each in arguments]

    def enqueue_bulk(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        name = NAMES[kind]
        jobs: list[Any] = self._queue.enqueue_many([Queue.prepare_data(name, (each,)) for each in arguments])
        return jobs

    def finished(self) -> int:
        return int(self._redis.zcard(self._queue.finished_job_registry.key))

    def result(self, handle: Any) -> Any:
        return handle.latest_result(timeout=int(RESULT_SECONDS)).return_value

    def held(self) -> int:
        return len(self._queue) + int(self._redis.zcard(self._queue.started_job_registry.key))
