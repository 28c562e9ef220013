"""The client in an event loop: who awaits jobs here, on connections of this loop, with no thread.

The first few who await a job ask for it themselves, each by a long poll: nothing is faster for one. All
others share one reader of the completion feed, so that ten thousand cost one poll. No end is missed: the
order is to fix the place in the feed, to look at the job, then to wait. The newest is looked at first: who
comes last waits behind nobody. What the feed does not carry is fetched when the feed has told of the end.

Whoever is cancelled leaves alone. With the last one the reader ends; with the loop, its connections.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import httpx
from msgspec import UNSET

from .client_core import LONG_POLL_SECONDS, Answer, Heard, Pause, Request, Step, Talk, Together, Wait
from .client_feed import (
    FEED_PAGE,
    PAUSE_PER_ENTRY_SECONDS,
    PAUSE_SECONDS_MAX,
    FeedItem,
    FeedPage,
    read_page,
)
from .client_http import Connection, answer_of, sent

if TYPE_CHECKING:
    from .client_job import Job
    from .client_jobs import JobSet

ALONE_MAX = 4  # so many await by a long poll each
LOOKS_MAX = 8

T = TypeVar("T")
Outcome = FeedItem | Answer


class LoopClient:
    """One client in one event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._http = connection.open_async()
        self._alone = 0
        self._reading: _Reading | None = None
        self._sets: WeakKeyDictionary[JobSet, asyncio.Lock] = WeakKeyDictionary()
        self._until_the_end = self._hold_open()
        self.pid = os.getpid()

    async def _hold_open(self) -> AsyncGenerator[None, None]:
        """Suspended until the loop ends, which closes what generators are open."""
        try:
            yield
        finally:
            await self._http.aclose()

    async def begin(self) -> None:
        await anext(self._until_the_end)

    # --- requests ---

    async def run(self, talk_of: Callable[[float], Talk[T]]) -> T:
        """Drive a talk to its end."""
        loop = asyncio.get_running_loop()
        talk = talk_of(loop.time())
        try:
            step = next(talk)
            while True:
                step = talk.send(await self._do(step, loop))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _do(self, step: Step, loop: asyncio.AbstractEventLoop) -> Heard:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return Heard(loop.time())
        if isinstance(step, Together):
            return Heard(results=await self._together(step.talks), at=loop.time())
        self._connection.check_open()
        try:
            response = await self._http.request(**sent(step))
        except httpx.HTTPError as error:
            return Heard(loop.time(), failure=str(error) or type(error).__name__)
        return Heard(loop.time(), answer_of(response))

    async def request(self, request: Request) -> Answer:
        """One exchange. Raises InvalidRequest, Refused, Unavailable."""
        answer, _ = await self.run(lambda now: self._connection.talks.exchange(request, now))
        return answer

    async def feed(self, after: int | str, wait_seconds: float = 0.0, limit: int = FEED_PAGE) -> FeedPage:
        """One page of the completion feed, as `Client.feed`."""
        talks = self._connection.talks
        page, _ = await self.run(lambda now: read_page(talks, after, wait_seconds, limit, now))
        return page

    async def _together(self, talks: Sequence[Callable[[float], Talk[Any]]]) -> list[Any]:
        """Have these talks, a few at a time; the results in order."""
        found: dict[int, Any] = {}
        left = iter(enumerate(talks))

        async def some() -> None:
            for place, talk_of in left:
                found[place] = await self.run(talk_of)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(LOOKS_MAX, len(talks))):
                    group.create_task(some())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the others say the same, or were cancelled
        return [found[place] for place in range(len(talks))]

    def reading(self, jobs: JobSet) -> asyncio.Lock:
        """Held by the one task of this loop that reads the feed for a set."""
        lock = self._sets.get(jobs)
        if lock is None:
            lock = self._sets[jobs] = asyncio.Lock()
        return lock

    # --- awaiting jobs ---

    async def outcome(self, job: Job) -> Outcome:
        """How a job has ended, when it has. Raises Refused, Unavailable."""
        if self._alone < ALONE_MAX:
            self._alone += 1
            try:
                return await self._poll(job)
            finally:
                self._alone -= 1
        reading = self._reading
        if reading is None or reading.has_ended:
            reading = self._reading = _Reading(self)
        return await reading.outcome(job)

    async def _poll(self, job: Job) -> Answer:
        path, talks = job.path("/result"), self._connection.talks
        return await self.run(lambda now: talks.job_result(job.id, path, Wait(None, now), now))


class _Reading:
    """One reader of the feed, and all for whom it reads."""

    def __init__(self, client: LoopClient) -> None:
        self._client = client
        self._waiting: dict[str, list[asyncio.Future[Outcome]]] = {}
        self._jobs: dict[str, Job] = {}
        self._to_look: dict[str, None] = {}  # the newest last
        self._has_place = False
        self._looking: set[asyncio.Task[None]] = set()
        self._reader = asyncio.get_running_loop().create_task(self._read_on(), name="jobs that are awaited")
        self.has_ended = False

    async def outcome(self, job: Job) -> Outcome:
        """How this job has ended, when it has."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job.id, []).append(future)
        self._jobs[job.id] = job
        self._look_at([job.id])
        try:
            return await future
        finally:
            self._leave(job.id, future)
            if not self._waiting and not self.has_ended:
                await self._end()

    def _leave(self, job_id: str, future: asyncio.Future[Outcome]) -> None:
        if future.done() and not future.cancelled():
            future.exception()  # it may have come too late for a caller who was cancelled
        futures = self._waiting[job_id]
        futures.remove(future)
        if not futures:
            del self._waiting[job_id], self._jobs[job_id]
            self._to_look.pop(job_id, None)

    async def _end(self) -> None:
        """The last one has gone."""
        self.has_ended = True
        tasks = [self._reader, *self._looking]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def _settle(self, job_id: str, outcome: Outcome | Exception) -> None:
        for future in self._waiting.get(job_id, ()):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def _read_on(self) -> None:
        try:
            end = await self._client.feed(-1, limit=0)
            place = end.cursor or end.next
            self._has_place = True
            self._look_at(())
            while True:
                page = await self._client.feed(place, LONG_POLL_SECONDS)
                place = page.cursor or page.next
                self._take(page)
                await asyncio.sleep(min(len(page.entries) * PAUSE_PER_ENTRY_SECONDS, PAUSE_SECONDS_MAX))
        except Exception as error:  # all who wait are told; who comes later begins anew
            self.has_ended = True
            for task in self._looking:
                task.cancel()
            for job_id in list(self._waiting):
                self._settle(job_id, error)

    def _take(self, page: FeedPage) -> None:
        again = list(self._waiting) if page.truncated else []
        for entry in page.entries:
            if entry.id not in self._waiting:
                continue
            if entry.state == "succeeded" and entry.result is not UNSET:
                self._settle(entry.id, entry)
            else:
                again.append(entry.id)
        self._look_at(again)

    # --- looks ---

    def _look_at(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self._to_look.pop(job_id, None)
            self._to_look[job_id] = None
        if not self._has_place:
            return  # what ended between a look and the place would never be told
        for _ in range(min(len(self._to_look), LOOKS_MAX - len(self._looking))):
            task = asyncio.get_running_loop().create_task(self._look_on(), name="looks at awaited jobs")
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def _look_on(self) -> None:
        while self._to_look:
            job_id, _ = self._to_look.popitem()
            path = self._jobs[job_id].path("/result")
            try:
                answer = await self._client.request(Request("GET", path, good=(200, 202, 409)))
            except Exception as error:  # whoever awaits this job is told
                self._settle(job_id, error)
                continue
            if answer.status_code != 202:
                self._settle(job_id, answer)
