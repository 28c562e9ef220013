"""Finished jobs without an object for each: most of what a service holds, and what is seldom looked at.

A job that succeeded at its first attempt, with payload and result in memory, is some 1,200 bytes as objects.
A `FinishedGroup` keeps a few hundred of the same options in columns: what they were given and returned
in one string, their times in arrays, and who ran them as numbers. What is left of a job is its id in the
`JobTable`, and three references to its group, at its places in table, order and feed.

Such a job never changes again but to be retired, so a group is never thawed: who asks for one of its jobs
gets a copy. Everything else (failed, retried, with objects in the store, with a retention of its own, not
pulled yet) stays as it was. As with segments, representation is not state: nothing that a queue decides,
writes or tells depends on it.

Jobs that end together, as under load they do, become a group where the event is applied, and never get the
objects of an end. Nor does what ends alone, if it shares its options with some: it joins an open group, which
has its rows as they came, and puts them into columns when it is full. The acceptance order alone keeps such a
job as an object until then, and can tell that it is not the one to ask (`is_in_open_group`).

`recently_finished` says which jobs come into which group, and when.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, chain, repeat
from operator import attrgetter, itemgetter, lt
from typing import NamedTuple

from .columns import Column, Value, integers, palette_or_list, some_of, times
from .events import AttemptsEnded, Change
from .jobs import HASH_TASK, AttemptRecord, Details, Finished, Job, JobOptions, Outcome, Result, State

ATTEMPT_MAX = 65_535

_RUNNING, _SUCCEEDED, _OUTCOME, _CHANGE = State.RUNNING, State.SUCCEEDED, Outcome.SUCCEEDED, Change.SUCCEED

_job_fields = attrgetter("id", "payload", "seq", "created_at", "attempt")
_details = attrgetter("details")
_details_fields = attrgetter("history", "finished_at", "finish_seq", "result")
_record_fields = attrgetter("worker", "node", "started_at", "ended_at")
_result_fields = attrgetter("content", "data")
_end_fields = attrgetter("started_at", "ended_at", "result")
_first = itemgetter(0)
_place_of_row = itemgetter(2)


Runner = tuple[str, str, str]  # worker, node, and what the result is: what is mostly the same for all


class _Ends(NamedTuple):
    """How jobs ended, row by row."""

    places: Sequence[int]
    finished_at: Sequence[float]
    started_at: Sequence[float]
    ended_at: Sequence[float]
    runners: Sequence[Runner]
    data: Sequence[bytes]


# Of an open group: a job as it was before it ended, its report, its place, when it ended, worker and node.
Row = tuple[Job, Finished, int, float, str, str]

Completion = tuple[bytes, float, Result | None]  # a job's id, when it ended, and what it returned


def _seq_of_row(row: Row) -> int:
    return row[0].seq


class FinishedGroup:
    """Up to a few hundred jobs in columns, by seq. Rows of retired jobs stay until the last one goes.

    An open one has `rows` instead, by place, and none of a retired job."""

    __slots__ = (
        "_attempts", "_bytes", "_created", "_ended", "_ends", "_finished", "_hint", "_places", "_runners",
        "_seqs", "_started", "full_at", "ids", "options", "rows",
    )  # fmt: skip

    state = _SUCCEEDED  # of each of them

    def __init__(self, options: JobOptions, full_at: int) -> None:
        """An open one, for so many jobs with these options."""
        self.options = options
        self.ids: list[bytes] = []
        self.rows: list[Row] | None = []
        self.full_at = full_at
        self._hint = 0

    @classmethod
    def of(cls, jobs: list[Job], ends: _Ends) -> FinishedGroup:
        """Of jobs that are all plain, of the same options, and in the order of their seqs."""
        group = cls(jobs[0].options, 0)
        group._fill(jobs, ends)
        return group

    def _fill(self, jobs: list[Job], ends: _Ends) -> None:
        self.rows = None
        ids, payloads, seqs, created, attempts = zip(*map(_job_fields, jobs), strict=True)
        self.ids = [*ids]
        self._seqs = integers(seqs)
        self._places = integers(ends.places)
        self._created = times(created)
        self._finished = times(ends.finished_at)
        self._started = array("d", ends.started_at)
        self._ended = array("d", ends.ended_at)
        self._attempts = array("H", attempts)
        self._runners = palette_or_list(ends.runners)
        bodies = [*chain.from_iterable(zip(payloads, ends.data, strict=True))]
        self._ends = array("I", accumulate(map(len, bodies)))
        self._bytes = b"".join(bodies)
        self._hint = 0

    def add(
        self, jobs: list[Job], finished: list[Finished], event: AttemptsEnded, log_time: float, place: int
    ) -> None:
        """To an open one: jobs that end with these reports, at places of the feed from this one on."""
        assert self.rows is not None
        self.ids += [job.id for job in jobs]
        ends = repeat(log_time), repeat(event.worker), repeat(event.node)
        self.rows += zip(jobs, finished, range(place, place + len(jobs)), *ends, strict=False)

    @property
    def is_full(self) -> bool:
        return self.rows is not None and len(self.rows) >= self.full_at

    def close(self) -> None:
        """Put the rows of an open one into columns."""
        rows = self.rows
        assert rows is not None
        if not _ascends([row[0].seq for row in rows]):
            rows = sorted(rows, key=_seq_of_row)
        jobs, finished, places, finished_at, workers, nodes = zip(*rows, strict=True)
        started, ended, results = zip(*map(_end_fields, finished), strict=True)
        contents, data = zip(*map(_result_fields, results), strict=True)
        runners = [*zip(workers, nodes, contents, strict=True)]
        self._fill([*jobs], _Ends(places, finished_at, started, ended, runners, data))

    @classmethod
    def of_objects(cls, jobs: list[Job]) -> FinishedGroup:
        """Of jobs that have got the objects of their ends."""
        histories, finished, places, results = zip(*map(_details_fields, map(_details, jobs)), strict=True)
        workers, nodes, started, ended = zip(*map(_record_fields, map(_first, histories)), strict=True)
        contents, data = zip(*map(_result_fields, results), strict=True)
        runners = [*zip(workers, nodes, contents, strict=True)]
        return cls.of(jobs, _Ends(places, finished, started, ended, runners, data))

    @classmethod
    def of_reports(
        cls, jobs: list[Job], finished: list[Finished], event: AttemptsEnded, log_time: float, place: int
    ) -> FinishedGroup | None:
        """Of jobs that end with these reports, at places of the feed from this one on.

        None if one of them is there twice."""
        places: Sequence[int] = range(place, place + len(jobs))
        if not _ascends([job.seq for job in jobs]):
            order = sorted(range(len(jobs)), key=lambda row: jobs[row].seq)
            jobs = [jobs[row] for row in order]
            if not _ascends([job.seq for job in jobs]):
                return None
            finished = [finished[row] for row in order]
            places = [place + row for row in order]
        started, ended, results = zip(*map(_end_fields, finished), strict=True)
        contents, data = zip(*map(_result_fields, results), strict=True)
        of_content = {content: (event.worker, event.node, content) for content in contents}
        runners = [*map(of_content.__getitem__, contents)]
        return cls.of(jobs, _Ends(places, [log_time] * len(jobs), started, ended, runners, data))

    def index_of(self, job_id: bytes) -> int:
        """The row of a job. They are mostly asked for one after the other."""
        return self._row(self.ids, job_id)

    def seqs(self) -> Sequence[int]:
        """Of all rows; they ascend."""
        return some_of(self._seqs, range(len(self.ids)))

    def retire(self, ids: list[bytes]) -> tuple[Sequence[int], Sequence[int]]:
        """The places of some jobs, and their seqs: for the last time."""
        rows = self._rows(self.ids, ids)
        if self.rows is not None:
            gone = [self.rows[row] for row in rows]
            left = set(range(len(self.ids))).difference(rows)
            self.ids = [self.ids[row] for row in sorted(left)]
            self.rows = [self.rows[row] for row in sorted(left)]
            return [row[2] for row in gone], [row[0].seq for row in gone]
        return some_of(self._places, rows), some_of(self._seqs, rows)

    def _rows(self, column: Column[Value], values: Sequence[Value]) -> Sequence[int]:
        """The rows with these values, which follow each other mostly."""
        begin = self._row(column, values[0])
        rows = range(begin, begin + len(values))
        if rows.stop > len(self.ids) or [*some_of(column, rows)] != [*values]:
            return [self._row(column, value) for value in values]
        self._hint = rows.stop
        return rows

    def _row(self, column: Column[Value], value: Value) -> int:
        hint = self._hint
        index = hint if hint < len(column) and column[hint] == value else column.index(value)
        self._hint = index + 1
        return index

    def place(self, index: int) -> int:
        return self._places[index] if self.rows is None else self.rows[index][2]

    def _row_of_place(self, place: int) -> int:
        if self.rows is None:
            return self._row(self._places, place)
        return bisect_left(self.rows, place, key=_place_of_row)

    def finished_at(self, place: int) -> float:
        """When the job at this place of the feed ended."""
        row = self._row_of_place(place)
        return self._finished[row] if self.rows is None else self.rows[row][3]

    def job_of(self, job_id: bytes) -> Job:
        return self.job(self.index_of(job_id))

    def job_with_seq(self, seq: int) -> Job:
        return self.job(bisect_left(self._seqs, seq))

    def job_at(self, place: int) -> Job:
        """The job at this place of the feed."""
        return self.job(self._row_of_place(place))

    def jobs_at(self, places: Sequence[int]) -> list[Job]:
        if self.rows is not None:
            return [*map(self.job_at, places)]
        return [*map(self.job, self._rows(self._places, places))]

    def completions_at(self, places: Sequence[int]) -> list[Completion]:
        """Of the jobs at these places, which ascend: what each reader of the feed is told, and no more."""
        if self.rows is not None:
            first, last = self._row_of_place(places[0]), self._row_of_place(places[-1])
            rows = self.rows[first : last + 1]  # a place between them that is not asked for has no row
            return [(row[0].id, row[3], row[1].result) for row in rows]
        ids, finished, runners = self.ids, self._finished, self._runners
        ends, bodies = self._ends, self._bytes
        return [
            (ids[row], finished[row], Result(runners[row][2], bodies[ends[2 * row] : ends[2 * row + 1]]))
            for row in self._rows(self._places, places)
        ]

    def job(self, index: int) -> Job:
        """A copy of a job, as it was when it was an object. By position: a round of retirement makes many."""
        if self.rows is not None:
            return _job_of_row(self.rows[index])
        worker, node, content = self._runners[index]
        attempt, options, ends, bodies = self._attempts[index], self.options, self._ends, self._bytes
        start, middle, end = ends[2 * index - 1] if index else 0, ends[2 * index], ends[2 * index + 1]
        record = AttemptRecord(attempt, worker, node, self._started[index], self._ended[index], _OUTCOME)
        details = Details(
            None,
            None,
            [record],
            self._finished[index],
            self._places[index],
            Result(content, bodies[middle:end]),
            options.task == HASH_TASK,
        )
        payload = bodies[start:middle]
        seq, created_at = self._seqs[index], self._created[index]
        return Job(self.ids[index], options, payload, seq, created_at, _SUCCEEDED, attempt, 0, 0, details)


def _job_of_row(row: Row) -> Job:
    job, finished, place, finished_at, worker, node = row
    record = AttemptRecord(job.attempt, worker, node, finished.started_at, finished.ended_at, _OUTCOME)
    details = Details(None, None, [record], finished_at, place, finished.result)
    return Job(
        *(job.id, job.options, job.payload, job.seq, job.created_at, _SUCCEEDED, job.attempt, 0, 0, details)
    )


def is_in_open_group(job: Job) -> bool:
    """Whether this object is only what an open group is made of. Whatever else has ended has details."""
    return job.details is None and job.state is _SUCCEEDED


def _ascends(numbers: list[int]) -> bool:
    return all(map(lt, numbers, numbers[1:]))
