"""The journal: one history of records on a store that can only create, read, list and delete.

Who does what
-------------
`LogReader` is the one way in which a state comes to be: start, follow and recovery all are `restart`, then
`read_next` again and again. `claim` ends an epoch and makes the caller the leader of the next. `LogWriter` is
what a leader appends with. `snapshots.py` writes and prunes, `read_ahead.py` fetches for a reader that is
behind. All of them know bytes, not jobs.

The rules, by the numbers that docs and tests use
-------------------------------------------------
J1   A leader of epoch e writes only `log/<e>/0, 1, 2, …`; a number is bound to its bytes for ever.
J2   One record in the air at a time; n is acknowledged when it is durable, and so are all before it.
J3   CREATED is durable. EXISTS: my exact bytes are durable, anything else has fenced me. UNKNOWN: the same
     bytes to the same key again; a key that is not there proves nothing, the write may still land.
J4   Fenced, or no answered write for `stepdown_seconds`: `Fenced` or `StepDown`, and the process exits.
J5   An idle leader appends empty records (the manager does): heartbeat, and how it learns that it is fenced.
J6   Newest snapshot that verifies, then the next key, and the next. Never past a gap or a takeover.
J7   At a takeover, and at long silence, list the snapshots: one at or past my position means that I am stale.
J8   Take over only with everything applied: create a takeover under the next key. One wins.
J9   The winner lists the snapshots before anything else: one at or past its takeover voids the claim.
J10  The first record of an epoch sets log time and grace (the manager does).
J11  Pruning never deletes a takeover of the history, nor the two newest snapshots (`snapshots.py`).
J12  Records beyond the end of replay mean that something is gone: refuse.
J13  Replay is a pure function of the records (the state machine's duty).
J14  The store proves exclusive creation before it is trusted; a cluster id guards the prefix.

Why one leader at a time can commit
-----------------------------------
Let (e, n) hold the takeover that ends epoch e. The old leader can write (e, n) no more, whenever its write
lands, because the takeover is never deleted; so it acknowledges neither n nor, with one record in the
air, anything after it. Its numbers below n were written by it alone; if one was pruned and a late copy of
its own write brings it back, that is the same record again, and to acknowledge it is true.

A claim could go wrong in one way only: (e, n) looked free because it had been used *and pruned*. Pruning
needs a snapshot at or past (e, n), and the newest snapshot is never deleted; so the claimant, listing the
snapshots after its write, must see one, and leaves without having written anything else (J9). What it
leaves behind, a void takeover, fools no reader: whoever reads it lists the snapshots too (J7). No clock takes
part in any of this. Clocks only decide when to try.

States of a reader: fresh → (StaleReader) → must restart → fresh. A stale reader's state is thrown away
whole; it never mends it. Two mismatches at or before the same place in a row mean that the log itself is
wrong, and `DataMissing` stops the process for an operator to look.
"""

from __future__ import annotations

import asyncio
import logging
from random import Random

from .errors import DataMissing, Fatal, Fenced, JobsvcError, StoreUnfit
from .log_records import (
    CLUSTER_KEY,
    CLUSTER_MAGIC,
    ID_BYTES,
    LOG_PREFIX,
    InvalidRecord,
    Kind,
    Mark,
    Position,
    Record,
    data_record,
    decode_record,
    log_key,
    positions_of,
    snapshot_key,
    takeover_record,
)
from .object_store import ObjectStore, PutOutcome, StoreError, because
from .read_ahead import DEFAULT_REACH, Reach, ReadAhead
from .snapshots import list_snapshots, load_newest

__all__ = [
    "Kind",
    "LogReader",
    "LogWriter",
    "Mark",
    "Position",
    "Record",
    "StaleReader",
    "StepDown",
    "claim",
    "open_prefix",
]

DEFAULT_STEPDOWN_SECONDS = 10.0
_BACKOFF_BASE_SECONDS = 0.05
_BACKOFF_CAP_SECONDS = 1.0
_OPEN_TRIES = 8

_log = logging.getLogger(__name__)


class StaleReader(JobsvcError):
    """The history has gone on without this reader. Throw the state away and `restart`."""


class StepDown(Fatal):
    """The store has not answered a write for too long. Whether the last one was done is not known."""


# --- reading -------------------------------------------------------------------------------------


class LogReader:
    """Follows one history. It alone decides which bytes are the next record.

    A record that `read_next` or `accept_pushed` returns has been stepped over: apply it before the next
    await, and state and `mark` belong together at every await.
    """

    def __init__(
        self, store: ObjectStore, cluster_id: bytes, first: Mark | None = None, reach: Reach = DEFAULT_REACH
    ) -> None:
        self._store = store
        self._records = ReadAhead(store, reach)
        self._cluster_id = cluster_id
        self._mark = first if first is not None else Mark()
        self._stale: str | None = None  # why this reader must restart
        self._end_is_proved = False  # J12 was checked since the last restart
        self._mismatch: Position | None = None  # where the log did not fit, until replay gets past it
        self._base: Position | None = None  # of the snapshot from which this replay began
        self._invalid_snapshots: frozenset[Position] = frozenset()  # found newer than the base at the restart

    @property
    def store(self) -> ObjectStore:
        return self._store

    @property
    def cluster_id(self) -> bytes:
        return self._cluster_id

    @property
    def mark(self) -> Mark:
        return self._mark

    async def restart(self) -> bytes | None:
        """Go to the newest snapshot that verifies; returns its body, None if replay begins at genesis.

        Raises DataMissing if there are snapshots and none of them verifies, StoreError to try again.
        """
        loaded = await load_newest(self._store, self._cluster_id)
        self._records.begin()
        self._mark = loaded.mark
        self._stale = None
        self._end_is_proved = False
        self._base = loaded.mark.last_position
        self._invalid_snapshots = loaded.invalid
        return loaded.body

    async def read_next(self) -> Record | None:
        """The next record, verified and stepped over, or None if there is none yet.

        Raises StaleReader (restart), DataMissing (stop), StoreError (call again; nothing has changed).
        """
        while True:
            self._refuse_if_stale()
            mark = self._mark
            encoded = await self._records.get(mark.next_position)
            if encoded is None:
                await self.prove_end()
                return None
            if self._mark is not mark:
                continue  # a pushed record was faster
            record = self._verified(encoded)
            if record.kind == "takeover":
                await self._refuse_if_stale_on_takeover(record)
                if self._mark is not mark:
                    continue
            self._step_over(record)
            return record

    def accept_pushed(self, encoded: bytes) -> Record | None:
        """What the leader sent, if it is exactly the next data record; it is durable already.

        Anything else is left to `read_next`: takeovers need the store (J7), and a push proves no fault.
        """
        if self._stale is not None:
            return None
        try:
            record = decode_record(encoded, self._cluster_id)
        except InvalidRecord:
            return None
        if record.kind != "data" or self._misfit(record) is not None:
            return None
        self._step_over(record)
        return record

    async def check_stale(self) -> None:
        """J7 at silence: call about every 5 s of `read_next` returning None. Raises StaleReader."""
        position = self._mark.next_position
        snapshots = await list_snapshots(self._store)
        if not snapshots or snapshots[-1] < position or self._mark.next_position != position:
            return
        newest = snapshots[-1]
        if newest in self._invalid_snapshots and self._nothing_was_pruned(snapshots):
            raise DataMissing(
                f"{log_key(position)} is gone, and {snapshot_key(newest)}, which covers it, does not verify"
            )
        raise self._stale_or_missing(snapshots, f"{position} is not there to read")

    async def prove_end(self) -> bool:
        """J12: once after each restart, prove that nothing lies beyond the end of replay.

        With one record in the air, any object beyond the next key was written after the next key; so
        if that one is not there, it was pruned (then I am stale), or it is lost. False: replay has not come
        to the end, read on.
        """
        if self._end_is_proved:
            return True
        mark = self._mark
        positions = positions_of(await self._store.list(LOG_PREFIX), LOG_PREFIX)
        beyond = [position for position in positions if position > mark.next_position]
        if beyond and await self._store.get(log_key(mark.next_position)) is not None:
            return False  # written since the last look; the order matters: list, get, list snapshots
        await self.check_stale()
        if self._mark is not mark:
            return False
        if beyond:
            raise DataMissing(
                f"{log_key(mark.next_position)} is missing, but {len(beyond)} records lie beyond it, "
                f"from {log_key(beyond[0])} to {log_key(beyond[-1])}"
            )
        self._end_is_proved = True
        return True

    async def _refuse_if_stale_on_takeover(self, takeover: Record) -> None:
        """J7: a takeover counts only if its number had not been used and pruned before."""
        snapshots = await list_snapshots(self._store)
        if not snapshots or snapshots[-1] < takeover.position:
            return
        if snapshots[-1] in self._invalid_snapshots and self._nothing_was_pruned(snapshots):
            return  # it is older than that snapshot, and true; a restart would only come here again
        raise self._stale_or_missing(snapshots, f"there is a takeover at {takeover.position}")

    def _nothing_was_pruned(self, snapshots: list[Position]) -> bool:
        """Whether no number after this replay's base can have been pruned, though newer snapshots exist.

        Pruning keeps everything after the second newest snapshot. So it is certain only if the base of this
        replay is that one; with two damaged snapshots after the base it is not.
        """
        return len(snapshots) > 1 and snapshots[-2] == self._base

    def _stale_or_missing(self, snapshots: list[Position], finding: str) -> JobsvcError:
        """The history goes on beyond here: a restart helps, unless it would find the same snapshot again."""
        reason = f"{finding}, behind the snapshot of {snapshots[-1]}"
        newer = [position for position in snapshots if self._base is None or position > self._base]
        if all(position in self._invalid_snapshots for position in newer):
            return DataMissing(f"{reason}; none of the {len(newer)} newer snapshots verifies")
        return self._gone_stale(reason)

    def _verified(self, encoded: bytes) -> Record:
        """The record in these bytes of the next key. Raises StaleReader, the second time DataMissing."""
        try:
            record = decode_record(encoded, self._cluster_id)
            problem = self._misfit(record)
        except InvalidRecord as error:
            problem = str(error)
        if problem is None:
            return record
        position = self._mark.next_position
        detail = f"{log_key(position)} does not continue the history: {problem}"
        if self._mismatch is not None:
            raise DataMissing(f"{detail}; and a fresh replay found the same")
        self._mismatch = position
        raise self._gone_stale(detail)

    def _misfit(self, record: Record) -> str | None:
        if record.position != self._mark.next_position:
            return f"it is record {record.position}"
        if record.previous != self._mark.chain:
            return "the chain hash does not fit"
        if not record.log_time >= self._mark.log_time:
            return "log time goes back"
        return None

    def _step_over(self, record: Record) -> None:
        if self._mismatch is not None and record.position >= self._mismatch:
            self._mismatch = None
        self._mark = self._mark.after(record)

    def _gone_stale(self, reason: str) -> StaleReader:
        self._stale = reason
        return StaleReader(reason)

    def _refuse_if_stale(self) -> None:
        if self._stale is not None:
            raise StaleReader(f"not restarted since: {self._stale}")


async def _newest_snapshot(store: ObjectStore) -> Position | None:
    positions = await list_snapshots(store)
    return positions[-1] if positions else None


# --- taking over ---------------------------------------------------------------------------------


async def claim(
    reader: LogReader,
    *,
    nonce: bytes,
    log_time: float,
    random: Random,
    stepdown_seconds: float = DEFAULT_STEPDOWN_SECONDS,
    service: str = "",
) -> LogWriter | None:
    """End the epoch in which the reader stands and lead the next one (J8, J9).

    Call it when `read_next` has returned None. Returns None if another record came first: go on reading.
    Raises StaleReader if the claim is void: restart. `nonce` must be unique to this process, since the own
    claim is known by its bytes. Raises StepDown if the store does not tell how it went.
    """
    reader._refuse_if_stale()
    if not await reader.prove_end():
        return None
    store, mark = reader.store, reader.mark
    log_time = max(mark.log_time, log_time)
    takeover = takeover_record(mark, reader.cluster_id, nonce, log_time=log_time, service=service)
    patience = _Patience(random, stepdown_seconds)
    lying_there = await _put_until_known(store, log_key(takeover.position), takeover.encoded, patience)
    if lying_there != takeover.encoded:
        return None
    await _refuse_void_claim(reader, takeover, patience)
    if reader.mark is not mark:
        raise Fatal(f"the reader moved on from {takeover.position} while it was claimed")
    reader._step_over(takeover)
    return LogWriter(reader.store, reader.cluster_id, nonce, reader.mark, random, stepdown_seconds)


async def _refuse_void_claim(reader: LogReader, takeover: Record, patience: _Patience) -> None:
    """J9: the number that I created may have been used and pruned before. Then I lead nothing.

    A snapshot may also be there because the others have followed my takeover faster than I; then somebody
    else takes over from the epoch that I do not lead.
    """
    while True:
        try:
            newest = await _newest_snapshot(reader.store)
            break
        except StoreError as error:
            await patience.wait(f"no list of snapshots after the takeover at {takeover.position}: {error}")
    if newest is not None and newest >= takeover.position:
        raise reader._gone_stale(f"void claim at {takeover.position}: there is a snapshot of {newest}")


# --- writing -------------------------------------------------------------------------------------


class LogWriter:
    """Appends the records of one epoch, one at a time. Made by `claim` alone."""

    def __init__(
        self,
        store: ObjectStore,
        cluster_id: bytes,
        nonce: bytes,
        mark: Mark,
        random: Random,
        stepdown_seconds: float,
    ) -> None:
        self._store = store
        self.cluster_id = cluster_id
        self._nonce = nonce
        self._mark = mark
        self._random = random
        self._stepdown_seconds = stepdown_seconds
        self._answered_at = asyncio.get_running_loop().time()
        self._unsettled: bytes | None = None  # J1: what the next number is bound to, once it was sent
        self._appending = False
        self._over: Fatal | None = None

    @property
    def epoch(self) -> int:
        return self._mark.next_position.epoch

    @property
    def mark(self) -> Mark:
        """After the last durable record."""
        return self._mark

    @property
    def answered_at(self) -> float:
        """Loop time at which the last answered write was begun: until then nobody had taken over."""
        return self._answered_at

    async def append(self, body: bytes, count: int, log_time: float) -> Record:
        """Returns when the record is durable. Raises Fenced or StepDown; the writer is of no use then.

        If the call is cancelled, the record may still land: only the very same record can be appended next.
        """
        if self._over is not None:
            raise self._over
        if self._appending:
            raise RuntimeError("one record at a time: an append is under way")
        if not log_time >= self._mark.log_time:
            raise ValueError(f"log time goes back from {self._mark.log_time} to {log_time}")
        record = data_record(
            self._mark, self.cluster_id, self._nonce, body=body, count=count, log_time=log_time
        )
        self._appending = True
        try:
            await self._make_durable(record)
        except Fatal as error:
            self._over = error
            raise
        finally:
            self._appending = False
        return record

    async def _make_durable(self, record: Record) -> None:
        if self._unsettled not in (None, record.encoded):
            raise StepDown(f"{record.position} may already hold another record, whose append was given up")
        self._unsettled = record.encoded
        patience = _Patience(self._random, self._stepdown_seconds, self._answered_at)
        key = log_key(record.position)
        lying_there = await _put_until_known(self._store, key, record.encoded, patience)
        if lying_there != record.encoded:
            raise Fenced(f"{key} holds {_description(lying_there, self.cluster_id)}: another manager leads")
        self._answered_at = patience.tried_at
        self._unsettled = None
        self._mark = self._mark.after(record)


async def _put_until_known(store: ObjectStore, key: str, encoded: bytes, patience: _Patience) -> bytes:
    """J3: put the same bytes until it is known what lies under the key; returns that.

    Raises StepDown when patience ends; the write may still land after that.
    """
    while True:
        try:
            async with asyncio.timeout(patience.begin_try()):
                outcome = await store.put_new(key, encoded)
                if outcome is PutOutcome.CREATED:
                    return encoded
                if outcome is PutOutcome.EXISTS:
                    lying_there = await store.get(key)
                    if lying_there is not None:
                        return lying_there
        except (StoreError, TimeoutError):
            pass  # as unknown as the outcome of the write
        await patience.wait(f"no answer whether {key} was written{because(store.put_failure)}")


class _Patience:
    """How long to go on asking a store that does not answer: full jitter, bounded since the last answer."""

    def __init__(self, random: Random, stepdown_seconds: float, answered_at: float | None = None) -> None:
        self._random = random
        self._stepdown_seconds = stepdown_seconds
        self._time = asyncio.get_running_loop().time
        self._deadline = (self._time() if answered_at is None else answered_at) + stepdown_seconds
        self._waits = 0
        self.tried_at = self._time()

    def begin_try(self) -> float:
        """Seconds that this try may take. After a long stall, too, it gets time for one answer."""
        self.tried_at = self._time()
        return max(self._deadline - self.tried_at, self._stepdown_seconds / 2)

    async def wait(self, waiting_for: str) -> None:
        if self._time() >= self._deadline:
            raise StepDown(f"{waiting_for} for {self._stepdown_seconds:g} s")
        longest = min(_BACKOFF_CAP_SECONDS, _BACKOFF_BASE_SECONDS * 2.0**self._waits)
        self._waits = min(self._waits + 1, 16)
        await asyncio.sleep(self._random.uniform(0, longest))


def _description(encoded: bytes, cluster_id: bytes) -> str:
    try:
        record = decode_record(encoded, cluster_id)
    except InvalidRecord as error:
        return f"bytes that are no record of this service ({error})"
    return f"a {record.kind} record of process {record.nonce.hex()}"


# --- the prefix ----------------------------------------------------------------------------------


async def open_prefix(store: ObjectStore, new_cluster_id: bytes) -> bytes:
    """J14: prove that the store is fit, and return the id that guards the prefix; the first one stays.

    Raises StoreUnfit, or StoreError if the store does not answer.
    """
    if len(new_cluster_id) != ID_BYTES:
        raise ValueError(f"a cluster id has {ID_BYTES} bytes")
    for warning in await store.probe():
        _log.warning("store: %s", warning)
    for _ in range(_OPEN_TRIES):
        await store.put_new(CLUSTER_KEY, CLUSTER_MAGIC + new_cluster_id)
        guard = await store.get(CLUSTER_KEY)
        if guard is None:
            continue  # the outcome of the put was unknown
        if len(guard) != len(CLUSTER_MAGIC) + ID_BYTES or not guard.startswith(CLUSTER_MAGIC):
            raise StoreUnfit(f"the object {CLUSTER_KEY!r} under this prefix is not one of jobsvc")
        return guard[len(CLUSTER_MAGIC) :]
    raise StoreError("the store does not keep the cluster id")
