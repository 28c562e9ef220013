"""Huey on Redis. It is at most once: a job leaves Redis when a worker takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huey import RedisHuey

from .. import work
from .peer import RESULT_SECONDS, Peer, address

RESULT_LOOK_SECONDS = 0.002

huey = RedisHuey("bench", url=address())
TASKS = {each.__name__: huey.task()(each) for each in (work.noop, work.sha, work.nap)}


class Driver(Peer):
    def worker_commands(self) -> list[list[str]]:
        return [["-m", "huey.bin.huey_consumer", f"{__name__}.huey", "-k", "process", "-w", "2", "-q"]]

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        task = TASKS[kind]
        return [task(each) for each in arguments]

    def finished(self) -> int:
        return int(huey.result_count())

    def result(self, handle: Any) -> Any:
        return handle.get(
            blocking=True, timeout=RESULT_SECONDS, backoff=1.0, max_delay=RESULT_LOOK_SECONDS, preserve=True
        )

    def held(self) -> int:
        return int(huey.pending_count())
