"""The words of the journal and its bytes: positions, keys, records, marks.

One record is one object of the log. Its layout, big endian, without padding:

    magic 8 | version 1 | kind 1 | cluster id 16 | epoch 8 | n 8 | writer nonce 16 | previous chain 32
    | log time 8 | count 4 | body length 8 | body | checksum 32

The body of a takeover is the epoch that begins and the name of the service whose manager begins it; a log of
version 0.1 has no names. The checksum is the SHA-256 of everything before it. Because that includes the chain
hash of the record before, the checksum of a record is also the chain hash over the whole log up to and with
it: one hash proves both that the bytes are whole and that they continue exactly this history.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from .errors import JobsvcError

LOG_PREFIX = "log/"
SNAPSHOT_PREFIX = "snapshots/"
CLUSTER_KEY = "cluster"  # the object with the id that guards the prefix
CLUSTER_MAGIC = b"JOBSVCID"
ID_BYTES = 16  # of cluster ids and of writer nonces
HASH_BYTES = 32
FORMAT_VERSION = 1

Kind = Literal["data", "takeover"]

_MAGIC = b"JOBSVCLG"
_HEADER = struct.Struct(">8sBB16sQQ16s32sdIQ")
_KIND_CODES: dict[Kind, int] = {"data": 1, "takeover": 2}
_KINDS: dict[int, Kind] = {code: kind for kind, code in _KIND_CODES.items()}
_TAKEOVER_BODY = struct.Struct(">Q")  # the epoch that begins; the service's name follows
_KEY_END = re.compile(r"(\d{10})/(\d{12})")


class InvalidRecord(JobsvcError):
    """These bytes are not a record of this service's log."""


class Position(NamedTuple):
    """The place of a record in the log. Positions order as the log does."""

    epoch: int
    n: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.n}"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One object of the log: a group commit, or the takeover that ends an epoch."""

    position: Position
    kind: Kind
    nonce: bytes  # of the process that wrote it
    previous: bytes  # chain hash over all earlier records
    log_time: float
    count: int
    body: bytes
    encoded: bytes

    @property
    def chain(self) -> bytes:
        """The chain hash over all records up to and including this one."""
        return self.encoded[-HASH_BYTES:]

    @property
    def service(self) -> str:
        """Of a takeover: the service whose manager leads from here on; "" where no name was written."""
        return self.body[_TAKEOVER_BODY.size :].decode(errors="replace")


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Where replay stands: everything before `next_position` is applied, nothing after it."""

    next_position: Position = Position(0, 0)
    chain: bytes = bytes(HASH_BYTES)
    log_time: float = 0.0
    ends: dict[int, int] = {}  # epoch -> n of the takeover that ended it
    records: int = 0  # applied since genesis
    service: str = ""  # that has led since the last takeover

    @property
    def last_position(self) -> Position | None:
        """Of the last applied record; None before the first."""
        epoch, n = self.next_position
        if n > 0:
            return Position(epoch, n - 1)
        return Position(epoch - 1, self.ends[epoch - 1]) if epoch > 0 else None

    def after(self, record: Record) -> Mark:
        """The mark once this record, which is the next one, is applied."""
        epoch, n = record.position
        if record.kind == "takeover":
            ends, following = {**self.ends, epoch: n}, Position(epoch + 1, 0)
            service = record.service
        else:
            ends, following = self.ends, Position(epoch, n + 1)
            service = self.service
        return Mark(following, record.chain, record.log_time, ends, self.records + 1, service)


def log_key(position: Position) -> str:
    return f"{LOG_PREFIX}{position.epoch:010}/{position.n:012}"


def snapshot_key(position: Position) -> str:
    return f"{SNAPSHOT_PREFIX}{position.epoch:010}/{position.n:012}"


def positions_of(keys: Iterable[str], prefix: str) -> list[Position]:
    """The positions named by these keys, in log order; keys of another shape are nobody's record."""
    found = (_KEY_END.fullmatch(key, len(prefix)) for key in keys if key.startswith(prefix))
    return sorted(Position(int(match[1]), int(match[2])) for match in found if match)


def data_record(
    mark: Mark, cluster_id: bytes, nonce: bytes, *, body: bytes, count: int, log_time: float
) -> Record:
    """The next record of an epoch's leader."""
    return _record(mark, cluster_id, nonce, kind="data", body=body, count=count, log_time=log_time)


def takeover_record(
    mark: Mark, cluster_id: bytes, nonce: bytes, *, log_time: float, service: str = ""
) -> Record:
    """The record that ends the epoch in which replay stands, and begins the next one."""
    body = _TAKEOVER_BODY.pack(mark.next_position.epoch + 1) + service.encode()
    return _record(mark, cluster_id, nonce, kind="takeover", body=body, count=0, log_time=log_time)


def _record(
    mark: Mark, cluster_id: bytes, nonce: bytes, *, kind: Kind, body: bytes, count: int, log_time: float
) -> Record:
    if len(cluster_id) != ID_BYTES or len(nonce) != ID_BYTES:
        raise ValueError(f"cluster id and nonce must have {ID_BYTES} bytes")
    position = mark.next_position
    header = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        _KIND_CODES[kind],
        cluster_id,
        position.epoch,
        position.n,
        nonce,
        mark.chain,
        log_time,
        count,
        len(body),
    )
    checksum = hashlib.sha256(header)
    checksum.update(body)
    return Record(
        position=position,
        kind=kind,
        nonce=nonce,
        previous=mark.chain,
        log_time=log_time,
        count=count,
        body=body,
        encoded=b"".join((header, body, checksum.digest())),
    )


def decode_record(encoded: bytes, cluster_id: bytes) -> Record:
    """Raises InvalidRecord unless these are the whole bytes of a record of this service."""
    if len(encoded) < _HEADER.size + HASH_BYTES:
        raise InvalidRecord(f"{len(encoded)} bytes are too few for a record")
    magic, version, code, cluster, epoch, n, nonce, previous, log_time, count, length = _HEADER.unpack_from(
        encoded
    )
    if magic != _MAGIC:
        raise InvalidRecord("does not begin like a record")
    if version != FORMAT_VERSION:
        raise InvalidRecord(f"format version {version}; this program knows {FORMAT_VERSION}")
    if len(encoded) != _HEADER.size + length + HASH_BYTES:
        raise InvalidRecord(f"{len(encoded)} bytes do not fit a body of {length}")
    if hashlib.sha256(memoryview(encoded)[:-HASH_BYTES]).digest() != encoded[-HASH_BYTES:]:
        raise InvalidRecord("the checksum does not fit")
    if cluster != cluster_id:
        raise InvalidRecord(f"belongs to another service: cluster id {cluster.hex()}")
    if code not in _KINDS:
        raise InvalidRecord(f"unknown kind {code}")
    body = encoded[_HEADER.size : -HASH_BYTES]
    if _KINDS[code] == "takeover" and body[: _TAKEOVER_BODY.size] != _TAKEOVER_BODY.pack(epoch + 1):
        raise InvalidRecord("a takeover that begins an epoch other than the next")
    return Record(
        position=Position(epoch, n),
        kind=_KINDS[code],
        nonce=nonce,
        previous=previous,
        log_time=log_time,
        count=count,
        body=body,
        encoded=encoded,
    )
