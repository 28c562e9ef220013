"""Which of the jobs that have ended are old: lines of places of the feed, one for each retention.

Jobs of one retention become old in the order in which they ended. So the first of each line tells when the
next of its jobs may go, and a heap of the lines which line is next: however many jobs are kept for long,
nobody looks at them before their time. The line of those without a retention of their own (None) stands
beside the heap, because how long these are kept is a setting.

What ends is mostly of the retention of what ended before it: so only where that changes, or somebody looks,
is the line of the latest ones brought up to date.

A line has ranges of places, merged where they touch. What has left it in another way (retired by number,
put back) is passed over when it comes to the front; of that there may be more than of the rest only for a
while.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Container, Iterator

from .completion_feed import CompletionFeed
from .jobs import Job

LINGER_MIN = 1_000  # places in a line that have left, besides as many as are held

IsOld = Callable[[float, float], bool]  # when a job ended, and its retention


class _Line:
    """Places that ascend, those in front of `_begin` gone."""

    __slots__ = ("_begin", "_ends", "due_at", "held", "linger", "retention")

    def __init__(self, retention: float | None) -> None:
        self.retention = retention
        self.due_at = 0.0  # none of its jobs is old before
        self.held = 0
        self.linger = 0  # places in its ranges that are held no more
        self._ends = array("Q")  # the first place of a range, the one after its last; and so on
        self._begin = 0

    def add(self, first: int, stop: int) -> None:
        ends = self._ends
        if ends and ends[-1] == first:
            ends[-1] = stop
        else:
            ends.extend((first, stop))
        self.held += stop - first

    def first(self, feed: CompletionFeed) -> int | None:
        """The first place that is held. Cuts off what is before it."""
        ends = self._ends
        while self._begin < len(ends):
            first, stop = ends[self._begin], ends[self._begin + 1]
            held = feed.first_held(first)
            self.linger -= min(held, stop) - first
            if held < stop:
                ends[self._begin] = held
                return held
            self._begin += 2
            if self._begin * 2 > len(ends):
                del ends[: self._begin]
                self._begin = 0
        return None

    def places(self) -> Iterator[int]:
        for at in range(self._begin, len(self._ends), 2):
            yield from range(self._ends[at], self._ends[at + 1])

    def tidy(self, feed: CompletionFeed) -> None:
        """Where more has left than is held, that is dropped."""
        if self.linger > self.held + LINGER_MIN:
            held = [place for place in self.places() if feed.job_at(place) is not None]
            self._ends, self._begin, self.linger, self.held = array("Q"), 0, 0, 0
            for place in held:
                self.add(place, place + 1)


class RetentionLines:
    """See the module. Changed by `queue_state.apply`; what only looks sets places right, and removes none."""

    def __init__(self, feed: CompletionFeed) -> None:
        self._feed = feed
        self._lines: dict[float | None, _Line] = {}
        self._heap: list[tuple[float, int, _Line]] = []  # by `due_at`; an entry that says otherwise is void
        self._entries = 0
        self._latest: float | None = None  # the retention of what ended last
        self._since: int | None = None  # the first place that its line lacks; None: it lacks none

    def __len__(self) -> int:
        self._catch_up(self._feed.next_place)
        return sum(len(line._ends) for line in self._lines.values()) + len(self._heap)

    def ended(self, retention: float | None, first: int, log_time: float) -> None:
        """Jobs have ended now, at all places from this one on."""
        if self._since is None or retention != self._latest:
            self._catch_up(first)
            self._line(retention, log_time)
            self._latest, self._since = retention, first

    def restore(self, retention: float | None, place: int, finished_at: float) -> None:
        """A job of a snapshot, in the order of places."""
        self._line(retention, finished_at).add(place, place + 1)

    def _line(self, retention: float | None, log_time: float) -> _Line:
        line = self._lines.get(retention)
        if line is None:
            line = self._lines[retention] = _Line(retention)
            if retention is not None:
                self._mark(line, log_time + retention)
        return line

    def _catch_up(self, stop: int) -> None:
        if self._since is not None and self._since < stop:
            self._lines[self._latest].add(self._since, stop)
        self._since = None

    def left(self, retention: float | None, jobs: int) -> None:
        """So many of these are retired, or wait again."""
        self._catch_up(self._feed.next_place)
        line = self._lines[retention]
        line.held -= jobs
        line.linger += jobs
        if not line.held:
            del self._lines[retention]
        else:
            line.first(self._feed)
            line.tidy(self._feed)

    def _mark(self, line: _Line, due_at: float) -> None:
        self._entries += 1
        line.due_at = due_at
        heapq.heappush(self._heap, (due_at, self._entries, line))
        if len(self._heap) > 2 * len(self._lines) + LINGER_MIN:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def _is_valid(self, entry: tuple[float, int, _Line]) -> bool:
        due_at, _, line = entry
        return self._lines.get(line.retention) is line and line.due_at == due_at

    def old(
        self, default_seconds: float, now: float, is_old: IsOld, count_max: int, but: Container[bytes] = ()
    ) -> list[Job]:
        """Jobs that are old, up to so many: those that ended first of each retention, but for some."""
        self._catch_up(self._feed.next_place)
        line = self._lines.get(None)
        found = [] if line is None else self._old_of(line, default_seconds, is_old, count_max, but)
        looked: list[_Line] = []
        while self._heap and self._heap[0][0] <= now and len(found) < count_max:
            entry = heapq.heappop(self._heap)
            line = entry[2]
            if self._is_valid(entry) and line.retention is not None:
                found += self._old_of(line, line.retention, is_old, count_max - len(found), but)
                looked.append(line)
        for line in looked:
            self._mark(line, self._due_at(line))
        return found

    def _old_of(
        self, line: _Line, seconds: float, is_old: IsOld, count_max: int, but: Container[bytes]
    ) -> list[Job]:
        found: list[Job] = []
        line.first(self._feed)
        for place in line.places():
            if len(found) >= count_max:
                break
            job = self._feed.job_at(place)
            if job is None or job.details is None or job.details.finished_at is None:
                continue
            if not is_old(job.details.finished_at, seconds):
                break
            if job.id not in but:
                found.append(job)
        return found

    def _due_at(self, line: _Line) -> float:
        place = line.first(self._feed)
        job = None if place is None else self._feed.job_at(place)
        assert job is not None and job.details is not None and job.details.finished_at is not None
        assert line.retention is not None
        return job.details.finished_at + line.retention

    def held(self) -> dict[float | None, int]:
        """How many jobs each line has: for tests and the checker."""
        self._catch_up(self._feed.next_place)
        return {retention: line.held for retention, line in self._lines.items()}
