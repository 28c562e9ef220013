"""What becomes of jobs that have passed their retention: a line for history, and nothing else.

The lines are written before their jobs leave memory, and the objects that only these needed are deleted
after. A leader that dies in between leaves lines twice, or objects that nobody names: never a job without
a line.

The pace
--------
Retirement keeps up with whatever rate jobs finish at, or what finishes faster piles up until nothing more
is accepted. So its work comes in rounds: one object with the lines of up to `ROUND_JOBS_MAX` jobs, then the
events that let them go. Rounds follow one another for as long as a full one is due; a small one waits until
a second has passed since the last began, so that a trickle of jobs does not cost a PUT each. Within a round
nothing takes the event loop for more than `SLICE_JOBS` jobs at a time.

Deleting is apart. It may take longer than a round on a slow day, and the next round may begin meanwhile;
but only one: what waits to be deleted is bounded.

A job whose line cannot be made, or whose leaving cannot be decided, stays: it is named, and tried again with
a growing pause. The others go past it. Only where many fail in one round it is the part itself that fails.

Jobs that have ended never keep new ones out. Where a command is refused because `max_jobs` are held, the
oldest that have ended make room for it (`make_room`), whatever the settings would keep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import compress
from typing import TypeVar

from . import decisions, history_lines
from .bulkheads import ENDS_ALL, Bulkheads
from .commit_loop import CommitLoop
from .insistence import insist, insist_put
from .jobs import Job, id_text, place_of
from .object_store import ObjectStore
from .queue_state import QueueState

ROUND_JOBS_MAX = 10_000
SLICE_JOBS = 500
SMALL_ROUND_SECONDS = 1.0  # from the beginning of a round to that of the next one that is not full
AGE_LOOK_SECONDS = 5.0  # how often jobs are looked for that have become too old
LISTS_AT_ONCE = 16
STUCK_AT_ONCE_MAX = 20  # jobs of one slice that fail, before it is no fault of theirs
PART = "retirement"
QUEUES_SHARE = 10  # of the jobs that have ended so much goes where there are too many queues

Item = TypeVar("Item")


class Retirement:
    """One leadership's retirement. `run` is its side task."""

    def __init__(
        self,
        state: QueueState,
        commits: CommitLoop,
        store: ObjectStore,
        limits: decisions.Limits,
        bulkheads: Bulkheads,
    ) -> None:
        self._state = state
        self._commits = commits
        self._store = store
        self._limits = limits
        self._bulkheads = bulkheads
        self._stuck: dict[
            bytes, str
        ] = {}  # jobs that could not leave when it was last tried, and their names
        self._loop = asyncio.get_running_loop()
        self._room = 0
        self._full = min(ROUND_JOBS_MAX // 2, max(1, (limits.max_jobs - limits.retained_jobs_max) // 4))
        self._enough = 1  # so many jobs beyond the limit begin a round now
        self._due = asyncio.Event()
        self._retired_at = self._loop.time() - SMALL_ROUND_SECONDS
        self._deleting: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Jobs have ended. Called for every batch of them: it only compares two numbers."""
        if decisions.excess(self._state, self._limits, self._room) - len(self._stuck) >= self._enough:
            self._due.set()

    def make_room(self, jobs: int) -> None:
        """So many jobs were refused, because there was no room for them."""
        if jobs <= self._limits.max_jobs:
            self._room = max(self._room, jobs)
            self._due.set()

    def make_queues(self) -> None:
        """A new queue was refused, because so many have jobs that have ended: the oldest of these go."""
        spare = self._limits.max_jobs - len(self._state.jobs)
        self._room = max(self._room, spare + 1 + self._state.counts.ended // QUEUES_SHARE)
        self._due.set()

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                await self._until_due()
                while (count := await self._round()) == ROUND_JOBS_MAX:
                    pass  # more are due
                if not count and self._stuck:
                    await asyncio.sleep(SMALL_ROUND_SECONDS)  # what is due cannot leave now
        finally:
            deleting, self._deleting = self._deleting, None
            if deleting is not None:
                deleting.cancel()

    async def _until_due(self) -> None:
        """Wait for a full round, for a small one that is late enough, or for the time to look at ages."""
        look_at = self._loop.time() + AGE_LOOK_SECONDS
        while (now := self._loop.time()) < look_at:
            small_at = self._retired_at + SMALL_ROUND_SECONDS
            self._enough = 1 if now >= small_at else self._full
            self.look()
            try:
                async with asyncio.timeout_at(look_at if now >= small_at else min(small_at, look_at)):
                    await self._due.wait()
                break
            except TimeoutError:
                continue
        self._due.clear()

    async def _round(self) -> int:
        """Write the lines of some jobs, let them go, and have deleted what only they needed."""
        self._commits.stamp()
        wall = self._commits.clock.wall()
        self._stuck = {job_id: name for job_id, name in self._stuck.items() if job_id in self._state.jobs}
        stuck = {job_id for job_id, name in self._stuck.items() if not self._bulkheads.due(PART, name)}
        due = decisions.retire(self._state, self._limits, ROUND_JOBS_MAX, self._room, wall, stuck)
        self._room = 0
        jobs, places, lines = await self._lines(due)
        if not jobs:
            return 0
        self._retired_at = self._loop.time()
        await insist_put(self._store, history_lines.key(places[0], places[-1], lines), bytes(lines))
        self._commits.note_puts(1)
        keys: list[str] = []
        chunked: list[Job] = []
        for some, their_places in zip(_slices(jobs), _slices(places), strict=True):
            # One that was revived while its line was written stays, and gets another line when it ends again.
            still = [*compress(some, self._state.feed.held(their_places))]
            gone, free = self._let_go(still)
            keys += free
            chunked += filter(_has_chunks, gone)
            await asyncio.sleep(0)
        deleting, self._deleting = self._deleting, None
        if deleting is not None:
            await deleting
        self._deleting = self._loop.create_task(self._delete(keys, chunked), name="leader deletes")
        return len(due)

    async def _lines(self, due: list[Job]) -> tuple[list[Job], list[int], bytearray]:
        """Jobs that have a line, their places, and the lines."""
        jobs: list[Job] = []
        places: list[int] = []
        lines = bytearray()

        def write(some: list[Job]) -> None:
            theirs, written = [place_of(job) for job in some], history_lines.ndjson(some)
            jobs.extend(some)
            places.extend(theirs)
            lines.extend(written)

        for some in _slices(due):
            self._past_the_stuck(write, some)
            await asyncio.sleep(0)
        return jobs, places, lines

    def _let_go(self, jobs: list[Job]) -> tuple[list[Job], list[str]]:
        """Those that have left, and the objects that nobody needs now."""
        gone: list[Job] = []
        keys: list[str] = []

        def let_go(some: list[Job]) -> None:
            self._commits.stamp()
            event, free = decisions.retired(self._state, some)
            self._commits.append(event)
            gone.extend(
                some
            )  # from the append on nothing may raise: they have left, and must not leave again
            keys.extend(free)

        self._past_the_stuck(let_go, jobs)
        self._bulkheads.call(PART, self._unstick, gone)
        return gone, keys

    def _past_the_stuck(self, work: Callable[[list[Job]], None], jobs: list[Job]) -> None:
        """Do it to all of them at once; if that fails to each alone, and name those that it fails for."""
        if not jobs:
            return
        try:
            work(jobs)
        except ENDS_ALL:
            raise
        except Exception as error:
            failures = 0
            for job in jobs:
                failures += not self._works(work, job)
                if failures > STUCK_AT_ONCE_MAX:
                    raise
            if not failures:  # it was none of them alone
                self._bulkheads.failed(PART, error)

    def _works(self, work: Callable[[list[Job]], None], job: Job) -> bool:
        name = id_text(job.id)
        try:
            work([job])
        except ENDS_ALL:
            raise
        except Exception as error:
            self._stuck[job.id] = name
            self._bulkheads.failed(PART, error, name)
            return False
        return True

    def _unstick(self, jobs: list[Job]) -> None:
        """These have left."""
        for job in jobs if self._stuck else ():
            name = self._stuck.pop(job.id, None)
            if name is not None:
                self._bulkheads.worked(PART, name)

    async def _delete(self, keys: list[str], chunked: list[Job]) -> None:
        await self._commits.settled()  # only now nobody can come back to them
        for some in _slices(chunked, LISTS_AT_ONCE):
            prefixes = [f"logs/{id_text(job.id)}/" for job in some]
            for found in await asyncio.gather(*(insist(self._store.list, each) for each in prefixes)):
                keys += found
        if keys:
            await insist(self._store.delete_many, keys)


def _slices(items: list[Item], size: int = SLICE_JOBS) -> list[list[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _has_chunks(job: Job) -> bool:
    """Whether an attempt stored some of its output while it ran."""
    assert job.details is not None
    return any(each.log_bytes > (each.log.length if each.log else 0) for each in job.details.history)
