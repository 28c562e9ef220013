"""What is counted for metrics: events by queue and task, and how long things took.

Labels have bounds, because a series lives as long as whoever keeps it: beyond so many queues, or pairs of
queue and task, the rest is counted as `other`. Ids of jobs are never among them. Everything here begins at 0
with the leadership, or the process, that counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from . import commands as c
from .errors import Refusal
from .finished_groups import FinishedGroup
from .jobs import Finished, Job, JobOptions, Outcome, State

OTHER = "other"
QUEUES_MAX = 50
PAIRS_MAX = 200  # of queue and task
SECONDS_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

Pair = tuple[str, str]  # queue, task


class Durations:
    """A histogram: how many durations fell into each bucket, and their sum."""

    def __init__(self, bounds: Sequence[float] = SECONDS_BUCKETS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_seconds += seconds

    def spread(self, name: str, labels: dict[str, str]) -> c.Spread:
        return c.Spread(name, labels, list(self.bounds), list(self.counts), self.sum_seconds)


class _Cell:
    """One count."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.number = 0


_Attempts = tuple[JobOptions | None, Outcome | None, _Cell, Durations | None]


class Tallies:
    """The counts of one leadership. Called for every job: what comes together is mostly alike."""

    def __init__(self) -> None:
        self._pairs: set[Pair] = set()
        self._plain: dict[str, float] = {}
        self._cells: dict[tuple[str, Pair, str], _Cell] = {}  # by name, pair, outcome or ""
        self._latest: dict[str, tuple[JobOptions, State | Outcome | None, _Cell]] = {}  # by name
        self._latest_attempt: _Attempts = None, None, _Cell((OTHER, OTHER)), None
        self._by_reason: dict[tuple[str, str], int] = {}
        self._queue_wait: dict[str, Durations] = {}
        self._attempt_duration: dict[Pair, Durations] = {}

    def count(self, name: str, amount: float) -> None:
        """Something that has no labels."""
        if amount:
            self._plain[name] = self._plain.get(name, 0) + amount

    def command(self, command: c.Command, answer: c.Reply) -> None:
        """A command was decided."""
        if isinstance(answer, Refusal):
            key = ("refused", answer.code)
            self._by_reason[key] = self._by_reason.get(key, 0) + 1
        elif isinstance(command, c.Enqueue) and isinstance(answer, c.Accepted):
            if not answer.created:
                self.count("idempotent_replays", 1)
                return
            if len(command.options) == 1:
                self._add("jobs_enqueued", command.options[0], number=len(command.jobs))
                return
            for option, number in Counter(job.option for job in command.jobs).items():
                self._add("jobs_enqueued", command.options[option], number=number)

    def leased(self, jobs: Iterable[Job]) -> None:
        """Jobs got a worker. A first attempt has waited since it was accepted, or since its time came."""
        for job in jobs:
            details = job.details
            if job.attempt != 1 or details is None or details.lease is None:
                continue
            since = job.created_at if details.run_at is None else details.run_at
            queue = job.options.queue
            durations = self._queue_wait.get(queue)
            if durations is None:
                name = queue if len(self._queue_wait) < QUEUES_MAX else OTHER
                durations = self._queue_wait.setdefault(name, Durations())
            durations.observe(max(0.0, details.lease.leased_at - since))

    def attempts_ended(
        self, jobs: Mapping[bytes, Job], finished: Iterable[Finished], stale: Iterable[tuple[bytes, int]]
    ) -> None:
        """Reports were settled; those that came too late count as nothing but stale."""
        refused = set(stale)
        if refused:
            self.count("stale_results", len(refused))
        options, outcome, cell, durations = self._latest_attempt
        for each in finished:
            job = jobs.get(each.job_id)
            if job is None or (refused and (each.job_id, each.attempt) in refused):
                continue
            if job.options is not options or each.outcome is not outcome:
                options, outcome, cell, durations = self._attempts_like(job.options, each.outcome)
            cell.number += 1
            if durations is not None:
                seconds = each.ended_at - each.started_at
                durations.observe(seconds if seconds > 0.0 else 0.0)

    def _attempts_like(self, options: JobOptions, outcome: Outcome) -> _Attempts:
        cell = self._cell("attempts_finished", options, outcome.value)
        durations = None
        if outcome is not Outcome.RELEASED:  # that did not run
            durations = self._attempt_duration.get(cell.pair)
            if durations is None:
                durations = self._attempt_duration[cell.pair] = Durations()
        self._latest_attempt = options, outcome, cell, durations
        return self._latest_attempt

    def job_finished(self, job: Job | FinishedGroup, jobs: int = 1) -> None:
        """A job came to its end, or so many of a group."""
        self._add("jobs_finished", job.options, job.state, jobs)

    def _add(
        self, name: str, options: JobOptions, outcome: State | Outcome | None = None, number: int = 1
    ) -> Pair:
        latest = self._latest.get(name)
        if latest is not None and latest[0] is options and latest[1] is outcome:
            cell = latest[2]
        else:
            cell = self._cell(name, options, "" if outcome is None else outcome.value)
            self._latest[name] = (options, outcome, cell)
        cell.number += number
        return cell.pair

    def _cell(self, name: str, options: JobOptions, outcome: str) -> _Cell:
        pair = (options.queue, options.task)
        if pair not in self._pairs:
            if len(self._pairs) < PAIRS_MAX:
                self._pairs.add(pair)
            else:
                pair = (OTHER, OTHER)
        key = (name, pair, outcome)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell(pair)
        return cell

    # --- what managers tell ---

    def counts(self) -> list[c.Count]:
        found = [c.Count(name, {}, value) for name, value in self._plain.items()]
        for (name, reason), value in self._by_reason.items():
            found.append(c.Count(name, {"reason": reason}, value))
        for (name, (queue, task), outcome), cell in self._cells.items():
            labels = {"queue": queue, "task": task}
            found.append(c.Count(name, {**labels, "outcome": outcome} if outcome else labels, cell.number))
        return found

    def spreads(self) -> list[c.Spread]:
        found = [
            durations.spread("queue_wait_seconds", {"queue": queue})
            for queue, durations in self._queue_wait.items()
        ]
        for (queue, task), durations in self._attempt_duration.items():
            found.append(durations.spread("attempt_duration_seconds", {"queue": queue, "task": task}))
        return found
