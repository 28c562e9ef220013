"""A queue without manager, journal or clock: commands in, answers out, and the log to replay it from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jobsvc import commands as c
from jobsvc import decisions, queue_snapshot
from jobsvc.events import Event, decode_events
from jobsvc.jobs import BlobRef, Finished, Job, JobOptions, NewJob, Outcome, Result, State, encode
from jobsvc.queue_state import QueueState, apply

HOUR = 3600.0
START = 1_000_000.0


def job_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class World:
    """Does what a leader does, with time that stands still until it is told to pass."""

    def __init__(
        self,
        *,
        max_jobs: int = 1_000_000,
        idempotency_seconds: float = 24 * HOUR,
        retention_seconds: float = 48 * HOUR,
        retained_jobs_max: int = 1_000_000,
    ) -> None:
        self.limits = decisions.Limits(max_jobs, idempotency_seconds, retention_seconds, retained_jobs_max)
        self.state = QueueState()
        self.state.log_time = START
        self.log: list[tuple[float, bytes]] = []
        self.numbers = 0

    def record(self, events: Iterable[Event]) -> None:
        for event in events:
            body = encode([event])
            self.log.append((self.state.log_time, body))
            for each in decode_events(body):  # as a replay sees it
                apply(self.state, each, self.state.log_time)

    def after(self, seconds: float) -> World:
        self.state.log_time += seconds
        return self

    def do(self, command: c.Command) -> Any:
        decision = decisions.decide(self.state, command, self.limits)
        self.record(decision.events)
        return decision.answer

    def enqueue(
        self, count: int = 1, *, payload: bytes | BlobRef = b"{}", run_at: float | None = None, **options: Any
    ) -> list[bytes]:
        chosen = JobOptions(**{"task": "demo.task", **options})
        ids = []
        for _ in range(count):
            self.numbers += 1
            ids.append(job_id(self.numbers))
        answer = self.do(c.Enqueue([chosen], [NewJob(each, 0, payload, run_at) for each in ids]))
        assert isinstance(answer, c.Accepted), answer
        return ids

    def lease(self, worker: str = "w1", count: int = 1, pool: str = "default") -> list[bytes]:
        leased = decisions.lease(self.state, worker, pool, count)
        if leased is None:
            return []
        self.record([leased])
        return leased.ids

    def finished(self, job: bytes, outcome: Outcome, result: Result | None = None) -> Finished:
        attempt = self.state.jobs[job].attempt if job in self.state.jobs else 1
        now = self.state.log_time
        if result is None and outcome is Outcome.SUCCEEDED:
            result = Result("json", b"1")
        return Finished(job, attempt, outcome, now - 1.0, now, result)

    def report(
        self, job: bytes, outcome: Outcome = Outcome.SUCCEEDED, worker: str = "w1"
    ) -> list[tuple[bytes, int]]:
        """Returns what was refused as stale."""
        return self.settle([self.finished(job, outcome)], worker)

    def settle(self, finished: list[Finished], worker: str = "w1") -> list[tuple[bytes, int]]:
        settlement = decisions.settle(self.state, worker, "node", finished)
        self.record(settlement.events)
        return settlement.stale

    def run(self, job: bytes, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Lease this job, and end its attempt."""
        held = self.lease("runner", 1)
        assert held == [job], "another job was first"
        assert self.report(job, outcome, "runner") == []

    def lose(self, worker: str, running: bytes | None = None) -> None:
        token = None if running is None else (running, self.state.jobs[running].attempt)
        self.record(decisions.lose_worker(self.state, worker, token))

    def promote(self) -> list[bytes]:
        promoted = decisions.promote_due(self.state)
        if promoted is None:
            return []
        self.record([promoted])
        return promoted.ids

    def retire(self) -> list[str]:
        """Returns the payload objects that nobody needs any more."""
        jobs = decisions.retire(self.state, self.limits)
        event, free = decisions.retired(self.state, jobs)
        if jobs:
            self.record([event])
        return free

    def job(self, job: bytes) -> Job:
        """To look at: whatever is frozen stays so."""
        found = self.state.jobs.peek(job)
        assert found is not None, f"{job.hex()} is not there"
        return found

    def is_in(self, job: bytes) -> State:
        return self.job(job).state

    def check(self) -> None:
        """All that must hold of any queue at any time."""
        queue_snapshot.check_invariants(self.state)
        mine = queue_snapshot.fingerprint(self.state)
        for other in (replayed(self.log), restored(self.state)):
            queue_snapshot.check_invariants(other)
            other.log_time = self.state.log_time
            assert queue_snapshot.fingerprint(other) == mine, "another state than the leader's"


def replayed(log: list[tuple[float, bytes]], state: QueueState | None = None) -> QueueState:
    state = QueueState() if state is None else state
    for log_time, body in log:
        for event in decode_events(body):
            apply(state, event, log_time)
    return state


def restored(state: QueueState) -> QueueState:
    *_, last = queue_snapshot.restore(b"".join(queue_snapshot.parts(state)))
    return last
