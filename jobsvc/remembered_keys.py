"""Idempotency keys: what each was used for, and what was answered.

A key is remembered until it expires, by log time. A table has bounds, in keys and in bytes, because an answer
may hold the ids of ten thousand jobs; beyond them the oldest key goes, whatever time it had left. So no
number of keys keeps anybody out.

Long answers are kept compressed: they are lists of ids, and the ids of one batch differ in few bytes.
Otherwise a service that takes batches at full rate would hold the ids of five minutes as they are. How an
answer is kept is not state: the bound in bytes counts answers as they are told. A snapshot holds them as they
are kept, for at full rate they were two thirds of it; format 1 had them as they are told, and to compress one
takes about 0.15 ms, so whoever restores many does it slice by slice.

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


class KeptKey(msgspec.Struct, array_like=True, gc=False):
    """A record as it is kept, in memory and in snapshots.

    With `answer_bytes`, `answer` is compressed: every 18th byte from the first on, then from the second, …"""

    fingerprint: bytes
    answer: bytes
    expires_at: float
    answer_bytes: int = 0

    @classmethod
    def of(cls, record: KeyRecord) -> KeptKey:
        answer = record.answer
        if len(answer) < PACKED_BYTES_MIN:
            return cls(record.fingerprint, answer, record.expires_at)
        columns = zlib.compress(b"".join(answer[at::_STRIDE] for at in range(_STRIDE)), level=1)
        return cls(record.fingerprint, columns, record.expires_at, len(answer))

    def record(self) -> KeyRecord:
        if self.answer_bytes == 0:
            return KeyRecord(self.fingerprint, self.answer, self.expires_at)
        columns, answer, begin = zlib.decompress(self.answer), bytearray(self.answer_bytes), 0
        for at in range(_STRIDE):
            end = begin + len(range(at, self.answer_bytes, _STRIDE))
            answer[at::_STRIDE] = columns[begin:end]
            begin = end
        return KeyRecord(self.fingerprint, bytes(answer), self.expires_at)


class RememberedKeys:
    """Key -> record, oldest first. Changed by `remember` alone."""

    def __init__(self) -> None:
        self.bytes = 0
        self._kept: dict[str, KeptKey] = {}
        self._order: deque[str] = deque()
        self._void: dict[str, int] = {}  # places of a key in the order that are not its latest

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def get(self, key: str) -> KeyRecord | None:
        kept = self._kept.get(key)
        return None if kept is None else kept.record()

    def slices(self) -> Iterator[dict[str, KeptKey]]:
        """All records for a snapshot, oldest first, about `SLICE_BYTES` at a time."""
        some: dict[str, KeptKey] = {}
        size_bytes = 0
        for key, kept in self._kept.items():
            some[key] = kept
            size_bytes += ENTRY_BYTES + len(kept.answer)
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
        self._keep(key, KeptKey.of(record))
        for _ in range(EXPIRED_AT_ONCE):
            oldest = self._oldest()
            if oldest is None or self._kept[oldest].expires_at > now:
                break
            self._forget_oldest(oldest)
        while len(self._kept) > 1 and (len(self._kept) > KEYS_MAX or self.bytes > KEYS_BYTES_MAX):
            oldest = self._oldest()
            assert oldest is not None
            self._forget_oldest(oldest)

    def _keep(self, key: str, kept: KeptKey) -> None:
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

    def restore(self, kept: dict[str, KeptKey]) -> Iterator[None]:
        """Add what a snapshot holds, oldest first. Yields after about `SLICE_BYTES`: others can go on."""
        paused_at = self.bytes
        for key, each in kept.items():
            is_told = each.answer_bytes == 0  # as format 1 has them all
            self._keep(key, KeptKey.of(each.record()) if is_told else each)
            if self.bytes - paused_at >= SLICE_BYTES:
                yield
                paused_at = self.bytes


def _bytes_of(key: str, kept: KeptKey) -> int:
    return ENTRY_BYTES + len(key) + len(kept.fingerprint) + (kept.answer_bytes or len(kept.answer))
