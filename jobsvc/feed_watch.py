"""Waiting for jobs: one subscription to the completion feed for everybody who waits in this replica.

While somebody waits, one long poll of the feed is open; it wakes whoever waits for a job that it names. The
feed is durable and its places never change, so the subscription goes on at its place with the next leader.

No wake-up is lost because the order is: fix the place in the feed, then look at the job, then wait. A job
that finished before the look is seen by the look; one that finishes after it is after the place. A wake-up
without a reason is harmless: whoever is woken looks again.
"""

from __future__ import annotations

import asyncio

from .commands import FeedPage, Found, GetJobs, JobView, ReadFeed, Reply, Request
from .errors import Refusal, Unavailable
from .flights import Flights, Managers, Ticket

POLL_SECONDS = 5.0
RETRY_SECONDS = 0.1
RETRY_SECONDS_MAX = 1.0
# A busy feed that wakes nobody here is read in larger pieces, at this price in latency.
QUIET_PAUSE_SECONDS = 0.002
QUIET_PAUSE_SECONDS_MAX = 0.02
AT_THE_END = -1  # as a place: no entries, only where the feed ends


class Waiter:
    """One who waits for a job. `job` is there if the feed has brought it along."""

    __slots__ = ("job", "woken")

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.job: JobView | None = None


class FeedWatch:
    """Who waits for which job, and the task that reads the feed for them."""

    def __init__(self, managers: Managers, flights: Flights) -> None:
        self._managers = managers
        self._flights = flights
        self._waiting: dict[bytes, set[Waiter]] = {}
        self._place: int | None = None
        self._began_at = 0
        self._task: asyncio.Task[None] | None = None

    def add(self, job_id: bytes) -> Waiter:
        """Who is woken when the job may have finished. Give it back with `remove`."""
        waiter = Waiter()
        self._waiting.setdefault(job_id, set()).add(waiter)
        return waiter

    def remove(self, job_id: bytes, waiter: Waiter) -> None:
        waiters = self._waiting[job_id]
        waiters.discard(waiter)
        if not waiters:
            del self._waiting[job_id]

    @property
    def _stands(self) -> bool:
        return self._task is not None and not self._task.done() and self._place is not None

    async def look(self, job_id: bytes) -> JobView | Refusal:
        """The job as it is; what ends after this look wakes the waiters. Begins the subscription if need be.

        Place and job come in one flight, so the first to wait pays no extra way to the leader.
        """
        if not self._stands:
            feed, found = await self._ask(ReadFeed(AT_THE_END, 0), GetJobs([job_id]))
            if isinstance(feed, Refusal):
                return feed
            assert isinstance(feed, FeedPage)
            if not self._stands:
                self._begin(feed.next)
            if feed.next >= self._began_at:
                return _one(found)
        # it stands, but may have begun after that look: then the job may have ended in between
        (found,) = await self._ask(GetJobs([job_id]))
        return _one(found)

    def _begin(self, place: int) -> None:
        self._place = self._began_at = place
        self._task = asyncio.get_running_loop().create_task(self._read_on(), name="feed watch")

    async def _ask(self, *requests: Request) -> list[Reply]:
        ticket = Ticket(requests, 0)
        self._flights.submit(ticket)
        return await ticket.replies

    async def _read_on(self) -> None:
        """Follow the feed while somebody waits."""
        pause = RETRY_SECONDS
        quiet = 0
        while self._waiting and self._place is not None:
            try:
                page = await self._managers.wait_feed(ReadFeed(self._place), POLL_SECONDS)
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)
                continue
            pause = RETRY_SECONDS
            woken = self._take(page)
            quiet = quiet + 1 if page.entries and not woken else 0
            if quiet:
                await asyncio.sleep(min(quiet * QUIET_PAUSE_SECONDS, QUIET_PAUSE_SECONDS_MAX))
        self._place = None

    def _take(self, page: FeedPage) -> int:
        """Wake who waits for what the page names. Returns how many jobs were waited for."""
        assert self._place is not None
        if page.holes or page.reset:  # part of the feed was retired unread, and their jobs may be in it
            woken = list(self._waiting)
        else:
            woken = [entry.id for entry in page.entries if entry.id in self._waiting]
        self._place = page.next
        jobs = {job.id: job for job in page.jobs}
        for job_id in woken:
            for waiter in self._waiting.get(job_id, ()):
                waiter.job = jobs.get(job_id)
                waiter.woken.set()
        return len(woken)


def _one(reply: Reply) -> JobView | Refusal:
    if isinstance(reply, Refusal):
        return reply
    assert isinstance(reply, Found)
    return reply.items[0]
