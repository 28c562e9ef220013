"""Celery on Redis, set to at least once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery, group

from .. import work
from .peer import RESULT_SECONDS, Peer, address, count_of_keys

app = Celery("benchmarks.peers.celery_peer", broker=address(0), backend=address(1))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
TASKS = {each.__name__: app.task(name=each.__name__)(each) for each in (work.noop, work.sha, work.nap)}


class Driver(Peer):
    bulk_by = "group().apply_async()"

    def open(self) -> None:
        self.finished = count_of_keys(1)  # type: ignore[method-assign]

    def worker_commands(self) -> list[list[str]]:
        return [["-m", "celery", "-A", app.main, "worker", "-P", "prefork", "-c", "2"]]

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        task = TASKS[kind]
        return [task.delay(each) for each in arguments]

    def enqueue_bulk(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        task = TASKS[kind]
        found: list[Any] = group(task.s(each) for each in arguments).apply_async().results
        return found

    def result(self, handle: Any) -> Any:
        return handle.get(timeout=RESULT_SECONDS, disable_sync_subtasks=False)

    def results(self, handles: Sequence[Any]) -> list[Any]:
        return [app.backend.get_result(handle.id) for handle in handles]

    def held(self) -> int:
        broker = redis.Redis.from_url(address(0))
        return int(broker.hlen("unacked")) + int(broker.llen("celery"))
