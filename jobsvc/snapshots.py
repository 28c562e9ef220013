"""Snapshots: the whole state after one record, so that the log before it can go.

A snapshot is `magic, version, header length, header checksum | header | body`. The header holds the
cluster id, the mark of the last record that the state contains, and the length and sha256 of the body.
The key is that record's position. Only committed prefixes are ever snapshotted, so any snapshot that
verifies is true whenever it appears, even one that a dead process wrote and the store delivered late.

What the journal leans on here (J11):

- The newest snapshot is the boundary of the log: whatever was pruned lies at or before it, and it is never
  deleted. So one LIST tells a claimant or a slow reader whether its position may have been pruned.
- The two newest stay, and the log after the older one, so that one damaged snapshot costs nothing.
- A takeover record is never deleted. It is what a fenced leader runs into, however late it comes back:
  were it gone, that leader's write would succeed and acknowledge what nobody will ever read. Every other
  number before the boundary may come back through a late retry, with the same bytes, and does no harm.

Bodies may have hundreds of megabytes: they are copied, hashed and compared in slices, and the event loop
gets its turn between any two.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator
from typing import cast

import msgspec

from .errors import StoreUnfit
from .log_records import LOG_PREFIX, SNAPSHOT_PREFIX, Damaged, Mark, Position, position_of, snapshot_key
from .object_store import ObjectStore, PutOutcome, StoreError

SLICE_BYTES = 4 * 1024 * 1024
PUT_ATTEMPTS = 5
PUT_RETRY_SECONDS = 0.5  # doubled by each further attempt

_MAGIC = b"JSNP"
_VERSION = 1
_FRONT = struct.Struct(">4sHI32s")  # magic, version, header length, header checksum
_FIRST_READ_BYTES = 64 * 1024  # the header of any service with fewer than some thousand takeovers


class _Header(msgspec.Struct, frozen=True):
    cluster_id: bytes
    mark: Mark
    body_bytes: int
    body_sha256: bytes


async def snapshot_positions(store: ObjectStore) -> list[Position]:
    """Where there are snapshots, oldest first; whether they verify is not looked at."""
    return sorted(position_of(key) for key in await store.list(SNAPSHOT_PREFIX))


async def write_snapshot(store: ObjectStore, cluster_id: bytes, mark: Mark, body: bytes) -> None:
    """Store `body`, the state at `mark`. Returns when it has been read back whole.

    Raises StoreError when the store does not answer (nothing is known, and nothing is lost: the next
    snapshot will do), StoreUnfit when it gives back other bytes than it took.
    """
    position = mark.last_position
    if position is None:
        raise ValueError("there is nothing to snapshot before the first record")
    header = _encode_header(_Header(cluster_id, mark, len(body), await _sha256(body)))
    key = snapshot_key(position)
    outcome = await _put(store, key, await _joined(header, body))
    if outcome is PutOutcome.CREATED:
        await _compare(store, key, header, body)
    else:
        # Another manager's snapshot of the same record, or an earlier try of ours. It need not have our
        # bytes, but it has to be whole.
        await _require_whole(store, key, cluster_id)


async def newest_snapshot(store: ObjectStore, cluster_id: bytes) -> tuple[Mark, bytes] | None:
    """The newest snapshot that verifies, or None if there is none."""
    listed = await snapshot_positions(store)
    while True:
        for position in reversed(listed):
            try:
                return await read_snapshot(store, cluster_id, position)
            except Damaged:
                continue  # the next older one; the log after it is still there
        relisted = await snapshot_positions(store)
        if relisted == listed:
            return None
        listed = relisted  # pruned while we read; there are newer ones


async def read_snapshot(store: ObjectStore, cluster_id: bytes, position: Position) -> tuple[Mark, bytes]:
    """The snapshot at `position`. Raises Damaged if it does not verify or is not there any more."""
    header, offset, front = await _read_header(store, cluster_id, position)
    if len(front) < _FIRST_READ_BYTES:
        body: bytes | None = front[offset:]  # a small one is already here as a whole
    else:
        body = await store.get(snapshot_key(position), offset)
    if body is None or len(body) != header.body_bytes or await _sha256(body) != header.body_sha256:
        raise Damaged(f"the body of the snapshot at {tuple(position)} does not match its checksum")
    return header.mark, body


async def prune(store: ObjectStore, cluster_id: bytes) -> int:
    """J11: delete what the older of the two newest snapshots makes superfluous. Returns how many went."""
    kept = await _two_newest(store, cluster_id)
    if len(kept) < 2:
        return 0
    boundary, ends = kept[1], kept[1].last_position
    assert ends is not None
    # Snapshots first: while a snapshot is there, so is the log that it needs.
    doomed = [key for key in sorted(await store.list(SNAPSHOT_PREFIX)) if position_of(key) < ends]
    for key in sorted(await store.list(LOG_PREFIX)):
        position = position_of(key)
        if position <= ends and not _is_immortal(position, boundary):
            doomed.append(key)
    for key in doomed:
        await store.delete(key)
    return len(doomed)


def _is_immortal(position: Position, boundary: Mark) -> bool:
    """J11's exception: the takeover that ended its epoch. It holds off its epoch's leader for ever."""
    return boundary.ends.get(position.epoch) == position.n


async def _two_newest(store: ObjectStore, cluster_id: bytes) -> list[Mark]:
    """The marks of the two newest snapshots with a good header, newest first."""
    marks: list[Mark] = []
    for position in reversed(await snapshot_positions(store)):
        try:
            header, _, _ = await _read_header(store, cluster_id, position)
        except Damaged:
            continue
        marks.append(header.mark)
        if len(marks) == 2:
            break
    return marks


def _encode_header(header: _Header) -> bytes:
    encoded = msgspec.msgpack.encode(header)
    return _FRONT.pack(_MAGIC, _VERSION, len(encoded), hashlib.sha256(encoded).digest()) + encoded


async def _read_header(
    store: ObjectStore, cluster_id: bytes, position: Position
) -> tuple[_Header, int, bytes]:
    """The header, where the body begins, and what was read of the object."""
    key = snapshot_key(position)
    front = await store.get(key, 0, _FIRST_READ_BYTES)
    if front is None or len(front) < _FRONT.size:
        raise Damaged(f"{key} is gone or cut short")
    magic, version, length, checksum = _FRONT.unpack_from(front)
    if magic != _MAGIC:
        raise Damaged(f"{key} is not a snapshot")
    if version != _VERSION:
        raise StoreUnfit(f"snapshot format {version}: written by a newer jobsvc")
    encoded = front[_FRONT.size : _FRONT.size + length]
    if length > len(encoded):
        encoded = await store.get(key, _FRONT.size, length) or b""
    if hashlib.sha256(encoded).digest() != checksum:
        raise Damaged(f"the header of {key} does not match its checksum")
    header = msgspec.msgpack.decode(encoded, type=_Header)
    if header.cluster_id != cluster_id:
        raise StoreUnfit(f"a snapshot of another service ({header.cluster_id.hex()}) is under this prefix")
    if header.mark.last_position != position:
        raise Damaged(f"{key} holds the snapshot of another record")
    return header, _FRONT.size + length, front


async def _put(store: ObjectStore, key: str, data: bytes) -> PutOutcome:
    for attempt in range(PUT_ATTEMPTS):
        outcome = await store.put_new(key, data)
        if outcome is not PutOutcome.UNKNOWN:
            return outcome
        await asyncio.sleep(PUT_RETRY_SECONDS * 2**attempt)
    raise StoreError(f"{key}: no answer to {PUT_ATTEMPTS} attempts to write it")


async def _compare(store: ObjectStore, key: str, header: bytes, body: bytes) -> None:
    """Read back, range by range, so that no second copy of the whole is ever in memory."""
    offset = 0
    for part in (header, body):
        async for piece in _slices(part):
            found = await store.get(key, offset, len(piece))
            if found is None and await _is_superseded(store, key):
                return
            if found != bytes(piece):
                raise StoreUnfit(f"{key}: the store gives back other bytes than it took")
            offset += len(piece)


async def _require_whole(store: ObjectStore, key: str, cluster_id: bytes) -> None:
    try:
        await read_snapshot(store, cluster_id, position_of(key))
    except Damaged as error:
        if not await _is_superseded(store, key):
            raise StoreUnfit(f"{key}: a damaged snapshot is in the way") from error


async def _is_superseded(store: ObjectStore, key: str) -> bool:
    """Whether the snapshot was pruned meanwhile: newer ones exist, and it is not needed any more."""
    listed = await store.list(SNAPSHOT_PREFIX)
    return key not in listed and max(listed, default="") > key


async def _slices(data: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), SLICE_BYTES):
        yield view[start : start + SLICE_BYTES]
        await asyncio.sleep(0)


async def _sha256(data: bytes) -> bytes:
    digest = hashlib.sha256()
    async for piece in _slices(data):
        digest.update(piece)
    return digest.digest()


async def _joined(header: bytes, body: bytes) -> bytes:
    """`header + body` without one long copy. A bytearray grows in place; nobody changes it afterwards."""
    joined = bytearray(header)
    async for piece in _slices(body):
        joined += piece
    return cast(bytes, joined)
