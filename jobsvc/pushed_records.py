"""Records that the leader has pushed and that wait to be applied, within a bound: the rest is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

BYTES_MAX = 256 * 1024 * 1024


class PushedRecords:
    """First in, first out."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, records: Iterable[bytes]) -> None:
        for encoded in records:
            if self._bytes + len(encoded) <= BYTES_MAX:
                self._waiting.append(encoded)
                self._bytes += len(encoded)

    def take(self) -> bytes:
        encoded = self._waiting.popleft()
        self._bytes -= len(encoded)
        return encoded

    def clear(self) -> None:
        self._waiting.clear()
        self._bytes = 0
