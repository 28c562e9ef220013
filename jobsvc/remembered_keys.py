"""Idempotency keys: what each was used for, and what was answered.

A key is remembered until it expires, by log time. A table has bounds, in keys and in bytes, because an answer
may hold the ids of ten thousand jobs; beyond them the oldest key goes, whatever time it had left. So no
number of keys keeps anybody out.

The order of age is kept beside the dict: to look at a dict's first entry is to step over all that were
deleted before it. A key that is used again after it has expired is in that order twice, and the first place
is void.
"""

from __future__ import annotations

from collections import deque

import msgspec

KEYS_MAX = 2_000_000
KEYS_BYTES_MAX = 512 * 1024 * 1024
ENTRY_BYTES = 250  # of an entry, beside its texts: the objects, and the places in dict and order
FINGERPRINT_BYTES = 16
EXPIRED_AT_ONCE = 2  # for each new one: so that what has expired goes faster than it came


class KeyRecord(msgspec.Struct, array_like=True, gc=False):
    """What an idempotency key was used for, and what it was answered."""

    fingerprint: bytes
    answer: bytes
    expires_at: float


class RememberedKeys(dict[str, KeyRecord]):
    """Key -> record, oldest first. Changed by `remember` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._order: deque[str] = deque()
        self._void: dict[str, int] = {}  # places of a key in the order that are not its latest

    def remember(self, key: str, record: KeyRecord, now: float) -> None:
        """Take note of a key; forget some that have expired, and the oldest where there is no room."""
        if key in self:
            self._forget(key)  # the newest goes to the end
            self._void[key] = self._void.get(key, 0) + 1
        self[key] = record
        self._order.append(key)
        self.bytes += _bytes_of(key, record)
        for _ in range(EXPIRED_AT_ONCE):
            oldest = self._oldest()
            if oldest is None or self[oldest].expires_at > now:
                break
            self._forget_oldest(oldest)
        while len(self) > 1 and (len(self) > KEYS_MAX or self.bytes > KEYS_BYTES_MAX):
            oldest = self._oldest()
            assert oldest is not None
            self._forget_oldest(oldest)

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
        self.bytes -= _bytes_of(key, self.pop(key))

    def restore(self, records: dict[str, KeyRecord]) -> None:
        """Fill an empty table from a snapshot."""
        for key, record in records.items():
            self[key] = record
            self._order.append(key)
            self.bytes += _bytes_of(key, record)


def _bytes_of(key: str, record: KeyRecord) -> int:
    return ENTRY_BYTES + len(key) + len(record.fingerprint) + len(record.answer)
