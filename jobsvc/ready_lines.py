"""One line of a lane: its queued jobs of one priority, oldest first.

Jobs arrive in the order of their seq, so almost all of them sit in a deque; those that come back (retries,
delays that ended) have an older seq than the tail and sit in a small heap. From the first frozen segment on
(`segments`), what arrives waits behind; it moves up, segments thawed, when the jobs before it do not suffice,
which shows nowhere. Counting and looking at the oldest thaw nothing.

Whoever leads may hold a task back (`held_tasks`). Its jobs stay QUEUED and in their line, but are set aside
when their turn comes, frozen segments as they are: nobody who looks for the next one passes them again.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice

from .jobs import Job, State
from .segments import JobTable, Segment, seq_of

_QUEUED = State.QUEUED
Held = Mapping[str, bytes | None]  # tasks that are held back, and of each the job that may go all the same


class Line:
    """The queued jobs of one lane and one priority, oldest first."""

    __slots__ = ("_jobs", "_number", "aside", "behind", "fresh", "returned", "segments")

    def __init__(self, jobs: JobTable) -> None:
        self._jobs = jobs
        self.fresh: deque[Job] = deque()
        self.behind: deque[Job | Segment] = deque()  # younger than all in `fresh`
        self.segments: deque[Segment] = deque()  # those in `behind`
        self.returned: list[tuple[int, int, Job]] = []  # heap; the counter keeps jobs from being compared
        self.aside: dict[str, list[tuple[int, int, Job | Segment]]] = {}  # task -> heap; see `held_tasks`
        self._number = 0

    def __len__(self) -> int:
        in_segments = sum(segment.size - 1 for segment in self.segments)
        return len(self.fresh) + len(self.behind) + in_segments + len(self.returned)

    def has_entries(self) -> bool:
        return bool(self.fresh or self.behind or self.returned or self.aside)

    def before(self, seq: int) -> int:
        """How many entries are older than this."""
        return (
            bisect_left(self.fresh, seq, key=seq_of)
            + bisect_left(self.behind, seq, key=seq_of)
            + sum(min(each.size, seq - each.seq) - 1 for each in self.segments if each.seq < seq)
            + sum(entry[0] < seq for entry in self.returned)
        )

    def add(self, entry: Job | Segment) -> None:
        if isinstance(entry, Segment):
            self.behind.append(entry)
            self.segments.append(entry)
        elif self.behind:
            self.behind.append(entry)
        else:
            self.fresh.append(entry)

    def _move_up(self) -> list[Job]:
        """The first entry of those behind goes to `fresh`."""
        entry = self.behind.popleft()
        if isinstance(entry, Segment):
            self.segments.popleft()
            jobs = self._jobs.thawed(entry)
        else:
            jobs = [entry]
        self.fresh.extend(jobs)
        return jobs

    def drop_dead_heads(self) -> None:
        """Afterwards the first of `fresh` lives, or there is none and a frozen segment is first, if any."""
        fresh, returned = self.fresh, self.returned
        while True:
            while fresh and fresh[0].state is not _QUEUED:
                fresh.popleft()
            if fresh or not self.behind or _is_frozen(self.behind[0]):
                break
            self._move_up()
        while returned and returned[0][2].state is not _QUEUED:
            heapq.heappop(returned)
        for task in [*self.aside] if self.aside else ():
            self._drop_dead_aside(task)

    def drop_dead_tail(self) -> None:
        """Jobs are cancelled newest first: each goes as it dies, and not a million of them with the last."""
        while self.behind and _is_dead(self.behind[-1]):
            if isinstance(self.behind.pop(), Segment):
                self.segments.pop()

    def head(self, held: Held | None = None) -> Job | None:
        """The first live job that is not held back."""
        fresh = self.fresh
        if fresh and not self.returned and fresh[0].state is _QUEUED and not held:
            return fresh[0]
        return next(iter(self.heads(1, held)), None)

    def first(self) -> Job | Segment | None:
        self.drop_dead_heads()
        firsts = [*islice(self.fresh or self.behind, 1), *(entry[2] for entry in self.returned[:1])]
        firsts += [heap[0][2] for heap in self.aside.values()]
        return min(firsts, key=seq_of, default=None)

    # --- held back ---

    def put_aside(self, entry: Job | Segment) -> None:
        self._number += 1
        heapq.heappush(self.aside.setdefault(entry.options.task, []), (entry.seq, self._number, entry))

    def _drop_dead_aside(self, task: str) -> None:
        """Afterwards the first of them lives, or there is none."""
        heap = self.aside[task]
        while heap:
            entry = heap[0][2]
            if _is_frozen(entry) or (isinstance(entry, Job) and entry.state is _QUEUED):
                return
            heapq.heappop(heap)
            for job in entry.jobs or () if isinstance(entry, Segment) else ():
                if job.state is _QUEUED:
                    self.put_aside(job)
        del self.aside[task]

    def one_aside(self, task: str) -> Job | None:
        """The first of those that are set aside, which is so no more."""
        while task in self.aside:
            self._drop_dead_aside(task)
            if task not in self.aside:
                return None
            entry = heapq.heappop(self.aside[task])[2]
            if isinstance(entry, Job):
                return entry
            for job in self._jobs.thawed(entry):
                self.put_aside(job)
        return None

    def take_back(self, task: str) -> bool:
        """All of them go to where they would be. False if there are none."""
        entries = [entry for _, _, entry in self.aside.pop(task, ())]
        if not entries:
            return False
        jobs: dict[int, Job] = {}  # one that was revived may be there twice
        segments = [each for each in (*entries, *self.behind) if _is_frozen(each)]
        for entry in (*entries, *self.fresh, *self.behind):
            for job in (entry,) if isinstance(entry, Job) else entry.jobs or ():
                if job.state is _QUEUED:
                    jobs[job.seq] = job
        self.behind = deque(sorted([*jobs.values(), *segments], key=seq_of))
        self.segments = deque(each for each in self.behind if isinstance(each, Segment))
        self.fresh.clear()
        self.drop_dead_heads()
        return True

    def _live_but(self, held: Held, count: int) -> list[Job]:
        """The same as `_live`, past those that are held back: they are set aside."""
        live: list[Job] = []
        while len(live) < count and (self.fresh or self.behind):
            if self.fresh:
                job = self.fresh.popleft()
                if job.state is _QUEUED:
                    self.put_aside(job) if _is_held(job, held) else live.append(job)
            elif _is_frozen(self.behind[0]) and _is_held(self.behind[0], held):
                self.put_aside(self.behind.popleft())
                self.segments.popleft()
            else:
                self._move_up()
        self.fresh.extendleft(reversed(live))
        return live

    # --- in turn ---

    def _live(self, count: int, held: Held | None) -> list[Job]:
        """Up to `count` live jobs that did not come back."""
        if held:
            return self._live_but(held, count)
        live = list(islice((job for job in self.fresh if job.state is _QUEUED), count))
        while len(live) < count and self.behind:
            live += [job for job in self._move_up() if job.state is _QUEUED]
        return live[:count]

    def heads(self, count: int, held: Held | None = None) -> list[Job]:
        """Up to `count` live jobs in order. Leaves the line as it was, but for those that are held back."""
        self.drop_dead_heads()
        if not self.returned:
            return self._live(count, held)
        borrowed: list[tuple[int, int, Job]] = []
        taken: set[bytes] = set()
        while self.returned and len(taken) < count:
            entry = heapq.heappop(self.returned)
            if held and entry[2].state is _QUEUED and _is_held(entry[2], held):
                self.put_aside(entry[2])
            elif entry[2].state is _QUEUED:
                borrowed.append(entry)
                taken.add(entry[2].id)
        for entry in borrowed:
            heapq.heappush(self.returned, entry)
        merged = heapq.merge(
            _distinct(borrowed),
            (job for job in self._live(count + len(taken), held) if job.id not in taken),
            key=seq_of,
        )
        return list(islice(merged, count))


def _is_frozen(entry: Job | Segment) -> bool:
    return isinstance(entry, Segment) and entry.jobs is None


def _is_dead(entry: Job | Segment) -> bool:
    """Looks at the newest first: while the oldest are cancelled it lives, and one look is enough."""
    if isinstance(entry, Job):
        return entry.state is not _QUEUED
    if entry.jobs is None or entry.jobs[-1].state is _QUEUED:
        return False
    return all(job.state is not _QUEUED for job in entry.jobs)


def _is_held(entry: Job | Segment, held: Held) -> bool:
    options = entry.options
    if options.task not in held or options.content == "pickle":
        return False
    return isinstance(entry, Segment) or held[options.task] != entry.id


def _distinct(entries: list[tuple[int, int, Job]]) -> Iterator[Job]:
    previous = None
    for _, _, job in entries:
        if job is not previous:
            yield job
        previous = job
