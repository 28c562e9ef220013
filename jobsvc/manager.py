"""A manager: one of the pair. It follows, takes over, leads; and ends rather than be wrong.

    recovering ──caught up──> standby ──claim won──> leader ──fenced, store silent──> (process ends)
        ^                        │
        └──────── stale ─────────┘

Both managers run this one machine. A manager begins by reading the newest snapshot and the log after it;
from then on it is a standby: the leader pushes what it has committed, and whatever is missing is read from
the store. It suspects the leader when the rim sees the leader's process die (milliseconds), or when nothing
was heard for `takeover_silence_seconds`. Suspicion only starts a claim; the conditional write decides (J8),
and a leader that was suspected wrongly loses its next append and ends. So both may be wrong about time and
about each other, and there is still one history.

At the start nobody is suspected yet: a manager that has caught up asks the other one. If that one leads, it
follows; if it is not there, or does not lead either, it claims at once.

After a takeover the new leader knows all leases from the state, and nothing about the workers' health. It
gives each the full lease time to report again, and takes nothing from a worker that does.

The standby also writes the snapshots, so that the leader never stops for one. It holds what is pushed
while it encodes, and drops the snapshot if it must take over meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

import msgspec

from . import commands as c
from . import queue_snapshot
from .bulkheads import ENDS_ALL, Bulkheads, said
from .clock_view import ClockView
from .commit_loop import Peer, not_applied
from .errors import EventNotApplied, Fatal, Unavailable
from .events import decode_events
from .jobs import NotLeader, WorkerReport, encode
from .journal import LogReader, LogWriter, Mark, Record, StaleReader, claim, open_prefix
from .leader import Leader
from .log_clock import LogClock
from .object_store import ObjectStore, StoreError, date_of, takes_nothing
from .pool_scaler import Fleet, PoolScaler
from .pushed_records import PushedRecords
from .queue_state import QueueState, apply
from .service_code import ServiceCode
from .settings import Settings
from .snapshots import prune, write_snapshot
from .state_history import StateHistory
from .store_owner import OtherService
from .tallies import QUEUES_MAX

STALE_CHECK_SECONDS = 5.0
SLEPT_SECONDS = 2.0  # it looks at least once a second

ADVICE = (
    "Nothing in the store was changed. Start the version that wrote it, or a newer one, on the same data; "
    "please report the record's number and this text"
)

_log = logging.getLogger(__name__)

_flight_decoder = msgspec.msgpack.Decoder(c.Flight)
_feed_decoder = msgspec.msgpack.Decoder(c.ReadFeed)
_report_decoder = msgspec.msgpack.Decoder(WorkerReport)


class Manager:
    """See the module. `run` is its life; the other methods are its calls."""

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        store: ObjectStore,
        peer: Peer,
        fleet: Fleet,
        wall: Callable[[], float],
        random: Random,
        nonce: bytes,
        node: str,
        pid: int,
        actor: str = "",
    ) -> None:
        self.name = name
        self.role = "recovering"
        self.state = QueueState()
        self.leader: Leader | None = None
        self._settings = settings
        self._store = store
        self._peer = peer
        self._fleet = fleet
        self._random = random
        self._nonce = nonce
        self._node = node
        self._pid = pid
        self._actor = actor
        self._reader: LogReader | None = None
        self._scaler: PoolScaler | None = None
        self._pushed = PushedRecords()
        self._news = asyncio.Event()
        self._heard_at = self._looked_at = 0.0
        self._suspect = False
        self._takeover_seconds: float | None = None
        self._log_bytes = 0
        self._log_records = 0
        self._snapshot: asyncio.Task[None] | None = None
        self._history = StateHistory()
        self._other_service = OtherService(settings.service)
        self._clock = LogClock(lambda: asyncio.get_running_loop().time(), wall)
        self.bulkheads = Bulkheads(lambda: asyncio.get_running_loop().time(), wall)
        self._code: ServiceCode | None = None
        self.warnings: list[str] = []

    # --- life ---

    async def run(self) -> None:
        """Until something fatal: raises it. Never returns."""
        cluster_id = await self._insist_open()
        self._reader = LogReader(self._store, cluster_id)
        while True:
            try:
                await self._recover(self._reader)
                writer = await self._follow(self._reader)
            except StaleReader:
                continue
            except StoreError:
                await asyncio.sleep(0.2)
                continue
            except Fatal:
                raise
            except Exception as error:
                # It only follows: whoever leads goes on. What it has applied may be torn, so it begins anew.
                await asyncio.sleep(self.bulkheads.failed("following", error))
            else:
                await self._lead(writer)

    async def _insist_open(self) -> bytes:
        """J14, until the store answers: a service that starts while its store is away waits for it."""
        while True:
            try:
                return await open_prefix(self._store, self._nonce)
            except StoreError:
                await asyncio.sleep(0.5)

    async def _recover(self, reader: LogReader) -> None:
        """J6: snapshot, then the log to its end."""
        self.role = "recovering"
        self._pushed.clear()
        body = await reader.restart()
        self.state = QueueState()
        try:
            for self.state in queue_snapshot.restore(body) if body is not None else ():
                await asyncio.sleep(0)
        except Exception as error:
            detail = f"the snapshot before record {reader.mark.next_position} cannot be read: {said(error)}"
            raise EventNotApplied(f"{detail}. {ADVICE}") from error
        self._log_bytes = self._log_records = 0
        del body
        await self._read_on(reader)
        await self._other_service.look(self._store, reader.mark)
        self._clock.read(reader.mark.log_time)

    async def _read_on(self, reader: LogReader) -> int:
        """Read and apply until there is nothing more. Returns how many data records there were."""
        count = 0
        while (record := await reader.read_next()) is not None:
            self._apply(record)
            count += record.kind == "data"
        return count

    def _apply(self, record: Record) -> None:
        self._log_bytes += len(record.encoded)
        self._log_records += 1
        if self.role == "standby":
            self._clock.heard(record.log_time)
        if record.kind != "data":
            return
        self.state.log_time = record.log_time
        applied, event = 0, None
        try:
            for event in decode_events(record.body):
                apply(self.state, event, record.log_time)
                applied += 1
        except Exception as error:
            what = not_applied(*record.position, applied, event, error)
            raise EventNotApplied(f"{what}. {ADVICE}") from error

    async def _follow(self, reader: LogReader) -> LogWriter:
        """Standby. Returns when a claim has been won."""
        loop = asyncio.get_running_loop()
        self.role = "standby"
        _log.info("follows from %s, %d jobs", reader.mark.next_position, len(self.state.jobs))
        self._heard_at = self._looked_at = polled_at = checked_at = loop.time()
        self._suspect = self._suspect or await self._nobody_leads()
        was_anothers = False
        while True:
            if self.bulkheads.due("history"):
                self.bulkheads.call("history", self._history.sample, self.state, self._clock.now())
            if self._suspect or await self._leader_is_silent():
                writer = await self._try_takeover(reader)
                if writer is not None:
                    return writer
            is_anothers = self._must_keep_away(reader)  # nobody pushes then
            self._suspect = self._suspect or (was_anothers and not is_anothers)
            was_anothers = is_anothers
            is_complete = self._take_pushed(reader)
            if is_anothers or not is_complete or loop.time() - polled_at > STALE_CHECK_SECONDS:
                await self._read_on(reader)
                polled_at = loop.time()
            if loop.time() - checked_at > STALE_CHECK_SECONDS:
                await reader.check_stale()
                checked_at = loop.time()
            if self.bulkheads.due("snapshot") and not is_anothers:
                await self._maybe_snapshot(reader)
            await self._wait_for_news()

    async def _leader_is_silent(self) -> bool:
        """Nothing was heard for too long, by one who was awake to hear it, and who has asked.

        On a machine that is overloaded the listener may be what slept; to take over from a leader that
        lives would cost a restart, and add to the load.
        """
        loop = asyncio.get_running_loop()
        slept = loop.time() - self._looked_at > SLEPT_SECONDS
        self._looked_at = loop.time()
        if slept:
            self._heard_at = loop.time()
        if loop.time() - self._heard_at < self._settings.takeover_silence_seconds:
            return False
        try:
            other = await self._peer.status()
        except Unavailable:
            return True
        if other is not None and other.role == "leader" and other.healthy:
            self._heard_at = loop.time()
            return False
        return True

    async def _try_takeover(self, reader: LogReader) -> LogWriter | None:
        """Read to the end and claim; None if another one leads after all."""
        suspected, self._suspect = self._suspect, False
        _log.info("the leader is %s", "gone" if suspected else "silent")
        await self._drop_snapshot()
        self._take_pushed(reader)
        epoch = reader.mark.next_position.epoch
        records = await self._read_on(reader)
        goes_on = reader.mark.next_position.epoch != epoch or (records and not suspected)
        if not goes_on and not self._must_keep_away(reader):
            writer = await claim(
                reader,
                nonce=self._nonce,
                log_time=self._clock.so_far(),
                random=self._random,
                stepdown_seconds=self._settings.stepdown_seconds,
                service=self._settings.service,
            )
            if writer is not None:
                return writer
            await self._read_on(reader)
        self._heard_at = asyncio.get_running_loop().time()  # it leads, or commits and cannot reach me
        return None

    def _must_keep_away(self, reader: LogReader) -> bool:
        return self._other_service.keeps_away(reader.mark, asyncio.get_running_loop().time())

    async def _nobody_leads(self) -> bool:
        try:
            other = await self._peer.status()
        except Unavailable:
            return False  # not known: silence will tell
        if other is None or other.role != "leader":
            return True
        if other.pulse is not None:
            self._clock.heard(other.pulse.log_time)
        return False

    async def _wait_for_news(self) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self._news.wait()
        except TimeoutError:
            pass  # time to look at the silence, and at the store
        self._news.clear()

    def _take_pushed(self, reader: LogReader) -> bool:
        """Apply what was pushed. False if something is missing that must be read from the store."""
        complete = True
        while self._pushed:
            record = reader.accept_pushed(self._pushed.take())
            if record is not None:
                self._apply(record)
                complete = True
            else:
                complete = False
        return complete

    # --- snapshots ---

    async def _maybe_snapshot(self, reader: LogReader) -> None:
        due = (
            self._log_bytes >= self._settings.snapshot_log_bytes
            or self._log_records >= self._settings.snapshot_records
        )
        if not due or (self._snapshot is not None and not self._snapshot.done()):
            return
        if self._snapshot is not None:
            task, self._snapshot = self._snapshot, None
            task.result()  # a store that is not fit
        mark = reader.mark
        pieces: list[bytes] = []
        try:
            for part in queue_snapshot.parts(self.state):
                pieces.append(part)
                await asyncio.sleep(0)
                if self._suspect:
                    return
        except Exception as error:
            self.bulkheads.failed("snapshot", error)
            return
        self._log_bytes = self._log_records = 0
        body = b"".join(pieces)
        self._snapshot = asyncio.create_task(self._write_snapshot(reader, mark, body), name="snapshot")

    async def _write_snapshot(self, reader: LogReader, mark: Mark, body: bytes) -> None:
        try:
            await write_snapshot(self._store, reader.cluster_id, mark, body)
            await prune(self._store, reader.cluster_id)
        except ENDS_ALL:
            raise
        except Exception as error:
            # The log is kept until a snapshot is written, so this costs the next recovery time and no job.
            self.bulkheads.failed("snapshot", error)
        else:
            self.bulkheads.worked("snapshot")

    async def _drop_snapshot(self) -> None:
        if self._snapshot is not None and not self._snapshot.done():
            self._snapshot.cancel()
            await asyncio.wait([self._snapshot])
        self._snapshot = None

    # --- leading ---

    async def _lead(self, writer: LogWriter) -> None:
        self.leader = Leader(
            name=self.name,
            state=self.state,
            writer=writer,
            store=self._store,
            settings=self._settings,
            peer=self._peer,
            clock=self._clock,
            jump_seconds=self._clock.begin(),
            history=self._history,
            code=self._code,
        )
        self._scaler = PoolScaler(self.leader, self._fleet, self._settings)
        self.role = "leader"
        self._takeover_seconds = asyncio.get_running_loop().time() - self._heard_at
        jobs, seconds = len(self.state.jobs), self._takeover_seconds
        _log.info("leads epoch %d, %d jobs; no leader was heard for %.1f s", writer.epoch, jobs, seconds)
        self.leader.begin(self.leader.bulkheads.keep("scaler", self._scaler.run), "scaler")
        try:
            await self.leader.run()
        except (StaleReader, StoreError) as error:
            raise Fatal(f"a leader cannot go back to following: {error}") from error
        finally:
            self.role = "recovering"
            self.leader = None

    # --- calls ---

    def _not_leader(self) -> bytes:
        return encode(NotLeader(self._peer.name if self.role == "standby" else None))

    async def handle_flight(self, data: bytes) -> bytes:
        """A replica's flight: encoded FlightReply, or NotLeader."""
        leader = self.leader
        if leader is None:
            return self._not_leader()
        flight = _flight_decoder.decode(data)
        return encode(c.FlightReply(await leader.flight(flight.requests, flight.puts)))

    async def report_and_ask(self, data: bytes) -> bytes:
        """A worker's report: encoded WorkerOrders, or NotLeader."""
        leader = self.leader
        if leader is None:
            return self._not_leader()
        return encode(await leader.report(_report_decoder.decode(data)))

    async def wait_feed(self, query: bytes, wait_seconds: float) -> bytes:
        """Long poll of the completion feed, with an encoded ReadFeed: encoded FeedPage, or NotLeader."""
        leader = self.leader
        if leader is None:
            return self._not_leader()
        return encode(await leader.wait_feed(_feed_decoder.decode(query), wait_seconds))

    async def follow(self, records: list[bytes]) -> int:
        """The leader's push; an empty one is its sign of life. Returns the records applied so far."""
        if self.leader is not None:
            raise Unavailable("I lead")
        self._heard_at = asyncio.get_running_loop().time()
        self._pushed.add(records)
        if records:
            self._news.set()
        return self._reader.mark.records if self._reader is not None else 0

    def use_code(self, code: ServiceCode) -> None:
        """The service's code from now on, for this leadership and the next one."""
        self._code = code
        if self.leader is not None:
            self.leader.use_code(code)

    def suspect_leader(self) -> None:
        """The other manager's process has died."""
        if self.role == "standby":
            self._suspect = True
            self._news.set()

    def worker_gone(self, worker: str, why: str = "") -> None:
        """A worker's process has died."""
        leader = self.leader
        if leader is not None:
            leader.bulkheads.call("loss of a worker", leader.begin_loss, worker)
            if self._scaler is not None:
                leader.bulkheads.call("scaler", self._scaler.worker_died, worker, why)

    def figures(self) -> tuple[c.ManagerStatus, c.Queues | None, c.Workers | None]:
        """For metrics: this manager, and while it leads the queues and workers."""
        status, leader = self.describe(), self.leader
        queues: c.Reply | None = None
        workers: c.Workers | None = None
        with self.bulkheads.alone("metrics"):
            if leader is not None:
                queues, workers = leader.read(c.GetQueues(QUEUES_MAX)), leader.workers()
        return status, queues if isinstance(queues, c.Queues) else None, workers

    def status(self) -> bytes:
        """This manager's ManagerStatus, encoded."""
        return encode(self.describe())

    def _clock_view(self) -> ClockView:
        wall, state, dated = self._clock.wall(), self.state, date_of(self._store)
        store_ahead = None if dated is None else dated.ahead_of(wall, asyncio.get_running_loop().time())
        jump = state.jump_seconds, state.jumped_at, state.ages_count_from
        return ClockView(wall, self._clock.ahead_seconds, store_ahead, *jump)

    def describe(self) -> c.ManagerStatus:
        """What this manager says of itself."""
        leader = self.leader
        mark = self._reader.mark if self._reader is not None else None
        status = c.ManagerStatus(
            self.name, self.role, self._pid, self._node, self.state.epoch, -1, 0, None, None
        )
        if mark is not None:
            status.applied_n = mark.next_position.n - 1
            status.applied_records = mark.records
        status.actor = self._actor
        parts = {"counts": self._tell_counts, "leader": self._tell_leader, "pulse": self._tell_pulse}
        for part, fill in parts.items():
            self.bulkheads.call(f"status: {part}", fill, status)
        status.problems = self.bulkheads.problems()
        if leader is not None:
            status.problems += leader.bulkheads.problems()
            status.problem = leader.healthy()
        else:
            now = asyncio.get_running_loop().time()
            if self.role == "standby" and self._reader is not None:
                status.problem = self._other_service.problem(self._reader.cluster_id, now)
            if now - self._heard_at >= self._settings.takeover_silence_seconds:
                status.problem = status.problem or takes_nothing(self._store)
        status.healthy = status.problem is None
        return status

    def _tell_counts(self, status: c.ManagerStatus) -> None:
        status.store_requests = dict(self._store.requests)
        status.counts = {state.value: count for state, count in self.state.totals().items()}

    def _tell_leader(self, status: c.ManagerStatus) -> None:
        leader = self.leader
        if leader is None:
            return
        mark = leader.commits.mark
        status.applied_n = mark.next_position.n - 1
        status.applied_records = mark.records
        status.commit_age_seconds = asyncio.get_running_loop().time() - leader.commits.committed_at
        status.commit_seconds = list(leader.commits.commit_seconds)
        status.takeover_seconds = self._takeover_seconds
        status.counters = leader.bulkheads.counts() + self.bulkheads.counts()
        status.counters += leader.tallies.counts()
        status.spreads = leader.tallies.spreads()

    def _tell_pulse(self, status: c.ManagerStatus) -> None:
        leader = self.leader
        status.clock = self._clock_view()
        status.pulse = self._history.pulse(self.state) if leader is None else leader.reads.pulse()
