"""Settling: what workers say of their attempts, and what becomes of a worker that is gone.

A report counts once and only for the lease that it names; `decisions.settle` says which do. One whose
settling meets a defect must cost neither the other reports nor the leadership: those beside it are settled,
and the worker is told to come again with it. When that has not helped a few times, its job fails, and says
why: it must not keep its worker, and its lease, for ever.

A lost worker's outbox is read and settled before its leases are given back; it is deleted only after a record
that was begun when it had been read. An object in it that nobody can read is named, and left where it is.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from . import decisions
from .bulkheads import ENDS_ALL, Bulkheads, said
from .commit_loop import CommitLoop
from .errors import Unavailable
from .events import Event
from .held_tasks import HeldTasks
from .insistence import insist
from .jobs import ErrorInfo, Finished, Job, Outcome
from .object_store import ObjectStore
from .queue_state import QueueState
from .tallies import Tallies
from .worker_registry import KnownWorker, WorkerRegistry

REFUSALS_MAX = 5  # of one report
REFUSED_MAX = 10_000

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
        held_tasks: HeldTasks,
        apply_events: Callable[[list[Event]], None],
    ) -> None:
        self._state = state
        self._registry = registry
        self._commits = commits
        self._store = store
        self._tallies = tallies
        self._bulkheads = bulkheads
        self._held_tasks = held_tasks
        self._apply_events = apply_events
        self._refusals: dict[tuple[bytes, int], int] = {}  # attempt -> times

    def settle(self, worker: str, node: str, finished: list[Finished]) -> list[tuple[bytes, int]]:
        """Take down what counts; returns what is stale."""
        self._commits.stamp()
        try:
            settlement = decisions.settle(self._state, worker, node, finished)
        except ENDS_ALL:
            raise
        except Exception as error:
            self._bulkheads.failed("report", error, worker)
            return self._settle_each(worker, node, finished)
        return self._apply(worker, settlement, finished)

    def _settle_each(self, worker: str, node: str, finished: list[Finished]) -> list[tuple[bytes, int]]:
        """Those that can be settled are. Raises Unavailable for the others: they will come again."""
        stale: list[tuple[bytes, int]] = []
        refused: Exception | None = None
        for each in finished:
            try:
                settlement = decisions.settle(self._state, worker, node, [each])
            except ENDS_ALL:
                raise
            except Exception as error:
                if self._refuse(each):
                    refused = error
                    continue
                each = _defective(each, error)
                settlement = decisions.settle_as_failed(self._state, worker, node, each)
            stale += self._apply(worker, settlement, [each])
        if refused is not None:
            raise Unavailable(f"a report cannot be settled: {said(refused)}") from refused
        return stale

    def _refuse(self, finished: Finished) -> bool:
        """A few times: whatever is wrong may pass. Then its job must not wait any more."""
        key = finished.job_id, finished.attempt
        refusals = self._refusals.pop(key, 0) + 1
        if refusals > REFUSALS_MAX:
            return False
        self._refusals[key] = refusals
        if len(self._refusals) > REFUSED_MAX:
            del self._refusals[next(iter(self._refusals))]
        return True

    def _apply(
        self, worker: str, settlement: decisions.Settlement, finished: list[Finished]
    ) -> list[tuple[bytes, int]]:
        if not self._commits.clock.is_in_step:
            self._commits.clock.date_backoffs(settlement.events, self._state.log_time)
        held = self._state.leases.get(worker, {})
        jobs = {each.job_id: held[each.job_id] for each in finished if each.job_id in held}  # as they ran
        self._apply_events(settlement.events)
        self._bulkheads.count(self._tallies.attempts_ended, jobs, finished, settlement.stale)
        if self._held_tasks or any(each.outcome is Outcome.RELEASED for each in finished):
            self._bulkheads.call("leasing", self._note_tasks, worker, jobs, finished)
        return settlement.stale

    def _note_tasks(self, worker: str, jobs: dict[bytes, Job], finished: list[Finished]) -> None:
        known = self._registry.workers.get(worker)
        if known is not None:
            self._held_tasks.note(known.pool, jobs, finished)

    async def lose(self, worker: KnownWorker) -> list[str]:
        """A worker is gone: settle what its outbox holds, give back the rest. Returns its keys."""
        name = worker.name
        running = worker.running  # as it was: a next life under this name may report while the store is read
        keys, finished = await self._read_outbox(name)
        if finished:
            self.settle(name, worker.node, finished)
        expired = len(self._state.leases.get(name, ()))
        self._bulkheads.count(self._tallies.count, "leases_expired", expired)
        self._commits.stamp()
        self._apply_events(decisions.lose_worker(self._state, name, running))
        if self._registry.workers.get(name) is worker:
            self._registry.forget(name)
        return keys

    async def forget_outbox(self, keys: list[str]) -> None:
        """These were settled. A leader that was replaced knows nothing of some of them."""
        if not keys:
            await self._commits.settled()
            return
        await self._commits.proved()
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
    return Finished(finished.job_id, finished.attempt, Outcome.RAISED, began, ended, error=what)
