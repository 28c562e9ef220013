"""Group commit: from events to durable records.

The loop
--------
Events are applied to memory at once and put into the open batch; the calls that caused them wait. The loop
takes the open batch, appends it to the journal as one record, and when that is durable releases every call
that waited for it; what arrived meanwhile is the next batch. So the journal's latency is paid once for all
that travel together, and there is never more than one PUT in the air.

Why no answer can be taken back (J2): memory runs ahead of the journal by at most the batches that are not
durable, and every answer, reads and leases too, waits for the batch that was open or in the air when it
was computed. If an append fails for good, `run` raises, the process ends, and no waiting call is answered:
its caller asks the next leader under the same ids.

Where a store would take a record at any time, a busy leader still waits a moment between two: most of what a
record costs is the same for one event and for fifty, and whoever was answered by the last record is about to
come again. Reports of workers that have jobs in hand wait longer than callers do: nobody starves meanwhile,
and `hurry` ends the wait for all. A leader with little to do does not wait, so an idle service has no added
latency.

One log time for each record: it is fixed by the batch's first event, and every event of the batch is
applied with it, here as in every replay. It never falls; `log_clock` says how it goes on.

Why a leader that slept says nothing wrong: an answer that needs no commit (a read while nothing is open) is
given only within `TRUST_SECONDS` of the beginning of the last append that succeeded. Later, the read waits
for an empty record, and a leader that was replaced while it slept is fenced by that append. This only
narrows the time in which a read may be stale; that two leaders cannot both commit is the journal's doing.
Where a stale answer would do harm, time is not trusted: workers compare epochs, and before something is
deleted on the strength of a read, `proved` waits for a record.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from .commands import ManagerStatus
from .errors import EventNotApplied, Unavailable
from .events import Event
from .jobs import encode
from .journal import LogWriter, Mark
from .log_clock import LogClock
from .queue_state import QueueState, apply
from .settings import Settings

TRUST_SECONDS = 2.0
PUSH_BYTES_MAX = 64 * 1024 * 1024  # beyond this the standby reads from the store
SIGN_OF_LIFE_SECONDS = 1.0
REST_SECONDS_MAX = 0.5  # between two records, whatever others have put
BUSY_EVENTS = 8  # a record with as many makes the leader a busy one, for a while
BUSY_SECONDS = 0.1
BUSY_INTERVAL_SECONDS = 0.005
PATIENT_INTERVAL_SECONDS = 0.02  # while nobody is in a hurry
PUSH_INTERVAL_SECONDS = 0.1  # the standby may be so much behind: when it takes over, it reads the rest


class Peer(Protocol):
    """The other manager."""

    name: str

    async def push(self, records: list[bytes]) -> int:
        """Hand over committed records; returns how many it has applied. Raises Unavailable."""
        ...

    async def status(self) -> ManagerStatus | None:
        """What it says of itself; None if there is no such process. Raises Unavailable if it is not known."""
        ...


class _Batch:
    """What will be one record."""

    def __init__(self, log_time: float) -> None:
        self.events: list[Event] = []
        self.log_time = log_time
        self.durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class CommitLoop:
    """One leadership's commits. `run` and `push` are its side tasks."""

    def __init__(
        self,
        state: QueueState,
        writer: LogWriter,
        settings: Settings,
        peer: Peer,
        clock: LogClock,
    ) -> None:
        self._state = state
        self._writer = writer
        self._settings = settings
        self._peer = peer
        self.clock = clock
        self._loop = asyncio.get_running_loop()
        last = max(state.log_time, writer.mark.log_time)  # the state does not see the takeover's own time
        if last > clock.now():
            clock.heard(last)
        self._batch = _Batch(self.now())
        self._in_the_air: _Batch | None = None
        self._broken: EventNotApplied | None = None
        self._others_puts = 0
        self._busy_until = self._patient_until = 0.0
        self._work, self._hurry = asyncio.Event(), asyncio.Event()
        self._pushes: deque[bytes] = deque()
        self._push_bytes = 0
        self._push_now = asyncio.Event()
        self.committed_at = self._loop.time()
        self.standby_applied: int | None = None
        self.commit_seconds: deque[float] = deque(maxlen=500)

    @property
    def epoch(self) -> int:
        return self._writer.epoch

    @property
    def mark(self) -> Mark:
        """After the last durable record."""
        return self._writer.mark

    def now(self) -> float:
        """Log time as it would be for a record that begins now."""
        return max(self._state.log_time, self.clock.stamp())

    def stamp(self) -> None:
        """Fix the time of the open batch; from its first event on it stays. Call before deciding."""
        if not self._batch.events:
            self._batch.log_time = self.now()
        self._state.log_time = self._batch.log_time

    def append(self, event: Event) -> None:
        """Apply an event and put it into the open batch.

        Raises EventNotApplied: the state is not whole any more, and nothing is committed after that."""
        if self._broken is not None:
            raise self._broken
        self.stamp()
        try:
            apply(self._state, event, self._batch.log_time)
        except Exception as error:
            epoch, n = self._writer.mark.next_position
            number = n + (self._in_the_air is not None)
            self._broken = EventNotApplied(not_applied(epoch, number, len(self._batch.events), event, error))
            self._work.set()
            raise self._broken from error
        self._batch.events.append(event)
        self._work.set()

    async def settled(self) -> None:
        """Wait until everything that an answer computed now depends on is durable."""
        if self._batch.events:
            await asyncio.shield(self._batch.durable)
        elif self._in_the_air is not None:
            await asyncio.shield(self._in_the_air.durable)
        elif self._loop.time() - self.committed_at > TRUST_SECONDS:
            await self.proved()

    def hurry(self) -> None:
        """Somebody waits for the open batch who has nothing else to do."""
        self._hurry.set()

    async def proved(self) -> None:
        """Wait for a record that is begun after this call: nobody had taken over until now."""
        self._work.set()
        self.hurry()
        await asyncio.shield(self._batch.durable)

    async def run(self) -> None:
        """Commit for ever; raises what ends the leadership."""
        while True:
            try:
                async with asyncio.timeout(self._settings.idle_record_seconds):
                    await self._work.wait()
            except TimeoutError:
                pass  # J5: an empty record is the heartbeat, and how a leader learns that it is fenced
            await self._gather()
            if self._broken is not None:
                raise self._broken
            self.stamp()
            batch, self._batch = self._batch, _Batch(self._batch.log_time)
            self._in_the_air = batch
            began = self._loop.time()
            record = await self._writer.append(encode(batch.events), len(batch.events), batch.log_time)
            self._in_the_air = None
            self.committed_at = began
            if batch.events:
                self.commit_seconds.append(self._loop.time() - began)
            batch.durable.set_result(None)
            self._queue_push(record.encoded)
            rest = began + self._interval_seconds(len(batch.events), began) - self._loop.time()
            if rest > 0:
                await asyncio.sleep(min(rest, REST_SECONDS_MAX))

    async def _gather(self) -> None:
        """Let the open batch grow while the leader is busy and nobody is in a hurry."""
        if self._patient_until > self._loop.time():
            try:
                async with asyncio.timeout_at(self._patient_until):
                    await self._hurry.wait()
            except TimeoutError:
                pass  # it has grown enough
        self._work.clear()
        self._hurry.clear()

    def _interval_seconds(self, events: int, began: float) -> float:
        """From the beginning of a record with so many events to that of the next one, at least."""
        puts = 1 + self._others_puts
        self._others_puts = 0
        now = self._loop.time()
        if events >= BUSY_EVENTS:
            self._busy_until = now + BUSY_SECONDS
        busy = now < self._busy_until
        self._patient_until = began + PATIENT_INTERVAL_SECONDS if busy else 0.0
        least = BUSY_INTERVAL_SECONDS if busy else 0.0
        return max(least, puts * self._settings.record_interval_seconds)

    def note_puts(self, puts: int) -> None:
        """Others have put so many objects: the next record waits for that much longer (see `put_pace`)."""
        self._others_puts += puts

    def _queue_push(self, encoded: bytes) -> None:
        if self._push_bytes + len(encoded) > PUSH_BYTES_MAX:
            self._pushes.clear()  # a gap: the standby will read what it misses
            self._push_bytes = 0
        self._pushes.append(encoded)
        self._push_bytes += len(encoded)
        self._push_now.set()

    async def push(self) -> None:
        """Tell the standby what is durable, and at least once a second that the leader lives."""
        while True:
            try:
                async with asyncio.timeout(SIGN_OF_LIFE_SECONDS):
                    await self._push_now.wait()
            except TimeoutError:
                pass  # an empty push is the sign of life
            self._push_now.clear()
            records = list(self._pushes)
            self._pushes.clear()
            self._push_bytes = 0
            pushed_at = self._loop.time()
            try:
                self.standby_applied = await self._peer.push(records)
            except Unavailable:
                self.standby_applied = None  # best effort: it reads from the store
            await asyncio.sleep(max(0.0, pushed_at + PUSH_INTERVAL_SECONDS - self._loop.time()))


def not_applied(epoch: int, n: int, place: int, event: object, error: BaseException) -> str:
    """What an operator needs to know of an event that cannot be applied."""
    return (
        f"record {epoch}/{n}, event {place} ({type(event).__name__}) cannot be applied by this version: "
        f"{type(error).__name__}: {error}"
    )
