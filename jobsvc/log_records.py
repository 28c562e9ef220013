"""The journal's bytes: where a record stands, how it is written down, and where a replay stands.

A record is `header | body | checksum`. The checksum is the sha256 of all that precedes it, and the header
holds the checksum of the record before (`prev`), so one hash serves twice: it proves that the bytes are
whole, and it chains each record to the entire history before it. Two histories that differ anywhere
differ in every later checksum.

A `Mark` is all that a reader must remember to go on: the next key, the chain so far, the log time, and
where each finished epoch ended. It is a value; stepping over a record makes a new one.

Keys are zero-padded decimals, so that the byte order of keys is the order of positions.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import msgspec

from .errors import JobsvcError, StoreUnfit

ID_BYTES = 16  # length of cluster ids and writer nonces
LOG_PREFIX = "log/"
SNAPSHOT_PREFIX = "snapshots/"

_MAGIC = b"JLOG"
_VERSION = 1
_KINDS = ("data", "takeover")
# magic, version, cluster id, epoch, n, kind, nonce, prev, log time, count, body length
_HEADER = struct.Struct(f">4sH{ID_BYTES}sQQB{ID_BYTES}s32sdIQ")
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_GENESIS_CHAIN = bytes(_CHECKSUM_BYTES)


class Damaged(JobsvcError):
    """These bytes are not a whole record (or snapshot) of this format."""


class Position(NamedTuple):
    """The place of a record. Tuples compare as the log is ordered: by epoch, then by number."""

    epoch: int
    n: int


class Record(msgspec.Struct, frozen=True):
    """One object of the log: a group commit, or the takeover that ends an epoch."""

    position: Position
    kind: str  # "data" | "takeover"
    nonce: bytes  # of the process that wrote it
    prev: bytes  # checksum of the record before
    log_time: float
    count: int  # events in the body
    body: bytes
    encoded: bytes

    @property
    def checksum(self) -> bytes:
        return self.encoded[-_CHECKSUM_BYTES:]


class Mark(msgspec.Struct, frozen=True):
    """Where a replay stands."""

    next_position: Position = Position(0, 0)
    chain: bytes = _GENESIS_CHAIN
    log_time: float = 0.0
    ends: dict[int, int] = {}  # finished epoch -> the number of its takeover
    records: int = 0  # applied since genesis

    @property
    def last_position(self) -> Position | None:
        """The record that was applied last; None before the first."""
        epoch, n = self.next_position
        if n > 0:
            return Position(epoch, n - 1)
        return None if epoch == 0 else Position(epoch - 1, self.ends[epoch - 1])

    def after(self, record: Record) -> Mark:
        """The mark one record on. A takeover ends its epoch, and the only way to a new epoch is this."""
        epoch, n = record.position
        if record.kind == "takeover":
            ends, following = {**self.ends, epoch: n}, Position(epoch + 1, 0)
        else:
            ends, following = self.ends, Position(epoch, n + 1)
        return Mark(following, record.checksum, record.log_time, ends, self.records + 1)


def log_key(position: Position) -> str:
    return f"{LOG_PREFIX}{position.epoch:010}/{position.n:012}"


def snapshot_key(position: Position) -> str:
    return f"{SNAPSHOT_PREFIX}{position.epoch:010}/{position.n:012}"


def position_of(key: str) -> Position:
    """The position that a log or snapshot key names."""
    _, epoch, n = key.split("/")
    return Position(int(epoch), int(n))


def next_record(
    mark: Mark, cluster_id: bytes, *, kind: str, nonce: bytes, log_time: float, count: int, body: bytes
) -> Record:
    """The record that continues the log at `mark`."""
    if len(cluster_id) != ID_BYTES or len(nonce) != ID_BYTES:
        raise ValueError(f"cluster id and nonce have {ID_BYTES} bytes")
    if log_time < mark.log_time:
        raise ValueError(f"log time runs backwards: {log_time} after {mark.log_time}")
    position = mark.next_position
    header = _HEADER.pack(
        _MAGIC, _VERSION, cluster_id, position.epoch, position.n, _KINDS.index(kind), nonce,
        mark.chain, log_time, count, len(body),
    )  # fmt: skip
    digest = hashlib.sha256(header)
    digest.update(body)
    encoded = b"".join((header, body, digest.digest()))
    return Record(position, kind, nonce, mark.chain, log_time, count, body, encoded)


def decode_record(encoded: bytes, cluster_id: bytes) -> Record:
    """The record in these bytes. Raises Damaged, or StoreUnfit where another service or version wrote it."""
    if len(encoded) < _HEADER.size + _CHECKSUM_BYTES:
        raise Damaged(f"{len(encoded)} bytes are too few for a record")
    magic, version, cluster, epoch, n, kind, nonce, prev, log_time, count, length = _HEADER.unpack_from(
        encoded
    )
    if magic != _MAGIC or len(encoded) != _HEADER.size + length + _CHECKSUM_BYTES:
        raise Damaged("not a record, or cut short")
    view = memoryview(encoded)
    if hashlib.sha256(view[:-_CHECKSUM_BYTES]).digest() != view[-_CHECKSUM_BYTES:]:
        raise Damaged("the checksum does not match")
    if version != _VERSION or kind >= len(_KINDS):
        raise StoreUnfit(f"record format {version}, kind {kind}: written by a newer jobsvc")
    if cluster != cluster_id:
        raise StoreUnfit(f"a record of another service ({cluster.hex()}) is under this prefix")
    body = encoded[_HEADER.size : -_CHECKSUM_BYTES]
    return Record(Position(epoch, n), _KINDS[kind], nonce, prev, log_time, count, body, encoded)
