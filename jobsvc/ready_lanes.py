"""Ready lanes: which queued job is next.

A lane holds the queued jobs of one queue and pool, in a line for each priority (`ready_lines`). Within a lane
a higher priority goes first, then the older acceptance (`seq`).

Removal is lazy: an entry counts only while its job is QUEUED. `heads` never removes a live entry, so that
deciding changes nothing; `drop_dead_heads` runs where events are applied, on every replica alike, so that a
standby that never leases keeps no dead entries either. A job may have two live entries after cancel and
revive; both name the same job, and the second is dead as soon as the first is used.

Of the lanes of one pool (`LeaseOrder`), that with the best first job is found by a heap. A lane has one valid
place in it, never behind its first job; it is set right when it comes to the top. So jobs that come and go
seldom touch the heap, and a lease costs the logarithm of the lanes, not their number.

Whoever leads may hold a task back in a pool (`held_tasks`); `release` puts its jobs back in order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container

from .jobs import Job
from .ready_lines import Held, Line
from .segments import JobTable, Segment, seq_of

EMPTY_LINES_MAX = 8  # of one lane: callers may choose priorities freely
SORTED_LANES_MAX = 16  # of so few the heads are sorted: that is quicker
VOID_MIN = 64  # places in the heap of a pool that may be void, besides as many as there are lanes

Place = tuple[int, int]  # in the order of leases: priority, negative, and seq
NOWHERE: Place = (1 << 63, 0)  # after all others


class Lane:
    """The queued jobs of one queue and one pool."""

    def __init__(self, queue: str, pool: str, jobs: JobTable, lanes: Lanes | None = None) -> None:
        self.queue = queue
        self.pool = pool
        self.filled = False  # has entries
        self.marked: int | None = None  # no live entry is older: its place among all `lanes`
        self.place = NOWHERE  # no live entry is before it: its place in the order of leases
        self.place_number = 0  # which of those in the heap is valid
        self._lanes = lanes
        self.lines: dict[int, Line] = {}  # by priority
        self._order: list[int] = []  # priorities, highest first
        self._entries = 0
        self._jobs = jobs

    def _line(self, priority: int) -> Line:
        line = self.lines.get(priority)
        if line is None:
            line = self.lines[priority] = Line(self._jobs)
            self._order = sorted(self.lines, reverse=True)
        return line

    def add_new(self, entry: Job | Segment) -> None:
        """What has just been accepted: its seq is greater than that of all before it."""
        priority = entry.options.priority
        self._line(priority).add(entry)
        self.filled = True
        if -priority < self.place[0] or self.marked is None:
            self._fill((-priority, entry.seq))

    def add_returned(self, job: Job) -> None:
        self.filled = True
        place = -job.options.priority, job.seq
        if self.marked is None or job.seq < self.marked or place < self.place:
            self._fill(place)
        self._entries += 1
        heapq.heappush(self._line(job.options.priority).returned, (job.seq, self._entries, job))

    def _fill(self, place: Place) -> None:
        if self._lanes is not None:
            self._lanes.fill(self, place)

    def drop_cancelled(self) -> None:
        for line in self.lines.values():
            line.drop_dead_tail()
        self.drop_dead_heads()

    def drop_dead_heads(self) -> None:
        """Where events are applied: afterwards a lane without live jobs has no entries."""
        left = 0
        for line in self.lines.values():
            line.drop_dead_heads()
            left += line.has_entries()
        if len(self.lines) > left + EMPTY_LINES_MAX:
            self.lines = {priority: line for priority, line in self.lines.items() if line.has_entries()}
            self._order = sorted(self.lines, reverse=True)
        self.filled = left > 0

    def oldest(self) -> Job | Segment | None:
        """The live job that was accepted first, of any priority, or the segment that begins with it."""
        firsts = [first for line in self.lines.values() if (first := line.first()) is not None]
        return min(firsts, key=seq_of, default=None)

    def ahead(self, job: Job) -> int:
        """About how many jobs run before this one: those that were cancelled in the middle count too."""
        priority = job.options.priority
        count = sum(len(line) for other, line in self.lines.items() if other > priority)
        return count + self.lines[priority].before(job.seq) if priority in self.lines else count

    def head(self) -> Job | None:
        """The job that should run first."""
        held = self._held()
        for priority in self._order:
            job = self.lines[priority].head(held)
            if job is not None:
                return job
        return None

    def _held(self) -> Held | None:
        return self._lanes.held_in(self) if self._lanes is not None else None

    def not_before(self) -> Place:
        """A place that no entry is before; whoever asks for more finds out with `head`."""
        return -self._order[0], 0

    def heads(self, count: int) -> list[Job]:
        """Up to `count` jobs in the order in which they should run."""
        held = self._held()
        if len(self._order) == 1:
            return self.lines[self._order[0]].heads(count, held)
        jobs: list[Job] = []
        for priority in self._order:
            if len(jobs) >= count:
                break
            jobs.extend(self.lines[priority].heads(count - len(jobs), held))
        return jobs

    def set_aside(self) -> int:
        """About how many of its jobs wait because their task is held back."""
        entries = [
            each for line in self.lines.values() for heap in line.aside.values() for _, _, each in heap
        ]
        return sum(each.size if isinstance(each, Segment) else 1 for each in entries)

    def take_back(self, task: str) -> bool:
        """Whether there was anything of this task."""
        return any([*(line.take_back(task) for line in self.lines.values())])  # of all of them

    def one_aside(self, task: str) -> Job | None:
        """The first job of this task that is set aside. It may run next."""
        for line in self.lines.values() if self.lines else ():
            job = line.one_aside(task)
            if job is not None:
                self.add_returned(job)
                return job
        return None


class _Run:
    """The next jobs of one lane, asked for in growing pieces."""

    __slots__ = ("_asked", "_jobs", "_lane", "_next")

    def __init__(self, lane: Lane, first: Job, piece: int) -> None:
        self._lane = lane
        self._asked = piece
        self._jobs = [first] if piece == 1 else lane.heads(piece)
        self._next = 0

    def take(self, room: int, before: Place | None) -> list[Job]:
        """Up to so many, as long as they are before this place."""
        taken: list[Job] = []
        while len(taken) < room and (job := self.job()) is not None:
            if before is not None and (-job.options.priority, job.seq) > before:
                break
            taken.append(job)
            self._next += 1
        return taken

    def job(self) -> Job | None:
        """The next one."""
        if self._next == len(self._jobs):
            if self._next < self._asked:
                return None
            self._asked *= 2
            self._jobs = self._lane.heads(self._asked)
            if self._next == len(self._jobs):
                return None
        return self._jobs[self._next]


class LeaseOrder:
    """The lanes that one pool is served from: all that are filled and not paused.

    One that has become empty leaves when somebody comes to it: it is often filled again before."""

    def __init__(self) -> None:
        self.lanes: dict[tuple[str, str], Lane] = {}
        self._heap: list[tuple[int, int, int, Lane]] = []
        self._numbers = 0

    def offer(self, lane: Lane, place: Place) -> None:
        """From now on no live job of this lane is before this place."""
        self._numbers += 1
        self.lanes[lane.queue, lane.pool] = lane
        lane.place, lane.place_number = place, self._numbers
        heapq.heappush(self._heap, (*place, self._numbers, lane))
        if len(self._heap) > 2 * len(self.lanes) + VOID_MIN:
            self._heap = [entry for entry in self._heap if self._is_valid(entry)]
            heapq.heapify(self._heap)

    def withdraw(self, lane: Lane) -> None:
        """It is paused, or known no more."""
        if self.lanes.pop((lane.queue, lane.pool), None) is not None:
            lane.place, lane.place_number = NOWHERE, 0

    def _leave(self, lane: Lane) -> None:
        """It has no live entry: the next one gives it a place."""
        lane.place, lane.place_number = NOWHERE, 0
        if not lane.filled:
            del self.lanes[lane.queue, lane.pool]

    def _is_valid(self, entry: tuple[int, int, int, Lane]) -> bool:
        return entry[3].place_number == entry[2]

    def _first(self) -> tuple[Job, tuple[int, int, int, Lane]] | None:
        """The next job, and the place of its lane, which is the top of the heap."""
        heap = self._heap
        while heap:
            entry = heap[0]
            lane = entry[3]
            job = lane.head() if lane.place_number == entry[2] else None
            if job is None:
                heapq.heappop(heap)
                if lane.place_number == entry[2]:
                    self._leave(lane)
            elif job.seq == entry[1] and -job.options.priority == entry[0]:
                return job, entry
            else:
                lane.place = -job.options.priority, job.seq
                heapq.heapreplace(heap, (*lane.place, entry[2], lane))
        return None

    def next_jobs(self, count: int) -> list[Job]:
        """Up to `count` jobs: highest priority first, then the oldest. They stay where they are."""
        if len(self.lanes) == 1:
            return next(iter(self.lanes.values())).heads(count)
        if count == 1:
            first = self._first()
            return [] if first is None else [first[0]]
        return self._sorted(count) if len(self.lanes) <= SORTED_LANES_MAX else self._merged(count)

    def _sorted(self, count: int) -> list[Job]:
        offered = [job for lane in self.lanes.values() for job in lane.heads(count)]
        offered.sort(key=lambda job: (-job.options.priority, job.seq))
        return offered[:count]

    def _merged(self, count: int) -> list[Job]:
        heap, jobs = self._heap, list[Job]()
        piece = max(1, 2 * count // len(self.lanes))
        borrowed: list[tuple[int, int, int, Lane]] = []
        begun: list[tuple[int, int, _Run]] = []  # heap: the next place of each run, and the run
        while len(jobs) < count:
            first = self._first()
            if first is not None and (not begun or first[1][:2] < begun[0][:2]):
                borrowed.append(heapq.heappop(heap))
                run = _Run(borrowed[-1][3], first[0], piece)
            elif begun:
                run = heapq.heappop(begun)[2]
            else:
                break
            # A place in the heap may be before its lane's first job: then the run goes on a little later.
            others = [some[0][:2] for some in (heap, begun) if some]
            jobs += run.take(count - len(jobs), min(others, default=None))
            job = run.job() if len(jobs) < count else None
            if job is not None:
                heapq.heappush(begun, (-job.options.priority, job.seq, run))
        for entry in borrowed:
            heapq.heappush(heap, entry)
        return jobs

    def count(self, enough: int) -> int:
        """How many jobs there are, counted no further than this."""
        found, empty = 0, list[Lane]()
        for lane in self.lanes.values():
            found += len(lane.heads(enough - found))
            if found >= enough:
                break
            if not lane.filled:
                empty.append(lane)
        for lane in empty:
            self._leave(lane)
        return found


class Lanes(dict[tuple[str, str], Lane]):
    """All lanes by queue and pool, and at hand those that have something.

    There may be thousands of queues that are paused, or whose jobs have all ended: what is asked for each job
    and each second looks at none of them.

    A lane's pool is that of its queue when the jobs were enqueued. Which pool serves it now is the settings'
    business (`serve_by`): an index of who leads, and no part of the state."""

    def __init__(self, jobs: JobTable, paused: Container[str]) -> None:
        super().__init__()
        self._jobs = jobs
        self._paused = paused
        self._pool_of: Callable[[str], str] | None = None
        self._ready: dict[str, LeaseOrder] = {}  # by the pool that serves them
        self._oldest: list[tuple[int, int, Lane]] = []  # heap by `marked`; what says otherwise is dead
        self._marks = 0
        self._held: dict[str, dict[str, bytes | None]] = {}  # by the pool that serves
        self._pools: dict[str, None] = {}  # those that a lane ever had: the operator's, so a few

    def __missing__(self, key: tuple[str, str]) -> Lane:
        self._pools[key[1]] = None
        lane = self[key] = Lane(*key, self._jobs, self)
        return lane

    def serve_by(self, pool_of: Callable[[str], str]) -> None:
        """From now on workers of these pools serve the queues."""
        self._pool_of = pool_of
        self._ready = {}
        for lane in self.values():
            lane.place = NOWHERE
            self._make_ready(lane)

    def pool_of(self, queue: str, pool: str) -> str:
        """The pool that serves a queue, in which jobs were enqueued for this pool."""
        return pool if self._pool_of is None else self._pool_of(queue)

    def ready(self, pool: str) -> list[Lane]:
        """Those from which a worker of this pool may be served now."""
        ready = self._ready.get(pool)
        return [] if ready is None else [lane for lane in ready.lanes.values() if lane.filled]

    def next_jobs(self, pool: str, count: int) -> list[Job]:
        """The jobs that a worker of this pool should get."""
        ready = self._ready.get(pool)
        return [] if ready is None else ready.next_jobs(count)

    def count_ready(self, pool: str, enough: int) -> int:
        """How many jobs workers of this pool could get, counted no further than this."""
        ready = self._ready.get(pool)
        return 0 if ready is None else ready.count(enough)

    # --- tasks that are held back ---

    def held_in(self, lane: Lane) -> Held | None:
        return self._held.get(self.pool_of(lane.queue, lane.pool)) if self._held else None

    def hold(self, pool: str, task: str) -> None:
        """From now on no job of this task is next in this pool."""
        self._held.setdefault(pool, {})[task] = None

    def is_tried(self, pool: str, task: str) -> bool:
        """Whether one job of it may go all the same."""
        return self._held.get(pool, {}).get(task) is not None

    def try_one(self, pool: str, task: str) -> bool:
        """Let one job of it go. False if none is set aside."""
        for lane in self.ready(pool):
            job = lane.one_aside(task)
            if job is not None:
                self._held[pool][task] = job.id
                return True
        return False

    def release(self, pool: str, task: str) -> None:
        """It is held back no more."""
        held = self._held.get(pool, {})
        held.pop(task, None)
        if not held:
            self._held.pop(pool, None)
        for lane in self.values():
            if self.pool_of(lane.queue, lane.pool) == pool and lane.take_back(task):
                self._make_ready(lane)

    # --- in order of acceptance ---

    def oldest(self) -> tuple[Job | Segment, str] | None:
        """The queued job that was accepted first, or the segment that begins with it, and its queue."""
        heap = self._oldest
        while heap:
            seq, _, lane = heap[0]
            first = lane.oldest() if lane.marked == seq else None
            if first is not None and first.seq == seq:
                return first, lane.queue
            if first is None:
                heapq.heappop(heap)
                if lane.marked == seq:
                    lane.marked = None
            else:
                lane.marked = first.seq
                self._marks += 1
                heapq.heapreplace(heap, (first.seq, self._marks, lane))
        return None

    def fill(self, lane: Lane, place: Place) -> None:
        """A lane got an entry that may be before all others."""
        seq = place[1]
        if place < lane.place:
            self._make_ready(lane, place)
        if lane.marked is None or seq < lane.marked:
            lane.marked = seq
            self._marks += 1
            heapq.heappush(self._oldest, (seq, self._marks, lane))
            if len(self._oldest) > 2 * len(self) + VOID_MIN:  # behind a job that waits for long
                self._oldest = [entry for entry in self._oldest if self._is_marked(entry)]
                heapq.heapify(self._oldest)

    def _is_marked(self, entry: tuple[int, int, Lane]) -> bool:
        seq, _, lane = entry
        return lane.marked == seq and self.get((lane.queue, lane.pool)) is lane

    def _make_ready(self, lane: Lane, place: Place | None = None) -> None:
        if lane.filled and lane.queue not in self._paused:
            pool = self.pool_of(lane.queue, lane.pool)
            ready = self._ready.get(pool)
            if ready is None:
                ready = self._ready[pool] = LeaseOrder()
            ready.offer(lane, lane.not_before() if place is None else place)

    def _not_ready(self, lane: Lane) -> None:
        pool = self.pool_of(lane.queue, lane.pool)
        ready = self._ready.get(pool)
        if ready is not None:
            ready.withdraw(lane)
            if not ready.lanes:
                del self._ready[pool]

    def pause(self, queue: str) -> None:
        for lane in self.of_queue(queue):
            self._not_ready(lane)

    def resume(self, queue: str) -> None:
        for lane in self.of_queue(queue):
            self._make_ready(lane)

    def forget(self, queue: str) -> None:
        """A queue without jobs is known no more."""
        for lane in self.of_queue(queue):
            self._not_ready(lane)
            del self[queue, lane.pool]

    def of_queue(self, queue: str) -> list[Lane]:
        return [lane for pool in self._pools if (lane := self.get((queue, pool))) is not None]
