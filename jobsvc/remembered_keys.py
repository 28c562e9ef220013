"""Idempotency keys: what each was used for, and what was answered.

A key is remembered until it expires, by log time. A table has bounds, in keys and in bytes, because an answer
may hold the ids of ten thousand jobs; beyond them the oldest key goes, whatever time it had left. So no
number of keys keeps anybody out.

Long answers are kept compressed: they are lists of ids, and the ids of one batch differ in few bytes.
Otherwise a service that takes batches at full rate would hold the ids of five minutes as they are. How an
answer is kept is not state: the bound in bytes counts answers as they are told, and a snapshot holds those.
To compress or restore an answer takes about 0.15 ms, so whoever does it for many does it slice by slice.

The order of age is kept beside the dict: to look at a dict's first entry is to step over all that were
deleted before it. A key that is used again after it has expired is in that order twice, and the first place
is void.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator

import msgspec

KEYS_MAX = 2_000_000
KEYS_BYTES_MAX = 512 * 1024 * 1024
ENTRY_BYTES = 250  # of an entry, beside its texts: the objects, and the places in dict and order
FINGERPRINT_BYTES = 16
PACKED_BYTES_MIN = 1_024  # of an answer
_STRIDE = 18  # of an answer's ids: each has two bytes before it
SLICE_BYTES = 1024 * 1024  # of records that are compressed or restored without a pause: a few milliseconds
EXPIRED_AT_ONCE = 2  # for each new one: so that what has expired goes faster than it came


class KeyRecord(msgspec.Struct, array_like=True, gc=False):
    """What an idempotency key was used for, and what it was answered."""

    fingerprint: bytes
    answer: bytes
    expires_at: float


class _Packed(msgspec.Struct, gc=False):
    """A record whose answer is long: every 18th byte of it, from the first on, then from the second, …"""

    fingerprint: bytes
    columns: bytes
    answer_bytes: int
    expires_at: float

    @classmethod
    def of(cls, record: KeyRecord) -> _Packed:
        answer = record.answer
        columns = zlib.compress(b"".join(answer[at::_STRIDE] for at in range(_STRIDE)), level=1)
        return cls(record.fingerprint, columns, len(answer), record.expires_at)

    def record(self) -> KeyRecord:
        columns, answer, begin = zlib.decompress(self.columns), bytearray(self.answer_bytes), 0
        for at in range(_STRIDE):
            end = begin + len(range(at, self.answer_bytes, _STRIDE))
            answer[at::_STRIDE] = columns[begin:end]
            begin = end
        return KeyRecord(self.fingerprint, bytes(answer), self.expires_at)


class RememberedKeys:
    """Key -> record, oldest first. Changed by `remember` alone."""

    def __init__(self) -> None:
        self.bytes = 0
        self._kept: dict[str, KeyRecord | _Packed] = {}
        self._order: deque[str] = deque()
        self._void: dict[str, int] = {}  # places of a key in the order that are not its latest

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def get(self, key: str) -> KeyRecord | None:
        kept = self._kept.get(key)
        return kept.record() if isinstance(kept, _Packed) else kept

    def slices(self) -> Iterator[dict[str, KeyRecord]]:
        """All records for a snapshot, oldest first, about `SLICE_BYTES` at a time."""
        some: dict[str, KeyRecord] = {}
        size_bytes = 0
        for key, kept in self._kept.items():
            some[key] = kept.record() if isinstance(kept, _Packed) else kept
            size_bytes += _bytes_of(key, kept)
            if size_bytes >= SLICE_BYTES:
                yield some
                some, size_bytes = {}, 0
        if some:
            yield some

    def remember(self, key: str, record: KeyRecord, now: float) -> None:
        """Take note of a key; forget some that have expired, and the oldest where there is no room."""
        if key in self._kept:
            self._forget(key)  # the newest goes to the end
            self._void[key] = self._void.get(key, 0) + 1
        self._keep(key, record)
        for _ in range(EXPIRED_AT_ONCE):
            oldest = self._oldest()
            if oldest is None or self._kept[oldest].expires_at > now:
                break
            self._forget_oldest(oldest)
        while len(self._kept) > 1 and (len(self._kept) > KEYS_MAX or self.bytes > KEYS_BYTES_MAX):
            oldest = self._oldest()
            assert oldest is not None
            self._forget_oldest(oldest)

    def _keep(self, key: str, record: KeyRecord) -> None:
        kept = _Packed.of(record) if len(record.answer) >= PACKED_BYTES_MIN else record
        self._kept[key] = kept
        self._order.append(key)
        self.bytes += _bytes_of(key, kept)

    def _oldest(self) -> str | None:
        order, void = self._order, self._void
        while order and order[0] in void:
            key = order.popleft()
            void[key] -= 1
            if not void[key]:
                del void[key]
        return order[0] if order else None

    def _forget_oldest(self, key: str) -> None:
        self._order.popleft()
        self._forget(key)

    def _forget(self, key: str) -> None:
        self.bytes -= _bytes_of(key, self._kept.pop(key))

    def restore(self, records: dict[str, KeyRecord]) -> Iterator[None]:
        """Fill an empty table from a snapshot. Yields after about `SLICE_BYTES`, so that others can go on."""
        paused_at = self.bytes
        for key, record in records.items():
            self._keep(key, record)
            if self.bytes - paused_at >= SLICE_BYTES:
                yield
                paused_at = self.bytes


def _bytes_of(key: str, kept: KeyRecord | _Packed) -> int:
    answer_bytes = kept.answer_bytes if isinstance(kept, _Packed) else len(kept.answer)
    return ENTRY_BYTES + len(key) + len(kept.fingerprint) + answer_bytes
