"""Ready lanes: which queued job is next.

A lane holds the queued jobs of one queue and pool. Within a lane a higher priority goes first, then the
older acceptance (`seq`). Jobs arrive in the order of their seq, so almost all of them sit in a deque;
those that come back (retries, delays that ended) have an older seq than the tail and sit in a small heap.

Removal is lazy: an entry counts only while its job is QUEUED. `heads` never removes a live entry, so that
deciding changes nothing; `drop_dead_heads` runs where events are applied, on every replica alike, so that a
standby that never leases keeps no dead entries either. A job may have two live entries after cancel and
revive; both name the same job, and the second is dead as soon as the first is used.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import islice

from .jobs import Job, State

_QUEUED = State.QUEUED


class _Line:
    """The queued jobs of one lane and one priority, oldest first."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Job] = deque()
        self.returned: list[tuple[int, int, Job]] = []  # heap; the counter keeps jobs from being compared

    def __len__(self) -> int:
        return len(self.fresh) + len(self.returned)

    def before(self, seq: int) -> int:
        """How many entries are older than this."""
        return bisect_left(self.fresh, seq, key=_seq) + sum(entry[0] < seq for entry in self.returned)

    def drop_dead_heads(self) -> None:
        fresh, returned = self.fresh, self.returned
        while fresh and fresh[0].state is not _QUEUED:
            fresh.popleft()
        while returned and returned[0][2].state is not _QUEUED:
            heapq.heappop(returned)

    def first(self) -> Job | None:
        self.drop_dead_heads()
        if not self.returned:
            return self.fresh[0] if self.fresh else None
        returned = self.returned[0][2]
        if self.fresh and self.fresh[0].seq < returned.seq:
            return self.fresh[0]
        return returned

    def heads(self, count: int) -> list[Job]:
        """Up to `count` live jobs in order. Leaves the line as it was."""
        self.drop_dead_heads()
        if not self.returned:
            return _live(self.fresh, count)
        borrowed: list[tuple[int, int, Job]] = []
        taken: set[bytes] = set()
        while self.returned and len(taken) < count:
            entry = heapq.heappop(self.returned)
            if entry[2].state is _QUEUED:
                borrowed.append(entry)
                taken.add(entry[2].id)
        for entry in borrowed:
            heapq.heappush(self.returned, entry)
        merged = heapq.merge(
            _distinct(borrowed),
            (job for job in _live(self.fresh, count + len(taken)) if job.id not in taken),
            key=_seq,
        )
        return list(islice(merged, count))


def _seq(job: Job) -> int:
    return job.seq


def _distinct(entries: list[tuple[int, int, Job]]) -> Iterator[Job]:
    previous = None
    for _, _, job in entries:
        if job is not previous:
            yield job
        previous = job


def _live(fresh: deque[Job], count: int) -> list[Job]:
    return list(islice((job for job in fresh if job.state is _QUEUED), count))


class Lane:
    """The queued jobs of one queue and one pool."""

    def __init__(self, queue: str, pool: str) -> None:
        self.queue = queue
        self.pool = pool
        self.lines: dict[int, _Line] = {}  # by priority
        self._order: list[int] = []  # priorities, highest first
        self._entries = 0

    def _line(self, priority: int) -> _Line:
        line = self.lines.get(priority)
        if line is None:
            line = self.lines[priority] = _Line()
            self._order = sorted(self.lines, reverse=True)
        return line

    def add_new(self, job: Job) -> None:
        """A job that has just been accepted: its seq is greater than that of all before it."""
        self._line(job.options.priority).fresh.append(job)

    def add_returned(self, job: Job) -> None:
        self._entries += 1
        heapq.heappush(self._line(job.options.priority).returned, (job.seq, self._entries, job))

    def drop_dead_heads(self) -> None:
        for line in self.lines.values():
            line.drop_dead_heads()

    def oldest(self) -> Job | None:
        """The live job that was accepted first, of any priority."""
        firsts = [job for line in self.lines.values() if (job := line.first()) is not None]
        return min(firsts, key=_seq, default=None)

    def ahead(self, job: Job) -> int:
        """About how many jobs run before this one: those that were cancelled in the middle count too."""
        priority = job.options.priority
        count = sum(len(line) for other, line in self.lines.items() if other > priority)
        return count + self.lines[priority].before(job.seq) if priority in self.lines else count

    def heads(self, count: int) -> list[Job]:
        """Up to `count` jobs in the order in which they should run."""
        if len(self._order) == 1:
            return self.lines[self._order[0]].heads(count)
        jobs: list[Job] = []
        for priority in self._order:
            if len(jobs) >= count:
                break
            jobs.extend(self.lines[priority].heads(count - len(jobs)))
        return jobs


def next_jobs(lanes: list[Lane], count: int) -> list[Job]:
    """Up to `count` jobs of several lanes: highest priority first, then the oldest."""
    if len(lanes) == 1:
        return lanes[0].heads(count)
    offered = [job for lane in lanes for job in lane.heads(count)]
    offered.sort(key=lambda job: (-job.options.priority, job.seq))
    return offered[:count]
