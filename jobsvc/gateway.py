"""The gateway: between many HTTP requests and one leader.

Requests that arrive together travel together. While a flight is in the air, requests gather; when it
returns, all that gathered are the next one. So a single request on an idle service leaves at once, a
thousand at the same time cost one call, and nothing waits for a timer. Large payloads of jobs that gather are
written as one pack before their flight leaves; a job that has been accepted has its payload.

A caller that goes away does not stop its flight: the work of `_fly` belongs to the gateway, not to the
request. Flights are sent again by `Managers.send` until its deadline, under the same ids and keys; if
that passes, the callers are told that the outcome is not known, and may send the same request again.

Whoever waits for a job waits for one subscription of the completion feed, which runs only while somebody
waits. It is begun before the job is looked at, so a completion in between is not missed; and a waiter that
is woken looks again, so a wake-up too many does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from . import commands as c
from .errors import Refusal, Refused, Unavailable
from .jobs import TERMINAL, BlobRef, NewJob, Result, id_text
from .object_store import ObjectStore, PutOutcome, StoreError
from .settings import Settings

FLIGHT_REQUESTS_MAX = 2_000
FLIGHT_JOBS_MAX = 20_000
FLIGHTS_IN_THE_AIR = 2
PACK_TRIES = 6
FEED_WAIT_SECONDS = 20.0
RETRY_AFTER_SECONDS = 1.0
WAITERS_MAX = 20_000

T = TypeVar("T")


class Managers(Protocol):
    """The way to the leader."""

    async def send(self, flight: c.Flight) -> c.FlightReply:
        """Tries until its deadline, whoever leads. Raises Unavailable."""
        ...

    async def wait_feed(self, after: int, wait_seconds: float) -> c.FeedPage: ...

    async def statuses(self) -> list[c.ManagerStatus]: ...


class _Asked:
    """A request that waits for its reply."""

    __slots__ = ("reply", "request")

    def __init__(self, request: c.Request) -> None:
        self.request = request
        self.reply: asyncio.Future[c.Reply] = asyncio.get_running_loop().create_future()


class Gateway:
    """One for each replica. Used from one event loop."""

    def __init__(
        self,
        managers: Managers,
        store: ObjectStore,
        settings: Settings,
        *,
        new_id: Callable[[], bytes],
        wall: Callable[[], float],
    ) -> None:
        self.new_id = new_id
        self.wall = wall
        self.counters: dict[str, float] = {}
        self.commit_seconds: list[float] = []
        self._managers = managers
        self._store = store
        self._settings = settings
        self._gathered: list[_Asked] = []
        self._flights: set[asyncio.Task[None]] = set()
        self._waiters: dict[bytes, set[asyncio.Event]] = {}
        self._feed_after: int | None = None
        self._subscription: asyncio.Task[None] | None = None

    # --- asking the leader ---

    async def ask(self, request: c.Request) -> c.Reply:
        """The leader's reply. A refusal is a reply; this raises nothing of its own."""
        asked = _Asked(self._with_key(request))
        self._gathered.append(asked)
        self._take_off()
        return await asyncio.shield(asked.reply)

    async def get(self, request: c.Request, kind: type[T]) -> T:
        """The reply, if it is of the kind that this request has. Raises Refused."""
        reply = await self.ask(request)
        if isinstance(reply, Refusal):
            raise Refused(reply)
        if not isinstance(reply, kind):
            raise TypeError(f"{type(request).__name__} was answered with {type(reply).__name__}")
        return reply

    def _with_key(self, request: c.Request) -> c.Request:
        """Commands that are not idempotent by themselves get a key, so that they may be sent again."""
        if isinstance(request, c.Cancel | c.Retry | c.PatchQueue | c.Pull) and request.key is None:
            request.key = c.AUTOMATIC_KEY_PREFIX + self.new_id().hex()
        return request

    def _take_off(self) -> None:
        while self._gathered and len(self._flights) < FLIGHTS_IN_THE_AIR:
            flight = self._next_flight()
            task = asyncio.get_running_loop().create_task(self._fly(flight), name="flight")
            self._flights.add(task)
            task.add_done_callback(self._landed)

    def _next_flight(self) -> list[_Asked]:
        jobs = 0
        for count, asked in enumerate(self._gathered):
            jobs += len(asked.request.jobs) if isinstance(asked.request, c.Enqueue) else 1
            if count == FLIGHT_REQUESTS_MAX or (jobs > FLIGHT_JOBS_MAX and count):
                flight, self._gathered = self._gathered[:count], self._gathered[count:]
                return flight
        flight, self._gathered = self._gathered, []
        return flight

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flights.discard(task)
        if not task.cancelled():
            task.result()
        self._take_off()

    async def _fly(self, flight: list[_Asked]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._pack_payloads([a.request for a in flight if isinstance(a.request, c.Enqueue)])
            reply = await self._managers.send(c.Flight([asked.request for asked in flight]))
        except (Unavailable, StoreError) as error:
            refusal = Refusal("unknown_outcome", str(error), None, RETRY_AFTER_SECONDS)
            self._answer(flight, [refusal] * len(flight))
        except BaseException as error:
            for asked in flight:
                if not asked.reply.done():
                    asked.reply.set_exception(error)
                    asked.reply.exception()  # the caller may have gone away
            raise
        else:
            self._answer(flight, reply.replies)
            if any(isinstance(asked.request, c.Enqueue) for asked in flight):
                self.commit_seconds.append(loop.time() - began)
                del self.commit_seconds[:-500]

    def _answer(self, flight: list[_Asked], replies: list[c.Reply]) -> None:
        for asked, reply in zip(flight, replies, strict=True):
            if not asked.reply.done():
                asked.reply.set_result(reply)

    # --- payloads ---

    async def _pack_payloads(self, enqueues: list[c.Enqueue]) -> None:
        """Move large payloads of these jobs into one object, and leave references."""
        inline_max = self._settings.inline_bytes_max
        large = [
            job
            for enqueue in enqueues
            for job in enqueue.jobs
            if isinstance(job.payload, bytes) and len(job.payload) > inline_max
        ]
        if large:
            await self._write_pack(large)

    async def _write_pack(self, jobs: list[NewJob]) -> None:
        key = f"payloads/{id_text(self.new_id())}"
        parts: list[bytes] = []
        refs: list[BlobRef] = []
        offset = 0
        for job in jobs:
            assert isinstance(job.payload, bytes)
            parts.append(job.payload)
            refs.append(BlobRef(key, offset, len(job.payload)))
            offset += len(job.payload)
        data = b"".join(parts)
        for number in range(PACK_TRIES):
            if await self._store.put_new(key, data) is not PutOutcome.UNKNOWN:  # the key is ours alone
                break
            await asyncio.sleep(0.05 * 2**number)
        else:
            raise StoreError("the payload could not be stored")
        for job, ref in zip(jobs, refs, strict=True):
            job.payload = ref

    async def read_blob(self, ref: BlobRef) -> bytes:
        """The bytes of a reference. Raises Refused if they are gone, StoreError."""
        data = await self._store.get(ref.key, ref.offset, ref.length)
        if data is None:
            raise Refused(Refusal("not_found", "what the job refers to is not in the store any more"))
        return data

    async def read_result(self, result: Result) -> bytes:
        return await self.read_blob(result.ref) if result.ref is not None else (result.data or b"")

    async def read_log(self, job_id: bytes, attempt: int, after_chunk: int = -1) -> tuple[list[bytes], int]:
        """The chunks of an attempt's output after a chunk's number, and the last number read."""
        prefix = f"logs/{id_text(job_id)}/{attempt}/"
        chunks: list[bytes] = []
        for key in await self._store.list(prefix):
            number = int(key.removeprefix(prefix))
            if number <= after_chunk:
                continue
            data = await self._store.get(key)
            if data is None:
                break
            chunks.append(data)
            after_chunk = number
        return chunks, after_chunk

    # --- waiting ---

    async def job(self, job_id: bytes) -> c.JobView:
        """One job. Raises Refused if there is none."""
        found = (await self.get(c.GetJobs([job_id]), c.Found)).items[0]
        if isinstance(found, Refusal):
            raise Refused(found)
        return found

    async def wait_for_job(self, job_id: bytes, seconds: float) -> c.JobView:
        """The job when it has ended, or as it is after `seconds`. Raises Refused."""
        if seconds <= 0:
            return await self.job(job_id)
        if sum(map(len, self._waiters.values())) >= WAITERS_MAX:
            raise Refused(Refusal("no_leader", "too many callers wait", None, RETRY_AFTER_SECONDS))
        ended = asyncio.Event()
        self._waiters.setdefault(job_id, set()).add(ended)
        try:
            if self._subscription is None or self._subscription.done():
                await self._subscribe()
            deadline = asyncio.get_running_loop().time() + seconds
            while True:
                view = await self.job(job_id)
                left = deadline - asyncio.get_running_loop().time()
                if view.state in TERMINAL or left <= 0:
                    return view
                ended.clear()
                try:
                    async with asyncio.timeout(left):
                        await ended.wait()
                except TimeoutError:
                    pass  # the job as it is now is the answer
        finally:
            self._waiters[job_id].discard(ended)
            if not self._waiters[job_id]:
                del self._waiters[job_id]

    async def _subscribe(self) -> None:
        """Know the feed's end before anybody looks at a job."""
        page = await self.get(c.ReadFeed(-1), c.FeedPage)
        if self._subscription is None or self._subscription.done():
            self._feed_after = page.next
            self._subscription = asyncio.get_running_loop().create_task(self._follow_feed(), name="feed")

    async def _follow_feed(self) -> None:
        while self._waiters:
            assert self._feed_after is not None
            try:
                page = await self._managers.wait_feed(self._feed_after, FEED_WAIT_SECONDS)
            except Unavailable:
                self._wake_all()
                await asyncio.sleep(0.2)
                continue
            if page.next < self._feed_after:  # cannot be: the feed only grows; look again at everything
                self._wake_all()
            self._feed_after = page.next
            for entry in page.entries:
                for waiter in self._waiters.get(entry.id, ()):
                    waiter.set()

    def _wake_all(self) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.set()

    async def wait_feed(self, after: int, seconds: float, limit: int) -> c.FeedPage:
        """A page of the feed, at once or when something has finished. Raises Refused."""
        page = await self.get(c.ReadFeed(after, limit), c.FeedPage)
        if page.entries or seconds <= 0 or limit == 0:
            return page
        try:
            waited = await self._managers.wait_feed(page.next, seconds)
        except Unavailable as error:
            refusal = Refusal("no_leader", str(error), None, RETRY_AFTER_SECONDS)
            raise Refused(refusal) from error
        if len(waited.entries) > limit:
            waited.entries = waited.entries[:limit]
            waited.next = waited.entries[-1].seq
        return waited

    async def statuses(self) -> list[c.ManagerStatus]:
        return await self._managers.statuses()
