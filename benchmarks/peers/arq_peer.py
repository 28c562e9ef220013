"""arq on Redis; the variant `fastpoll` looks for jobs fifty times as often as its default.

Run as a program, this module is a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import run_worker

from .. import work
from .peer import RESULT_SECONDS, Peer, address, variant

QUEUE = "arq:queue"
AT_ONCE = 50
RESULT_LOOK_SECONDS = 0.002


async def noop(_: Any, text: str) -> list[float]:
    return work.noop(text)


async def sha(_: Any, text: str) -> list[object]:
    return work.sha(text)


async def nap(_: Any, text: str) -> list[float]:
    work.note("start", text)
    await asyncio.sleep(work.NAP_SECONDS)
    return work.napped(text)


class WorkerSettings:
    functions = (noop, sha, nap)
    redis_settings = RedisSettings.from_dsn(address())
    poll_delay = 0.01 if variant() == "fastpoll" else 0.5


class Driver(Peer):
    bulk_by = f"asyncio.gather, {AT_ONCE} at once"

    def open(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pool = self._loop.run_until_complete(create_pool(WorkerSettings.redis_settings))
        self._sent = 0

    def close(self) -> None:
        self._loop.run_until_complete(self._pool.aclose())

    def worker_commands(self) -> list[list[str]]:
        return [["-m", __name__]] * 2

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        async def send() -> list[Any]:
            return [await self._pool.enqueue_job(kind, each) for each in arguments]

        self._sent += len(arguments)
        return self._loop.run_until_complete(send())

    def enqueue_bulk(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        async def send() -> list[Any]:
            jobs: list[Any] = []
            for first in range(0, len(arguments), AT_ONCE):
                part = arguments[first : first + AT_ONCE]
                jobs += await asyncio.gather(*(self._pool.enqueue_job(kind, each) for each in part))
            return jobs

        self._sent += len(arguments)
        return self._loop.run_until_complete(send())

    def finished(self) -> int:
        return self._sent - self.held()  # a job leaves the queue when its result is stored

    def result(self, handle: Any) -> Any:
        return self._loop.run_until_complete(
            handle.result(timeout=RESULT_SECONDS, poll_delay=RESULT_LOOK_SECONDS)
        )

    def held(self) -> int:
        return int(self._loop.run_until_complete(self._pool.zcard(QUEUE)))


if __name__ == "__main__":
    asyncio.set_event_loop(asyncio.new_event_loop())
    run_worker(WorkerSettings)
