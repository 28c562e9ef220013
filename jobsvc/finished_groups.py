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
objects of an end. What ends alone is about to be asked for, so the last `LAG` of those stay objects; the ones
before them wait until there are enough of their options to make a group.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, groupby
from operator import attrgetter, eq, itemgetter, lt
from typing import Generic, NamedTuple, Protocol, TypeVar

from .events import AttemptsEnded, Change
from .interned_options import InternedOptions
from .jobs import HASH_TASK, AttemptRecord, Details, Finished, Job, Outcome, Result, State

LAG = 512
SOME = 256  # of those before the last `LAG` are looked at together
AT_ONCE_MIN = 32  # jobs that end together: a smaller group would take as much as objects do
GROUP_MIN = 64
GROUP_MAX = 256
PALETTE_MAX = 64
ATTEMPT_MAX = 65_535

_RUNNING, _SUCCEEDED, _OUTCOME, _CHANGE = State.RUNNING, State.SUCCEEDED, Outcome.SUCCEEDED, Change.SUCCEED
Value = TypeVar("Value")

_job_fields = attrgetter("id", "payload", "seq", "created_at", "attempt")
_details = attrgetter("details")
_details_fields = attrgetter("history", "finished_at", "finish_seq", "result")
_record_fields = attrgetter("worker", "node", "started_at", "ended_at")
_result_fields = attrgetter("content", "data")
_end_fields = attrgetter("started_at", "ended_at", "result")
_first = itemgetter(0)


class Column(Protocol[Value]):
    """What an array, a list, a range and the two below have in common."""

    def __getitem__(self, index: int, /) -> Value: ...

    def __len__(self) -> int: ...

    def index(self, value: Value, /) -> int: ...


class _Shifted:
    """Integers that are close to each other, as differences from the smallest."""

    __slots__ = ("_base", "_differences")

    def __init__(self, base: int, differences: array[int]) -> None:
        self._base = base
        self._differences = differences

    def __len__(self) -> int:
        return len(self._differences)

    def __getitem__(self, index: int) -> int:
        return self._base + self._differences[index]

    def index(self, value: int) -> int:
        return self._differences.index(value - self._base)


class _Palette(Generic[Value]):
    """Values of which few are different."""

    __slots__ = ("_numbers", "_values")

    def __init__(self, values: list[Value], numbers: bytes) -> None:
        self._values = values
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Value:
        return self._values[self._numbers[index]]

    def index(self, value: Value) -> int:
        return self._numbers.index(self._values.index(value))


def _integers(values: Sequence[int]) -> Column[int]:
    first, stop = values[0], values[0] + len(values)
    if values[-1] == stop - 1 and all(map(eq, values, range(first, stop))):
        return range(first, stop)  # mostly they are neighbours
    base = min(values)
    if max(values) - base < 1 << 32:
        return _Shifted(base, array("I", [value - base for value in values]))
    return array("Q", values)


def _column(values: Sequence[Value]) -> Column[Value]:
    if values.count(values[0]) == len(values):
        return _Palette([values[0]], bytes(len(values)))
    different = [*dict.fromkeys(values)]
    if len(different) > PALETTE_MAX:
        return [*values]
    numbers = {value: number for number, value in enumerate(different)}
    return _Palette(different, bytes(map(numbers.__getitem__, values)))


Runner = tuple[str, str, str]  # worker, node, and what the result is: what is mostly the same for all


def _some_of(column: Column[Value], rows: Sequence[int]) -> Sequence[Value]:
    if isinstance(rows, range) and isinstance(column, range | list | array):
        return column[rows.start : rows.stop]
    return [*map(column.__getitem__, rows)]


class _Ends(NamedTuple):
    """How jobs ended, row by row."""

    places: Sequence[int]
    finished_at: Sequence[float]
    started_at: Sequence[float]
    ended_at: Sequence[float]
    runners: Sequence[Runner]
    data: Sequence[bytes]


class FinishedGroup:
    """Up to `GROUP_MAX` jobs in columns, by seq. Rows of retired jobs stay until the last one goes."""

    __slots__ = (
        "_attempts", "_bytes", "_created", "_ended", "_ends", "_finished", "_hint", "_places", "_runners",
        "_seqs", "_started", "ids", "options",
    )  # fmt: skip

    state = _SUCCEEDED  # of each of them

    def __init__(self, jobs: list[Job], ends: _Ends) -> None:
        """Of jobs that are all plain, of the same options, and in the order of their seqs."""
        self.options = jobs[0].options
        ids, payloads, seqs, created, attempts = zip(*map(_job_fields, jobs), strict=True)
        self.ids: list[bytes] = [*ids]
        self._seqs = _integers(seqs)
        self._places = _integers(ends.places)
        self._created = _column(created)
        self._finished = _column(ends.finished_at)
        self._started = array("d", ends.started_at)
        self._ended = array("d", ends.ended_at)
        self._attempts = array("H", attempts)
        self._runners = _column(ends.runners)
        bodies = [*chain.from_iterable(zip(payloads, ends.data, strict=True))]
        self._ends = array("I", accumulate(map(len, bodies)))
        self._bytes = b"".join(bodies)
        self._hint = 0

    @classmethod
    def of_objects(cls, jobs: list[Job]) -> FinishedGroup:
        """Of jobs that have got the objects of their ends."""
        histories, finished, places, results = zip(*map(_details_fields, map(_details, jobs)), strict=True)
        workers, nodes, started, ended = zip(*map(_record_fields, map(_first, histories)), strict=True)
        contents, data = zip(*map(_result_fields, results), strict=True)
        runners = [*zip(workers, nodes, contents, strict=True)]
        return cls(jobs, _Ends(places, finished, started, ended, runners, data))

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
        return cls(jobs, _Ends(places, [log_time] * len(jobs), started, ended, runners, data))

    def index_of(self, job_id: bytes) -> int:
        """The row of a job. They are mostly asked for one after the other."""
        return self._row(self.ids, job_id)

    def seqs(self) -> Sequence[int]:
        """Of all rows; they ascend."""
        return _some_of(self._seqs, range(len(self.ids)))

    def rows_of(self, ids: list[bytes]) -> tuple[Sequence[int], Sequence[int]]:
        """The places of some jobs, and their seqs."""
        rows = self._rows(self.ids, ids)
        return _some_of(self._places, rows), _some_of(self._seqs, rows)

    def _rows(self, column: Column[Value], values: Sequence[Value]) -> Sequence[int]:
        """The rows with these values, which follow each other mostly."""
        begin = self._row(column, values[0])
        rows = range(begin, begin + len(values))
        if rows.stop > len(self.ids) or [*_some_of(column, rows)] != [*values]:
            return [self._row(column, value) for value in values]
        self._hint = rows.stop
        return rows

    def _row(self, column: Column[Value], value: Value) -> int:
        hint = self._hint
        index = hint if hint < len(column) and column[hint] == value else column.index(value)
        self._hint = index + 1
        return index

    def place(self, index: int) -> int:
        return self._places[index]

    def finished_at(self, place: int) -> float:
        """When the job at this place of the feed ended."""
        at: float = self._finished[self._row(self._places, place)]
        return at

    def job_of(self, job_id: bytes) -> Job:
        return self.job(self.index_of(job_id))

    def job_with_seq(self, seq: int) -> Job:
        return self.job(bisect_left(self._seqs, seq))

    def job_at(self, place: int) -> Job:
        """The job at this place of the feed."""
        return self.job(self._row(self._places, place))

    def jobs_at(self, places: Sequence[int]) -> list[Job]:
        return [*map(self.job, self._rows(self._places, places))]

    def job(self, index: int) -> Job:
        """A copy of a job, as it was when it was an object. By position: a round of retirement makes many."""
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


def _ascends(numbers: list[int]) -> bool:
    return all(map(lt, numbers, numbers[1:]))


def ended_together(jobs: list[Job], event: AttemptsEnded) -> Iterator[tuple[int, int, bool]]:
    """What ended by one event, in parts: from, to, and whether they can become a group at once."""
    if len(jobs) < AT_ONCE_MIN:
        yield 0, len(jobs), False
        return
    ends = zip(jobs, event.finished, event.changes, event.run_ats, strict=True)
    begin = 0
    for options, alike in groupby([_options_if_plain(*each) for each in ends]):
        end = begin + len([*alike])
        if not options or end - begin < AT_ONCE_MIN:
            yield begin, end, False
        else:
            parts = -(-(end - begin) // GROUP_MAX)
            for part in range(parts):
                stop = begin + -(-(end - begin) // (parts - part))
                yield begin, stop, True
                begin = stop
        begin = end


def _options_if_plain(job: Job, finished: Finished, change: Change, run_at: float | None) -> int:
    """The id of its options if a group can hold all there is to know of a job that ends like this, or 0."""
    details, options, result = job.details, job.options, finished.result
    if (
        change is _CHANGE
        and job.state is _RUNNING
        and details is not None
        and not details.history
        and finished.outcome is _OUTCOME
        and result is not None
        and result.data is not None
        and type(job.payload) is bytes
        and finished.error is None
        and finished.log is None
        and not finished.log_bytes
        and finished.attempt == job.attempt <= ATTEMPT_MAX
        and run_at is None
        and not (job.failures or job.crashes or details.history_dropped)
        and options.retention_seconds is None
        and options.task != HASH_TASK
    ):
        return id(options)
    return 0


def is_plain(job: Job) -> bool:
    """Whether a group can hold all there is to know of a job that succeeded, at its only attempt.

    Of a job whose history is one record, that record is its success, and it has spent nothing."""
    details = job.details
    if details is None or len(details.history) != 1 or type(job.payload) is not bytes:
        return False
    record, result = details.history[0], details.result
    return (
        result is not None
        and result.data is not None
        and not record.log_bytes
        and record.error is None
        and record.log is None
        and record.number == job.attempt <= ATTEMPT_MAX
        and not (job.failures or job.crashes or details.history_dropped)
    )


class RecentlyFinished:
    """Jobs that succeeded and are objects still. `freeze` makes a group of those it is given.

    Hash jobs come when they finish and when they are pulled; those that wait for it are passed over."""

    def __init__(self, options: InternedOptions, freeze: Callable[[list[Job]], None]) -> None:
        self._options = options
        self._freeze = freeze
        self._recent: list[Job] = []

    def add(self, jobs: list[Job]) -> None:
        """These have succeeded, or were pulled."""
        recent = self._recent
        recent += jobs
        while len(recent) >= LAG + SOME:
            self._sort_out(recent[:SOME])
            del recent[:SOME]

    def _sort_out(self, jobs: list[Job]) -> None:
        for _, group in groupby(filter(is_plain, jobs), _options_id):
            alike = [*group]
            options = alike[0].options
            if options.retention_seconds is not None:
                continue
            if options.task == HASH_TASK:
                alike = [job for job in alike if job.details is not None and job.details.pulled]
            use = self._options.get(options)
            if use is None:
                continue  # all retired meanwhile
            if use.waiting is None:
                use.waiting = []
            use.waiting += alike
            while len(use.waiting) >= GROUP_MIN:
                self._freeze(use.waiting[:GROUP_MAX])
                del use.waiting[:GROUP_MAX]


def _options_id(job: Job) -> int:
    return id(job.options)
