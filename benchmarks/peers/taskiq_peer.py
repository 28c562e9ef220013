"""Taskiq on a Redis stream, which has acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from .. import work
from .peer import RESULT_SECONDS, Peer, address, count_of_keys

AT_ONCE = 50
RESULT_LOOK_SECONDS = 0.002

broker = RedisStreamBroker(url=address(0)).with_result_backend(
    RedisAsyncResultBackend(redis_url=address(1), result_ex_time=3600)
)


@broker.task(task_name="noop")
async def noop(text: str) -> list[float]:
    return work.noop(text)


@broker.task(task_name="sha")
async def sha(text: str) -> list[object]:
    return work.sha(text)


@broker.task(task_name="nap")
async def nap(text: str) -> list[float]:
    work.note("start", text)
    await asyncio.sleep(work.NAP_SECONDS)
    return work.napped(text)


TASKS = {"noop": noop, "sha": sha, "nap": nap}


class Driver(Peer):
    bulk_by = f"asyncio.gather, {AT_ONCE} at once"

    def open(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(broker.startup())
        self.finished = count_of_keys(1)  # type: ignore[method-assign]

    def close(self) -> None:
        self._loop.run_until_complete(broker.shutdown())

    def worker_commands(self) -> list[list[str]]:
        worker = ["-m", "taskiq", "worker", f"{__name__}:broker"]
        return [[*worker, "--workers", "2", "--log-level", "WARNING"]]

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        async def send() -> list[Any]:
            return [await TASKS[kind].kiq(each) for each in arguments]

        return self._loop.run_until_complete(send())

    def enqueue_bulk(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        async def send() -> list[Any]:
            jobs: list[Any] = []
            for first in range(0, len(arguments), AT_ONCE):
                part = arguments[first : first + AT_ONCE]
                jobs += await asyncio.gather(*(TASKS[kind].kiq(each) for each in part))
            return jobs

        return self._loop.run_until_complete(send())

    def result(self, handle: Any) -> Any:
        waited = handle.wait_result(check_interval=RESULT_LOOK_SECONDS, timeout=RESULT_SECONDS)
        return self._loop.run_until_complete(waited).return_value

    def held(self) -> int:
        return int(redis.Redis.from_url(address(0)).xpending("taskiq", "taskiq")["pending"])
