"""The journal: one log that survives everything, written by one leader at a time, on a plain object store.

Theory
------
Each leader has a folder of its own, `log/<epoch>/`, and writes 0, 1, 2, … into it, each by an exclusive
create. A standby that wants to lead creates a *takeover* under the very number that the leader would use
next. Exclusive creation lets one of the two have it: either the leader's record is there, and the
claimant has lost, or the takeover is there, and the leader finds that out on its next write. There is no
lock, no lease and no clock in this; who leads is a fact of the log.

Roles
    LogReader   start, follow and recover are one code path: snapshot, then the next key, and the next
    claim       turns a reader that stands at the end of the log into a writer
    LogWriter   one leadership, one record in flight; ends by Fenced or StepDown, then the process exits

Rules (the numbers are used in comments all over the project)
    J1  The leader of epoch e writes only log/<e>/0, 1, 2, … A number is bound to its bytes for ever.
    J2  One record in flight. Every answer waits for the record that was last appended when it was computed.
    J3  CREATED: durable. EXISTS: look; my exact bytes are durable, a takeover means fenced. UNKNOWN: the
        same bytes to the same key again. That the key is absent now proves nothing: the write may be late.
    J4  Fenced, or no PUT answered for `stepdown_seconds`: nothing more is acknowledged; the process exits.
    J5  An idle leader appends an empty record every few seconds (the manager does).
    J6  Newest snapshot that verifies, else the next older; then GET the next key. Absent = wait. Nothing
        is ever read past a gap or past a takeover.
    J7  On reading a takeover, and every few seconds of waiting: a snapshot at or past my position means
        that I may be reading what was pruned and written again: I am stale, start over.
    J8  Takeover: everything applied, next key absent: create takeover there. One wins.
    J9  The winner first looks for a snapshot at or past its takeover. One there means that this number had
        been used and pruned before: the claim is void. Else it leads the next epoch from number 0.
    J10 The first record of an epoch sets the log time and gives leases a grace (the manager does).
    J11 Pruning never deletes the newest two snapshots, nor a takeover (see snapshots.py).
    J12 Epochs come from takeovers alone. Objects beyond where replay ends = data was lost: refuse to start.
    J13 State is a pure function of the records (see queue_state.py).
    J14 At start the store is probed, and a cluster id guards the prefix.

Why it is safe
    Let (e, n) hold the takeover that ended epoch e. It is never deleted (J11), so the old leader's write of
    n fails whenever it arrives, even years later, and with one record in flight (J2) it never gets to n + 1.
    Numbers below n were written by that leader alone: if one was pruned and a late retry of it arrives, it
    has the same bytes (J1, J3), and acknowledging it is true. A claimant can create at a used number only if
    that number was pruned, so after a snapshot past it was stored; the newest snapshot stays (J11), so the
    claimant sees one (J9) and writes nothing. A reader that meets such a void takeover sees it too (J7).
    Two true takeovers of one epoch would need both to be at the same number, which exclusive creation
    forbids, or the later claimant to have read the earlier takeover as data. A new leader never shares
    its folder with an older one, so that EXISTS there has one meaning.

A damaged newest snapshot must not make a reader stale for ever: see `_refuse_if_stale`.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module

from . import snapshots
from .errors import DataMissing, Fatal, Fenced, JobsvcError, StoreUnfit
from .log_records import (
    ID_BYTES,
    LOG_PREFIX,
    Damaged,
    Mark,
    Position,
    Record,
    decode_record,
    log_key,
    next_record,
    position_of,
)
from .object_store import ObjectStore, PutOutcome, StoreError

__all__ = [
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

CLUSTER_KEY = "cluster"
STEPDOWN_SECONDS = 10.0
RETRY_BASE_SECONDS = 0.05  # full jitter: a random part of the base, doubled by each further attempt
RETRY_CAP_SECONDS = 1.0
ATTEMPT_SECONDS_MIN = 1.0  # the first attempt gets this long, however long ago the last answer was
CLAIM_LISTS_MAX = 8
PREFIX_ATTEMPTS = 5

logger = logging.getLogger(__name__)


class StaleReader(JobsvcError):
    """What was read may not be the log any more. Throw the state away and `restart`."""


class StepDown(Fatal):
    """The store has not answered a write for too long, or a write was given up. Lead no more; exit."""


# --- reading -------------------------------------------------------------------------------------------


class LogReader:
    """Replays the log: from a snapshot or from genesis, and then record by record.

    One task at a time may call `restart`, `read_next` and `check_stale`; `accept_pushed` may come in between.
    All raise StoreError when the store does not answer: nothing has changed then, call again.
    """

    def __init__(self, store: ObjectStore, cluster_id: bytes, first: Mark | None = None) -> None:
        self.store = store
        self.cluster_id = cluster_id
        self._mark = first or Mark()
        self._base = self._mark.last_position  # the snapshot that this replay began with
        self._stale_before: tuple[Position | None, Position] | None = None
        self._end_unseen = True  # J12 is checked at the first absent key

    @property
    def mark(self) -> Mark:
        return self._mark

    async def restart(self) -> bytes | None:
        """J6: begin again at the newest snapshot that verifies. Its body, or None for genesis."""
        found = await snapshots.newest_snapshot(self.store, self.cluster_id)
        self._mark, body = found or (Mark(), None)
        self._base = self._mark.last_position
        self._end_unseen = True
        return body

    async def read_next(self) -> Record | None:
        """The next record, verified and stepped over; None while there is none.

        Raises StaleReader where the caller must restart with a fresh state, DataMissing where that has
        been tried and has led to the same place.
        """
        while True:
            mark = self._mark
            encoded = await self.store.get(log_key(mark.next_position))
            if encoded is None:
                if self._end_unseen:
                    await self._refuse_if_data_is_missing()
                return None
            if mark is not self._mark:
                continue  # pushed records have taken us past it meanwhile
            record = self._verified(encoded)
            if record.kind == "takeover":
                await self._refuse_if_stale(record.position)
                if mark is not self._mark:
                    continue
            self._mark = mark.after(record)
            return record

    def accept_pushed(self, encoded: bytes) -> Record | None:
        """The record that a leader pushed, if it is the very next data record; else the store will tell."""
        try:
            record = decode_record(encoded, self.cluster_id)
        except Damaged:
            return None
        # A takeover needs the look at the snapshots (J7), so it is only ever read from the store.
        if record.kind != "data" or not self._continues(record):
            return None
        self._mark = self._mark.after(record)
        return record

    async def check_stale(self) -> None:
        """J7, for a reader that has waited a while: a pruned key stays absent for ever."""
        await self._refuse_if_stale(self._mark.next_position)

    def _continues(self, record: Record) -> bool:
        return record.position == self._mark.next_position and record.prev == self._mark.chain

    def _verified(self, encoded: bytes) -> Record:
        position = self._mark.next_position
        try:
            record = decode_record(encoded, self.cluster_id)
        except Damaged as error:
            raise self._stale(position, f"{log_key(position)} is damaged: {error}") from error
        if not self._continues(record):
            raise self._stale(position, f"{log_key(position)} does not continue the history before it")
        return record

    async def _refuse_if_stale(self, position: Position) -> None:
        """J7: a snapshot at or past `position` means that it may have been pruned and written again.

        One exception, or a damaged newest snapshot would make every reader stale for ever: if only the
        newest is past `position`, it does not verify, and this replay began at the one before it, then
        nothing past the beginning of this replay was ever pruned.
        """
        listed = await snapshots.snapshot_positions(self.store)
        if not listed or listed[-1] < position:
            return
        before_newest = listed[-2] if len(listed) > 1 else None
        if before_newest == self._base and await self._is_damaged(listed[-1]):
            return
        raise self._stale(position, f"a snapshot at {tuple(listed[-1])} is past {tuple(position)}")

    async def _is_damaged(self, position: Position) -> bool:
        try:
            await snapshots.read_snapshot(self.store, self.cluster_id, position)
        except Damaged:
            return True
        return False

    async def _refuse_if_data_is_missing(self) -> None:
        """J12, once per replay, where the next key is absent for the first time."""
        position = self._mark.next_position
        beyond = [key for key in await self.store.list(LOG_PREFIX) if position_of(key) > position]
        if beyond and await self.store.get(log_key(position)) is None:
            # Objects beyond an absent one: it was there once. Pruned, then a snapshot covers it.
            await self._refuse_if_stale(position)
            raise DataMissing(f"{log_key(position)} is missing, and the log goes on with {min(beyond)}")
        if not beyond:
            await self._refuse_if_stale(position)
            self._end_unseen = False

    def _stale(self, position: Position, why: str) -> JobsvcError:
        """StaleReader; or DataMissing if a replay from the same snapshot has come to the same end before."""
        here = (self._base, position)
        if here == self._stale_before:
            return DataMissing(f"twice in a row, starting from {self._base or 'genesis'}: {why}")
        self._stale_before = here
        return StaleReader(why)


# --- writing -------------------------------------------------------------------------------------------


def _jittered(random: random_module.Random, attempt: int) -> float:
    return random.uniform(0, min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2 ** min(attempt, 10)))


class _ExclusivePut:
    """J3: puts bytes under a key until the store has said what the key holds."""

    def __init__(self, store: ObjectStore, random: random_module.Random, stepdown_seconds: float) -> None:
        self._store = store
        self._random = random
        self._stepdown_seconds = stepdown_seconds
        self._answered_at = asyncio.get_running_loop().time()

    async def settle(self, key: str, encoded: bytes) -> bytes:
        """What `key` holds: `encoded`, then it is durable, or the bytes that were there before.

        Raises StepDown when no PUT has been answered for `stepdown_seconds`; `encoded` may still land.
        """
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            left = self._answered_at + self._stepdown_seconds - loop.time()
            if attempt > 0 and left <= 0:
                raise StepDown(f"{key}: no write was answered for {self._stepdown_seconds:g} s")
            outcome = await self._put(key, encoded, max(left, ATTEMPT_SECONDS_MIN))
            if outcome is not PutOutcome.UNKNOWN:
                self._answered_at = loop.time()
            if outcome is PutOutcome.CREATED:
                return encoded
            if outcome is PutOutcome.EXISTS:
                found = await self._get(key)
                if found is not None:
                    return found
                # Not readable now, or pruned since: the same bytes again.
            await asyncio.sleep(_jittered(self._random, attempt))
            attempt += 1

    async def _put(self, key: str, encoded: bytes, timeout_seconds: float) -> PutOutcome:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._store.put_new(key, encoded)
        except TimeoutError:
            return PutOutcome.UNKNOWN

    async def _get(self, key: str) -> bytes | None:
        try:
            return await self._store.get(key)
        except StoreError:
            return None  # nothing is known; the next attempt asks again


class LogWriter:
    """One leadership. Made by `claim`; its first record is (epoch, 0)."""

    def __init__(self, cluster_id: bytes, nonce: bytes, mark: Mark, put: _ExclusivePut) -> None:
        self.epoch = mark.next_position.epoch
        self.mark = mark  # after the last durable record
        self._cluster_id = cluster_id
        self._nonce = nonce
        self._put = put
        self._bound: Record | None = None  # sent under the next number, outcome not known
        self._writing = False
        self._ended: Fatal | None = None

    async def append(self, body: bytes, count: int, log_time: float) -> Record:
        """Write the next record; returns when it is durable.

        Raises Fenced when another manager has taken over and StepDown when the store does not answer: the
        record may be durable or may become so, so whoever waits for it is told that its outcome is unknown.
        If the call is cancelled, the number stays bound to these bytes, and any others are refused.
        """
        if self._ended is not None:
            raise self._ended
        if self._writing:
            raise RuntimeError("one record in flight: append was called before the last one returned")
        record = next_record(
            self.mark,
            self._cluster_id,
            kind="data",
            nonce=self._nonce,
            log_time=log_time,
            count=count,
            body=body,
        )
        if self._bound is not None and self._bound.encoded != record.encoded:
            raise StepDown(f"{log_key(record.position)} is bound to the bytes of an append that was given up")
        self._bound, self._writing = record, True
        try:
            found = await self._put.settle(log_key(record.position), record.encoded)
            self._require_mine(record, found)
        except Fatal as error:
            self._ended = error
            raise
        finally:
            self._writing = False
        self.mark, self._bound = self.mark.after(record), None
        return record

    def _require_mine(self, record: Record, found: bytes) -> None:
        if found == record.encoded:
            return
        where = log_key(record.position)
        try:
            other = decode_record(found, self._cluster_id)
        except Damaged as error:
            raise StoreUnfit(f"{where} holds bytes that nobody has written: {error}") from error
        if other.kind == "takeover":
            raise Fenced(
                f"{where}: epoch {self.epoch} was ended by the manager with nonce {other.nonce.hex()}"
            )
        raise Fenced(f"{where}: the manager with nonce {other.nonce.hex()} writes into epoch {self.epoch}")


async def claim(
    reader: LogReader,
    *,
    nonce: bytes,
    log_time: float,
    random: random_module.Random,
    stepdown_seconds: float = STEPDOWN_SECONDS,
) -> LogWriter | None:
    """J8: try to lead, from where `reader` stands. `nonce` must be new for every process.

    None: another record is there, or the store did not answer; go on reading (which finds our own takeover
    too, if it landed: it ends the epoch and nobody leads the next, until the next claim).
    Raises StaleReader when the claim is void (J9): restart.
    """
    mark = reader.mark
    takeover = next_record(
        mark,
        reader.cluster_id,
        kind="takeover",
        nonce=nonce,
        log_time=max(mark.log_time, log_time),
        count=0,
        body=str(mark.next_position.epoch + 1).encode(),
    )
    put = _ExclusivePut(reader.store, random, stepdown_seconds)
    try:
        found = await put.settle(log_key(takeover.position), takeover.encoded)
        if found != takeover.encoded:
            return None
        await _judge_claim(reader, takeover.position, random)
    except (StepDown, StoreError):
        return None
    if reader.mark is not mark:
        raise StaleReader("the leader's records went past the claim while it was made")
    return LogWriter(reader.cluster_id, nonce, mark.after(takeover), put)


async def _judge_claim(reader: LogReader, position: Position, random: random_module.Random) -> None:
    """J9, asked until the store answers or nobody waits for this claim any more."""
    for attempt in range(CLAIM_LISTS_MAX):
        try:
            return await _refuse_void_claim(reader, position)
        except StoreError:
            await asyncio.sleep(_jittered(random, attempt))
    raise StoreError("nothing is known about the claim")


async def _refuse_void_claim(reader: LogReader, position: Position) -> None:
    """J9: a snapshot at or past the takeover says that its number had been used and pruned."""
    ahead = [at for at in await snapshots.snapshot_positions(reader.store) if at >= position]
    if ahead:
        raise StaleReader(
            f"the claim of {tuple(position)} is void: there is a snapshot at {tuple(ahead[-1])}"
        )


# --- the prefix ----------------------------------------------------------------------------------------


async def open_prefix(store: ObjectStore, new_cluster_id: bytes) -> bytes:
    """J14: prove that the store keeps its promise, and learn whose prefix this is.

    Returns the cluster id that guards the prefix: `new_cluster_id` if the prefix was new. What the probe
    found risky but bearable goes to the log as warnings.
    """
    if len(new_cluster_id) != ID_BYTES:
        raise ValueError(f"a cluster id has {ID_BYTES} bytes")
    for warning in await store.probe():
        logger.warning("%s", warning)
    for attempt in range(PREFIX_ATTEMPTS):
        outcome = await store.put_new(CLUSTER_KEY, new_cluster_id.hex().encode())
        found = await store.get(CLUSTER_KEY) if outcome is PutOutcome.EXISTS else None
        if found is not None:
            return _cluster_id(found)
        if outcome is PutOutcome.CREATED:
            return new_cluster_id
        await asyncio.sleep(RETRY_BASE_SECONDS * 2**attempt)
    raise StoreError(f"{CLUSTER_KEY}: no answer to {PREFIX_ATTEMPTS} attempts to write it")


def _cluster_id(found: bytes) -> bytes:
    try:
        cluster_id = bytes.fromhex(found.decode("ascii"))
    except ValueError as error:
        raise StoreUnfit(f"{CLUSTER_KEY} holds no cluster id") from error
    if len(cluster_id) != ID_BYTES:
        raise StoreUnfit(f"{CLUSTER_KEY} holds no cluster id")
    return cluster_id
