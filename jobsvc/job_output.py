"""Output of jobs, on the worker's side: whose it is, and how much of it is kept.

`OutputSplitter` takes the bytes of the output pipe and cuts them at the marks (`job_frames` tells how
they get there). `OutputKeeper` bounds what one attempt may keep: its head, which leaves in chunks while
the job runs, and its tail, which leaves at the end; in between stands how much was left out.
"""

from __future__ import annotations

from collections import deque

from .job_frames import MARK_BYTES, MARK_TOKEN_BYTES, READY, mark_number
from .settings import KIB

FIRST_CHUNK_SECONDS = 1.0
CHUNK_SECONDS = 5.0
CHUNK_BYTES = 64 * KIB


class OutputSplitter:
    """Cuts a stream at its marks."""

    def __init__(self, token: bytes) -> None:
        assert len(token) == MARK_TOKEN_BYTES
        self._token = token
        self._held = b""  # the end of the last read, if it may be the beginning of a mark

    def feed(self, data: bytes) -> list[tuple[bytes, int | None]]:
        """Pieces in order: bytes, and the number of the mark behind them, or None if none came yet."""
        data = self._held + data if self._held else data
        self._held = b""
        pieces: list[tuple[bytes, int | None]] = []
        start = 0
        while (at := data.find(self._token, start)) >= 0 and at + MARK_BYTES <= len(data):
            pieces.append((data[start:at], mark_number(data[at + MARK_TOKEN_BYTES : at + MARK_BYTES])))
            start = at + MARK_BYTES
        end = self._end_of_certain(data, start)
        self._held = data[end:]
        if end > start:
            pieces.append((data[start:end], None))
        return pieces

    def rest(self) -> bytes:
        """What was held back, when nothing more can come."""
        held, self._held = self._held, b""
        return held

    def _end_of_certain(self, data: bytes, start: int) -> int:
        """Where the bytes end that cannot belong to a mark that is still on its way."""
        at = data.find(self._token[:1], max(start, len(data) - MARK_BYTES + 1))
        while at >= 0:
            tail = data[at : at + MARK_TOKEN_BYTES]
            if self._token.startswith(tail):
                return at
            at = data.find(self._token[:1], at + 1)
        return len(data)


class OutputKeeper:
    """The output of one attempt, within a bound."""

    def __init__(self, bytes_max: int) -> None:
        self._head_room = bytes_max // 2
        self._tail_max = bytes_max - self._head_room
        self._head: list[bytes] = []
        self._head_bytes = 0
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._left_out = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes that could leave now, while the job runs."""
        return self._head_bytes

    def add(self, data: bytes) -> None:
        if self._head_room > 0:
            part = data[: self._head_room]
            self._head.append(part)
            self._head_bytes += len(part)
            self._head_room -= len(part)
            data = data[len(part) :]
        if data:
            self._tail.append(data)
            self._tail_bytes += len(data)
            self._trim()

    def _trim(self) -> None:
        while self._tail and self._tail_bytes - len(self._tail[0]) >= self._tail_max:
            gone = self._tail.popleft()
            self._tail_bytes -= len(gone)
            self._left_out += len(gone)

    def take(self) -> bytes:
        """What can leave now; it is not kept any longer."""
        data = b"".join(self._head)
        self._head.clear()
        self._head_bytes = 0
        return data

    def take_all(self) -> bytes:
        """Everything that is left, when the job has ended."""
        tail = b"".join(self._tail)
        over = max(len(tail) - self._tail_max, 0)
        self._left_out += over
        notice = f"\n... {self._left_out} bytes left out ...\n".encode() if self._left_out else b""
        self._tail.clear()
        self._tail_bytes = 0
        return self.take() + notice + tail[over:]


class ChunkPace:
    """When the output of the job that runs is worth a chunk of its own. Seconds are those it has run."""

    def __init__(self) -> None:
        self._number = READY
        self._due = 0.0

    def begins(self, number: int, seconds: float) -> bool:
        """This job runs. True if it has run for so long that somebody may want to look on."""
        if self._number != number:
            self._number = number
            self._due = FIRST_CHUNK_SECONDS
        return seconds >= FIRST_CHUNK_SECONDS

    def is_due(self, seconds: float, waiting_bytes: int) -> bool:
        """True when what waits should leave; the next chunk then has its turn later."""
        if waiting_bytes == 0 or (seconds < self._due and waiting_bytes < CHUNK_BYTES):
            return False
        self._due = seconds + CHUNK_SECONDS
        return True
