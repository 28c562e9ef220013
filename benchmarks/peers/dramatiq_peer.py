"""Dramatiq on Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from .. import work
from .peer import RESULT_SECONDS, Peer, address, count_of_keys

backend = RedisBackend(url=address(1))
broker = RedisBroker(url=address(0))
broker.add_middleware(Results(backend=backend, store_results=True))
dramatiq.set_broker(broker)
ACTORS = {each.__name__: dramatiq.actor(each, store_results=True) for each in (work.noop, work.sha, work.nap)}


class Driver(Peer):
    def open(self) -> None:
        self.finished = count_of_keys(1)  # type: ignore[method-assign]

    def worker_commands(self) -> list[list[str]]:
        return [["-m", "dramatiq", __name__, "-p", "2"]]

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        actor = ACTORS[kind]
        return [actor.send(each) for each in arguments]

    def result(self, handle: Any) -> Any:
        return handle.get_result(backend=backend, block=True, timeout=int(RESULT_SECONDS * 1000))

    def held(self) -> int:
        taken = sum(broker.client.scard(key) for key in broker.client.scan_iter("dramatiq:__acks__*"))
        return int(taken) + int(broker.client.llen("dramatiq:default"))
