"""Payload packs: large payloads go into the store before the leader hears of their jobs.

The journal would carry every byte twice and the leader's memory would hold it; so a payload above
`inline_bytes_max` travels as a `BlobRef`, a byte range of one object. Payloads that arrive together share an
object: the store's latency and its price are per object.

Order makes it safe: the object is durable before the enqueue that names it is sent, so an accepted job's
payload is always there. The other way round, an object whose enqueue never arrives is only waste. The key
holds a fresh id and is used for these bytes alone, so a put with an unknown outcome is sent again as it is,
and EXISTS means that an earlier try has arrived.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .commands import Enqueue
from .errors import Refusal
from .flights import RETRY_AFTER_SECONDS, Flights, Ticket
from .jobs import BlobRef, NewJob, id_text
from .object_store import ObjectStore, PutOutcome, StoreError, because
from .put_pace import PutPace

PACK_BYTES_MAX = 16 * 1024 * 1024  # a single larger payload gets a pack of its own
PACKS_IN_THE_AIR_MAX = 4
PACKS_WAITING_BYTES_MAX = 512 * 1024 * 1024
PAUSE_SECONDS = 0.1  # doubles with every try
PAUSE_SECONDS_MAX = 2.0
INLINE_BYTES_PER_COMMAND_MAX = 4 * 1024 * 1024  # beyond it, small payloads go into the pack too
TINY_BYTES = 128  # not worth a reference


class _Waiting:
    """An enqueue that waits for its payloads to be durable."""

    __slots__ = ("jobs", "size_bytes", "ticket")

    def __init__(self, ticket: Ticket, jobs: list[NewJob]) -> None:
        self.ticket = ticket
        self.jobs = jobs
        self.size_bytes = sum(len(job.payload) for job in jobs if isinstance(job.payload, bytes))


def large_payloads(command: Enqueue, inline_bytes_max: int) -> list[NewJob]:
    """The jobs whose payloads must not travel in the command."""
    large = []
    inline_bytes = 0
    for job in command.jobs:
        payload = job.payload
        if type(payload) is not bytes:
            continue
        if len(payload) > inline_bytes_max:
            large.append(job)
        else:
            inline_bytes += len(payload)
    if inline_bytes <= INLINE_BYTES_PER_COMMAND_MAX:
        return large
    return [job for job in command.jobs if type(job.payload) is bytes and len(job.payload) > TINY_BYTES]


class PayloadPacks:
    """Writes packs, and hands their enqueues on to the flights."""

    def __init__(
        self,
        store: ObjectStore,
        flights: Flights,
        *,
        new_id: Callable[[], bytes],
        patience_seconds: float,
        pace: PutPace,
    ) -> None:
        self._store = store
        self._flights = flights
        self._new_id = new_id
        self._patience_seconds = patience_seconds
        self._pace = pace
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._in_the_air: set[asyncio.Task[None]] = set()
        self._departure_planned = False
        self.written = 0

    def submit(self, ticket: Ticket, jobs: list[NewJob]) -> None:
        """Put the payloads of these jobs (of this ticket's enqueue) into a pack, then send the ticket."""
        waiting = _Waiting(ticket, jobs)
        if self._bytes and self._bytes + waiting.size_bytes > PACKS_WAITING_BYTES_MAX:
            detail = "too many payload bytes wait for the store already"
            ticket.refuse(Refusal("overloaded", detail, retry_after_seconds=RETRY_AFTER_SECONDS))
            return
        self._waiting.append(waiting)
        self._bytes += waiting.size_bytes
        self._plan_departure()

    def _plan_departure(self) -> None:
        if not self._departure_planned and len(self._in_the_air) < PACKS_IN_THE_AIR_MAX:
            self._departure_planned = True
            loop = asyncio.get_running_loop()
            loop.call_later(self._pace.wait_seconds(loop.time()), self._depart)

    def _depart(self) -> None:
        self._departure_planned = False
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._in_the_air) < PACKS_IN_THE_AIR_MAX:
            if self._pace.wait_seconds(loop.time()) > 0:
                self._plan_departure()
                return
            self._pace.note_put(loop.time())
            group = [self._waiting.popleft()]
            size_bytes = group[0].size_bytes
            while self._waiting and size_bytes + self._waiting[0].size_bytes <= PACK_BYTES_MAX:
                size_bytes += self._waiting[0].size_bytes
                group.append(self._waiting.popleft())
            task = loop.create_task(self._write(group), name="payload pack")
            self._in_the_air.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_the_air.discard(task)
        self._plan_departure()

    async def _write(self, group: list[_Waiting]) -> None:
        """One pack for the group; then its tickets go to the flights."""
        key = f"payloads/{id_text(self._new_id())}"
        pieces = [job.payload for each in group for job in each.jobs if isinstance(job.payload, bytes)]
        try:
            durable = await self._put(key, b"".join(pieces))
        except Exception as error:  # a defect, or a store that is not fit: every caller gets it
            for each in group:
                each.ticket.fail(error)
            return
        finally:
            self._bytes -= sum(each.size_bytes for each in group)
        if not durable:
            why = because(self._store.put_failure)
            detail = f"the store did not take the payload in time{why}; nothing was enqueued"
            for each in group:
                each.ticket.refuse(Refusal("store_silent", detail, retry_after_seconds=RETRY_AFTER_SECONDS))
            return
        self.written += 1
        offset = 0
        for each in group:
            for job in each.jobs:
                length = len(job.payload) if isinstance(job.payload, bytes) else 0
                job.payload = BlobRef(key, offset, length)
                offset += length
            self._flights.submit(each.ticket)

    async def _put(self, key: str, data: bytes) -> bool:
        """True when the bytes are durable, False when patience ended first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_seconds
        pause = PAUSE_SECONDS
        while True:
            self._flights.note_put()
            try:
                outcome = await self._store.put_new(key, data)
            except StoreError:
                outcome = PutOutcome.UNKNOWN
            if outcome is not PutOutcome.UNKNOWN:
                return True
            if loop.time() + pause > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)
