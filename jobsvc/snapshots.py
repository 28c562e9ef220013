"""Snapshots: the whole state after one record, so that replay is short and the log can be pruned.

The layout of `snapshots/<epoch>/<n>`, big endian:

    magic 8 | version 1 | cluster id 16 | mark length 4 | body length 8 | body hash 32 | mark | header hash 32
    | body

The header proves itself, so that pruning can trust its mark without the body. The mark says exactly where
replay goes on: position, chain hash, log time, and where every earlier epoch ended.

What makes pruning safe (J11)
-----------------------------
The newest snapshot is the boundary that guards the numbers that were forgotten. A number can only be
created a second time after it was deleted; it is only deleted when a snapshot at or past it exists; the
newest snapshot is never deleted. So whoever creates or reads something at a forgotten number and *then*
lists the snapshots must see one at or past it: that is how J7 and J9 notice.

Takeover records are never deleted. A leader that has lost its epoch may have a write in the air for a
very long time. The takeover lies on exactly the number that this write needs; as long as it lies there
the write fails, whenever it lands. The number of takeovers is the number of failovers: small for ever.

Bodies may be large (half a gigabyte), so nothing here hashes, copies or compares more than `_SLICE_BYTES`
without letting the event loop go on, and verification reads in pieces.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import struct
from collections.abc import Mapping

import msgspec

from .errors import DataMissing, JobsvcError
from .log_records import (
    FORMAT_VERSION,
    HASH_BYTES,
    ID_BYTES,
    LOG_PREFIX,
    SNAPSHOT_PREFIX,
    Mark,
    Position,
    log_key,
    positions_of,
    snapshot_key,
)
from .object_store import ObjectStore, PutOutcome, StoreError

_MAGIC = b"JOBSVCSN"
_PRELUDE = struct.Struct(">8sB16sIQ32s")
_FIRST_READ_BYTES = 4096  # one GET reads the header of a service with fewer than some hundred failovers
_SLICE_BYTES = 4 * 1024 * 1024  # about 3 ms of hashing
_READ_BYTES = 16 * 1024 * 1024
_PUT_TRIES = 3
_LISTINGS = 10  # how often a restart starts over because a snapshot was pruned under its hands
_DELETES_AT_ONCE = 16

_mark_decoder = msgspec.msgpack.Decoder(Mark)


class InvalidSnapshot(JobsvcError):
    """These bytes are not a whole snapshot of this service."""


class SnapshotGone(StoreError):
    """It was pruned after it was listed: newer ones exist."""


class Loaded(msgspec.Struct, frozen=True):
    """What a restart found: the newest snapshot that verifies, and the newer ones that did not."""

    mark: Mark
    body: bytes | None  # None: there is no snapshot, replay begins at genesis
    invalid: frozenset[Position] = frozenset()


class _Header(msgspec.Struct, frozen=True):
    mark: Mark
    body_hash: bytes
    body_offset: int
    body_length: int


async def list_snapshots(store: ObjectStore) -> list[Position]:
    """Positions of all snapshots, oldest first."""
    return positions_of(await store.list(SNAPSHOT_PREFIX), SNAPSHOT_PREFIX)


# --- writing -------------------------------------------------------------------------------------


async def write_snapshot(store: ObjectStore, cluster_id: bytes, mark: Mark, body: bytes) -> None:
    """Store the state at `mark`. Returns only when a snapshot that verifies lies under its key.

    The mark must have been taken before the body was encoded, from a state that holds committed records
    alone. If another manager has already stored a good snapshot of the same position, that one counts.
    """
    position = mark.last_position
    if position is None:
        raise ValueError("before the first record there is nothing to keep in a snapshot")
    key = snapshot_key(position)
    data = await _composed(cluster_id, mark, body)
    for _ in range(_PUT_TRIES):
        if await store.put_new(key, data) is not PutOutcome.UNKNOWN:
            break
    if not await _reads_back(store, key, data):
        # Other bytes: good if they are a whole snapshot of the same history, else nobody may count on it.
        header = await _verified_header(store, key, cluster_id)
        if header.mark != mark:
            raise InvalidSnapshot(f"{key} holds a snapshot of another history")
        await _verify_body(store, key, header)


async def _composed(cluster_id: bytes, mark: Mark, body: bytes) -> bytes:
    if len(cluster_id) != ID_BYTES:
        raise ValueError(f"a cluster id has {ID_BYTES} bytes")
    body_hash = hashlib.sha256()
    view = memoryview(body)
    for start in range(0, len(body), _SLICE_BYTES):
        body_hash.update(view[start : start + _SLICE_BYTES])
        await asyncio.sleep(0)
    encoded_mark = msgspec.msgpack.encode(mark)
    prelude = _PRELUDE.pack(
        _MAGIC, FORMAT_VERSION, cluster_id, len(encoded_mark), len(body), body_hash.digest()
    )
    header = prelude + encoded_mark
    # A BytesIO hands its buffer out without a copy: the only copy of the body is made slice by slice.
    whole = io.BytesIO()
    whole.write(header)
    whole.write(hashlib.sha256(header).digest())
    for start in range(0, len(body), _SLICE_BYTES):
        whole.write(view[start : start + _SLICE_BYTES])
        await asyncio.sleep(0)
    return whole.getvalue()


async def _reads_back(store: ObjectStore, key: str, data: bytes) -> bool:
    """Whether exactly these bytes lie under the key. Raises StoreError if nothing does."""
    for start in range(0, len(data), _SLICE_BYTES):
        piece = await store.get(key, start, _SLICE_BYTES)
        if piece is None:
            raise StoreError(f"{key} is not there after it was put")
        if piece != data[start : start + _SLICE_BYTES]:
            return False
        await asyncio.sleep(0)
    return True


# --- reading -------------------------------------------------------------------------------------


async def load_newest(store: ObjectStore, cluster_id: bytes) -> Loaded:
    """J6: the newest snapshot that verifies, else the next older. Raises DataMissing if none of them does."""
    for _ in range(_LISTINGS):
        positions = await list_snapshots(store)
        if not positions:
            return Loaded(Mark(), None)
        invalid: dict[Position, str] = {}
        try:
            for position in reversed(positions):
                try:
                    mark, body = await _load(store, snapshot_key(position), cluster_id)
                except InvalidSnapshot as error:
                    invalid[position] = str(error)
                else:
                    return Loaded(mark, body, frozenset(invalid))
        except SnapshotGone:
            continue  # pruned since the listing, so a newer one has come
        raise DataMissing("no snapshot verifies: " + "; ".join(invalid.values()))
    raise StoreError("the snapshots change faster than they can be read")


async def newest_mark(store: ObjectStore, cluster_id: bytes) -> Mark:
    """Where the newest snapshot with a good header stands; its body is not read. Genesis if there is none."""
    for position in reversed(await list_snapshots(store)):
        try:
            return (await _verified_header(store, snapshot_key(position), cluster_id)).mark
        except (InvalidSnapshot, SnapshotGone):
            continue  # the next older one: more of the log is to be read then
    return Mark()


async def _load(store: ObjectStore, key: str, cluster_id: bytes) -> tuple[Mark, bytes]:
    header = await _verified_header(store, key, cluster_id)
    body = b""
    if header.body_length:
        # In one piece, because joining pieces would copy half a gigabyte in one breath.
        body = _there(await store.get(key, header.body_offset, header.body_length), key)
    found = hashlib.sha256()
    view = memoryview(body)
    for start in range(0, len(body), _SLICE_BYTES):
        found.update(view[start : start + _SLICE_BYTES])
        await asyncio.sleep(0)
    if len(body) != header.body_length or found.digest() != header.body_hash:
        raise InvalidSnapshot(f"{key}: the body does not fit its hash")
    return header.mark, body


async def _verified_header(store: ObjectStore, key: str, cluster_id: bytes) -> _Header:
    start = _there(await store.get(key, 0, _FIRST_READ_BYTES), key)
    if len(start) < _PRELUDE.size:
        raise InvalidSnapshot(f"{key}: too short")
    magic, version, cluster, mark_length, body_length, body_hash = _PRELUDE.unpack_from(start)
    if magic != _MAGIC or version != FORMAT_VERSION:
        raise InvalidSnapshot(f"{key}: not a snapshot of format {FORMAT_VERSION}")
    mark_end = _PRELUDE.size + mark_length
    if mark_end + HASH_BYTES > len(start):
        start = _there(await store.get(key, 0, mark_end + HASH_BYTES), key)
    header_hash = start[mark_end : mark_end + HASH_BYTES]
    if hashlib.sha256(start[:mark_end]).digest() != header_hash:
        raise InvalidSnapshot(f"{key}: the header does not fit its hash")
    if cluster != cluster_id:
        raise InvalidSnapshot(f"{key} belongs to another service: cluster id {cluster.hex()}")
    mark = _mark_decoder.decode(start[_PRELUDE.size : mark_end])
    if mark.last_position is None or snapshot_key(mark.last_position) != key:
        raise InvalidSnapshot(f"{key} holds the state of another position")
    return _Header(mark, body_hash, mark_end + HASH_BYTES, body_length)


async def _verify_body(store: ObjectStore, key: str, header: _Header) -> None:
    """Check the body in pieces, so that verifying needs no memory for all of it."""
    found = hashlib.sha256()
    read = 0
    while read < header.body_length:
        piece = _there(await store.get(key, header.body_offset + read, _READ_BYTES), key)
        if not piece:
            raise InvalidSnapshot(f"{key}: the body ends early")
        for start in range(0, len(piece), _SLICE_BYTES):
            found.update(memoryview(piece)[start : start + _SLICE_BYTES])
            await asyncio.sleep(0)
        read += len(piece)
    if read != header.body_length or found.digest() != header.body_hash:
        raise InvalidSnapshot(f"{key}: the body does not fit its hash")


def _there(data: bytes | None, key: str) -> bytes:
    if data is None:
        raise SnapshotGone(key)
    return data


# --- pruning -------------------------------------------------------------------------------------


async def prune(store: ObjectStore, cluster_id: bytes) -> int:
    """J11: forget what two snapshots make superfluous. Returns how many objects were deleted.

    Kept: the newest snapshot, the next older one that verifies to its last byte, all between them, every
    record after the older one, and every takeover.
    """
    positions = await list_snapshots(store)
    older = await _older_that_verifies(store, cluster_id, positions)
    if older is None:
        return 0
    cut, ends = older
    forgotten = [
        log_key(position)
        for position in positions_of(await store.list(LOG_PREFIX), LOG_PREFIX)
        if position <= cut and not _keeps_takeovers(position, ends)
    ]
    superfluous = [snapshot_key(position) for position in positions if position < cut]
    # Snapshots first: one whose log is gone behind it must not be there to begin a replay from.
    for keys in (superfluous, forgotten):
        for start in range(0, len(keys), _DELETES_AT_ONCE):
            # Oldest first: what an interrupted pruning leaves is a shorter log, not one with holes.
            await asyncio.gather(*map(store.delete, keys[start : start + _DELETES_AT_ONCE]))
    return len(forgotten) + len(superfluous)


async def _older_that_verifies(
    store: ObjectStore, cluster_id: bytes, positions: list[Position]
) -> tuple[Position, Mapping[int, int]] | None:
    """The newest snapshot but one from which everything could be recovered if the newest were bad."""
    for position in reversed(positions[:-1]):
        key = snapshot_key(position)
        try:
            header = await _verified_header(store, key, cluster_id)
            await _verify_body(store, key, header)
        except InvalidSnapshot:
            continue  # what it was to cover stays covered by an older one, and the log after that is kept
        except SnapshotGone:
            return None  # another manager prunes at this moment
        return position, header.mark.ends
    return None


def _keeps_takeovers(position: Position, ends: Mapping[int, int]) -> bool:
    """Whether this position holds a takeover of the history. A void claim is none, and may go."""
    return ends.get(position.epoch) == position.n
