"""The gateway: between many HTTP requests and one leader. One in each replica.

Its parts have a module each: `flights` takes requests to the leader, those that arrive together in one call;
`payload_packs` makes large payloads durable before their enqueue is sent; `feed_watch` waits for jobs by one
subscription for all. This class is what the HTTP side sees of them.

A refusal is an answer. `ask` returns it like any other; the methods that promise a kind of answer raise
`Refused` with it. Nothing here is undone when a caller is cancelled: what was submitted goes its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from . import commands as c
from .errors import Refusal, Refused, Unavailable
from .feed_watch import FeedWatch
from .flights import RETRY_AFTER_SECONDS, Flights, Managers, Ticket
from .jobs import TERMINAL, BlobRef, NewJob, Result, id_text
from .object_store import ObjectStore, StoreError
from .payload_packs import PayloadPacks, large_payloads
from .put_pace import PutPace, replica_interval_seconds
from .settings import MIB, Settings
from .tallies import Durations

__all__ = ["Gateway", "Managers"]

COMMIT_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
REST_CHUNK = 1_000_000  # above every chunk's number
REQUEST_BYTES = 64  # of a request without a payload, roughly
JOB_BYTES = 48  # of a job without its payload, roughly
COMMAND_BYTES_MAX = 12 * MIB  # one record must be able to hold any one command
WAITERS_MAX = 20_000
READ_TRIES = 4
READ_PAUSE_SECONDS = 0.1
CHUNK_BYTES = 4 * MIB  # of an object that is streamed

T = TypeVar("T")


class Gateway:
    """See the module. Used from one event loop."""

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
        self.enqueue_commit_seconds = Durations(COMMIT_BUCKETS_SECONDS)
        self.flights = Flights(managers)
        self.packs = PayloadPacks(
            store,
            self.flights,
            new_id=new_id,
            patience_seconds=settings.request_deadline_seconds,
            pace=PutPace(replica_interval_seconds(settings.record_interval_seconds, settings.replicas)),
        )
        self._managers = managers
        self._store = store
        self._settings = settings
        self._watch = FeedWatch(managers, self.flights)
        self._waiters = 0

    # --- asking the leader ---

    async def ask(self, *requests: c.Request) -> list[c.Reply]:
        """The leader's replies, in order. The requests travel together: the later ones see the earlier."""
        size_bytes = 0
        large: list[NewJob] = []
        began = asyncio.get_running_loop().time()
        for request in requests:
            size_bytes += REQUEST_BYTES
            if isinstance(request, c.Enqueue):
                large += large_payloads(request, self._settings.inline_bytes_max)
                size_bytes += _size_bytes(request)
            elif isinstance(request, c.Command) and request.key is None:
                request.key = c.AUTOMATIC_KEY_PREFIX + self.new_id().hex()
        ticket = Ticket(requests, size_bytes - _payload_bytes(large))
        if ticket.size_bytes > COMMAND_BYTES_MAX:
            raise Refused(
                Refusal("too_large", "the jobs are too large together: send them in smaller batches")
            )
        if large:
            self.packs.submit(ticket, large)
        else:
            self.flights.submit(ticket)
        replies = await ticket.replies
        if any(isinstance(reply, c.Accepted) for reply in replies):
            self.enqueue_commit_seconds.observe(asyncio.get_running_loop().time() - began)
        return replies

    async def get(self, request: c.Request, kind: type[T]) -> T:
        """The reply, of the kind that this request has. Raises Refused."""
        (reply,) = await self.ask(request)
        return expect(reply, kind)

    async def job(self, job_id: bytes, *, place: bool = False) -> c.JobView:
        """One job; with its place in the queue if that is asked for. Raises Refused if there is none."""
        found = await self.get(c.GetJobs([job_id], place), c.Found)
        return expect(found.items[0], c.JobView)

    async def statuses(self) -> list[c.ManagerStatus]:
        return await self._managers.statuses()

    # --- waiting ---

    @property
    def waiting(self) -> int:
        """How many callers wait for a job now."""
        return self._waiters

    async def wait_for_job(self, job_id: bytes, seconds: float) -> c.JobView:
        """The job when it has ended, or as it is after `seconds`. Raises Refused."""
        if seconds <= 0:
            return await self.job(job_id, place=True)
        if self._waiters >= WAITERS_MAX:
            raise Refused(Refusal("overloaded", "too many callers wait", None, RETRY_AFTER_SECONDS))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self._waiters += 1
        waiter = self._watch.add(job_id)
        try:
            while True:
                waiter.woken.clear()
                view = expect(await self._watch.look(job_id), c.JobView)
                left = deadline - loop.time()
                if view.state in TERMINAL or left <= 0:
                    return view
                try:
                    async with asyncio.timeout(left):
                        await waiter.woken.wait()
                except TimeoutError:
                    return await self.job(job_id)
                if waiter.job is not None:
                    return waiter.job
        finally:
            self._waiters -= 1
            self._watch.remove(job_id, waiter)

    async def wait_feed(self, query: c.ReadFeed, seconds: float) -> c.FeedPage:
        """A page of the feed, at once or when something has finished. Raises Refused."""
        if seconds <= 0 or query.limit == 0 or query.after < 0:
            return await self.get(query, c.FeedPage)
        try:
            return await self._managers.wait_feed(query, seconds)
        except Unavailable as error:
            refusal = Refusal("no_leader", str(error), None, RETRY_AFTER_SECONDS)
            raise Refused(refusal) from error

    # --- objects ---

    async def read_blob(self, ref: BlobRef) -> bytes:
        """The bytes of a reference. Raises Refused if they are gone, StoreError."""
        return b"".join([piece async for piece in self.stream_blob(ref)])

    async def stream_blob(self, ref: BlobRef) -> AsyncGenerator[bytes, None]:
        """The same in pieces. Raises before the first piece if the object is gone."""
        end = ref.offset + ref.length
        offset = ref.offset
        while offset < end:
            length = min(CHUNK_BYTES, end - offset)
            piece = await self._read(ref.key, offset, length)
            if piece is None or len(piece) != length:
                raise Refused(Refusal("not_found", "what the job refers to is not in the store any more"))
            yield piece
            offset += length

    async def read_result(self, result: Result) -> bytes:
        return await self.read_blob(result.ref) if result.ref is not None else (result.data or b"")

    async def read_log(self, job: c.JobView, attempt: int, after_chunk: int = -1) -> tuple[list[bytes], int]:
        """The chunks of an attempt's output after a chunk's number, and the last number read.

        The end of an attempt's output, which is in a pack, counts as the chunk REST_CHUNK.
        """
        record = next((each for each in job.history if each.number == attempt), None)
        rest = record.log if record is not None else None
        chunks: list[bytes] = []
        if after_chunk >= REST_CHUNK:
            return chunks, after_chunk
        if record is None or rest is None or record.log_bytes > rest.length:
            after_chunk = await self._read_chunks(job.id, attempt, after_chunk, chunks)
        if rest is not None:
            chunks.append(await self.read_blob(rest))
            after_chunk = REST_CHUNK
        return chunks, after_chunk

    async def _read_chunks(self, job_id: bytes, attempt: int, after_chunk: int, chunks: list[bytes]) -> int:
        prefix = f"logs/{id_text(job_id)}/{attempt}/"
        for key in await self._list(prefix):
            number = int(key.removeprefix(prefix))
            if number <= after_chunk:
                continue
            chunk = await self._read(key)
            if chunk is None:
                break  # retired while it was read
            chunks.append(chunk)
            after_chunk = number
        return after_chunk

    async def _read(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        return await _insist(lambda: self._store.get(key, offset, length))

    async def _list(self, prefix: str) -> list[str]:
        return await _insist(lambda: self._store.list(prefix))


def expect(reply: object, kind: type[T]) -> T:
    """The reply, if it is of this kind. Raises Refused with a refusal."""
    if isinstance(reply, Refusal):
        raise Refused(reply)
    if not isinstance(reply, kind):
        raise TypeError(f"expected {kind.__name__} of the leader, got {type(reply).__name__}")
    return reply


def _payload_bytes(jobs: list[NewJob]) -> int:
    return sum([len(job.payload) for job in jobs if type(job.payload) is bytes])


def _size_bytes(command: c.Enqueue) -> int:
    """What an enqueue takes in a flight, roughly; a job with a reference counts as one without a payload."""
    labels = sum(len(text) for each in command.options for pair in each.labels for text in pair)
    return (
        _payload_bytes(command.jobs)
        + labels
        + JOB_BYTES * len(command.jobs)
        + 2 * REQUEST_BYTES * len(command.options)
    )


async def _insist(read: Callable[[], Awaitable[T]]) -> T:
    """A read, a few times if the store does not answer. Raises StoreError."""
    pause = READ_PAUSE_SECONDS
    for _ in range(READ_TRIES - 1):
        try:
            return await read()
        except StoreError:
            await asyncio.sleep(pause)
            pause *= 2
    return await read()
