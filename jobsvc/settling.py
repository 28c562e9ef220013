"""Settling: what workers say of their attempts, and what becomes of a worker that is gone.

A report counts once and only for the lease that it names; `decisions.settle` says which do. One whose
settling meets a defect must cost neither the other reports nor the leadership: it is charged as a crash, so
that its job goes on and its lease ends.

A lost worker's outbox is read and settled before its leases are given back; it is deleted only after a record
that was begun when it had been read. An object in it that nobody can read is named, and left where it is.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from . import decisions
from .bulkheads import ENDS_ALL, Bulkheads, said
from .commit_loop import CommitLoop
from .events import Event
from .insistence import insist
from .jobs import ErrorInfo, Finished, Outcome
from .object_store import ObjectStore
from .queue_state import QueueState
from .tallies import Tallies
from .worker_registry import KnownWorker, WorkerRegistry

_outbox_decoder = msgspec.msgpack.Decoder(list[Finished])


class Settling:
    """One leadership's settlements."""

    def __init__(
        self,
        state: QueueState,
        registry: WorkerRegistry,
        commits: CommitLoop,
        store: ObjectStore,
        tallies: Tallies,
        bulkheads: Bulkheads,
        apply_events: Callable[[list[Event]], None],
    ) -> None:
        self._state = state
        self._registry = registry
        self._commits = commits
        self._store = store
        self._tallies = tallies
        self._bulkheads = bulkheads
        self._apply_events = apply_events

    def settle(self, worker: str, node: str, finished: list[Finished]) -> list[tuple[bytes, int]]:
        """Take down what counts; returns what is stale."""
        self._commits.stamp()
        try:
            settlement = decisions.settle(self._state, worker, node, finished, self._commits.clock.after)
        except ENDS_ALL:
            raise
        except Exception as error:
            self._bulkheads.failed("report", error, worker)
            if len(finished) > 1:
                return [key for each in finished for key in self.settle(worker, node, [each])]
            finished = [_defective(finished[0], error)]
            settlement = decisions.settle(self._state, worker, node, finished, self._commits.clock.after)
        self._apply_events(settlement.events)
        self._bulkheads.call(
            "metrics", self._tallies.attempts_ended, self._state.jobs, finished, settlement.stale
        )
        return settlement.stale

    async def lose(self, worker: KnownWorker, serve_waiting: Callable[[], None]) -> None:
        """A worker is gone: settle what its outbox holds, give back the rest."""
        name = worker.name
        running = worker.running  # as it was: a next life under this name may report while the store is read
        keys, finished = await self._read_outbox(name)
        if finished:
            self.settle(name, worker.node, finished)
        expired = len(self._state.leases.get(name, ()))
        self._bulkheads.call("metrics", self._tallies.count, "leases_expired", expired)
        self._commits.stamp()
        self._apply_events(decisions.lose_worker(self._state, name, running))
        if self._registry.workers.get(name) is worker:
            self._registry.forget(name)
        serve_waiting()
        if not keys:
            await self._commits.settled()
            return
        await self._commits.proved()  # a leader that was replaced knows nothing of some of these reports
        for key in keys:
            await insist(self._store.delete, key)

    async def _read_outbox(self, name: str) -> tuple[list[str], list[Finished]]:
        """What can be read of it, and the keys of that."""
        read: list[str] = []
        finished: list[Finished] = []
        for key in await insist(self._store.list, f"outbox/{name}/"):
            data = await insist(self._store.get, key)
            with self._bulkheads.alone("outbox", key):
                if data is not None:
                    finished.extend(_outbox_decoder.decode(data))
                read.append(key)
        return read, finished


def _defective(finished: Finished, error: Exception) -> Finished:
    """The attempt ended, and how cannot be taken down. Its job must not wait for that."""
    what = ErrorInfo("ReportRefused", f"how this attempt ended met a defect in the service: {said(error)}")
    began, ended = finished.started_at, finished.ended_at
    return Finished(finished.job_id, finished.attempt, Outcome.CRASHED, began, ended, error=what)
