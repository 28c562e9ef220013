"""Large results, and output, of attempts that have ended: in packs, as payloads are.

Whatever ends while a pack is being written, or waits for its turn in the pace, goes into the next one. The
order makes it safe: a report that refers to a pack is sent after the pack is durable. A pack whose reports
never count (their leases were lost) is waste, and `orphans` finds it by the time in its key.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from .attempts import HeldAttempt, finished_report, inline_result
from .job_frames import JobEnded
from .jobs import BlobRef, ErrorInfo, Finished, Outcome, Result
from .settings import MIB, Settings
from .worker_objects import LOG_PATIENCE_SECONDS, WorkerObjects

PACK_BYTES_MAX = 16 * MIB  # a single larger piece gets a pack of its own


class _Waiting:
    """Pieces of one attempt; `refs` is where they are, or None if they could not be stored."""

    __slots__ = ("done", "patience_seconds", "pieces", "refs")

    def __init__(self, pieces: list[bytes], patience_seconds: float) -> None:
        self.pieces = pieces
        self.patience_seconds = patience_seconds
        self.refs: list[BlobRef] | None = None
        self.done = False

    @property
    def size_bytes(self) -> int:
        return sum(len(piece) for piece in self.pieces)


class WorkerPacks:
    """The packs of one worker's life."""

    def __init__(
        self, objects: WorkerObjects, settings: Settings, session: str, wall: Callable[[], float]
    ) -> None:
        self._objects = objects
        self._settings = settings
        self._session = session
        self._wall = wall
        self._waiting: deque[_Waiting] = deque()
        self._turn = asyncio.Lock()
        self._number = 0

    async def store(self, pieces: list[bytes], patience_seconds: float) -> list[BlobRef] | None:
        """Make the pieces durable, with whatever else waits. None when patience ended first."""
        mine = _Waiting(pieces, patience_seconds)
        self._waiting.append(mine)
        async with self._turn:  # whoever has the turn writes for all that wait
            while not mine.done:
                await self._write_next()
        return mine.refs

    async def _write_next(self) -> None:
        await self._objects.wait_turn()
        group = [self._waiting.popleft()]
        size_bytes = group[0].size_bytes
        while self._waiting and size_bytes + self._waiting[0].size_bytes <= PACK_BYTES_MAX:
            size_bytes += self._waiting[0].size_bytes
            group.append(self._waiting.popleft())
        key = f"results/{int(self._wall() * 1000):012x}-{self._session}-{self._number:06}"
        self._number += 1  # also if it fails: the object may still appear
        data = b"".join(piece for each in group for piece in each.pieces)
        durable = await self._objects.put(key, data, max(each.patience_seconds for each in group))
        offset = 0
        for each in group:
            refs = []
            for piece in each.pieces:
                refs.append(BlobRef(key, offset, len(piece)))
                offset += len(piece)
            each.refs = refs if durable else None
            each.done = True

    async def store_end(self, held: HeldAttempt, ended: JobEnded) -> Finished:
        """Store of an attempt what is too large for its report, and make the report."""
        result = inline_result(ended)
        large = len(ended.data) > self._settings.inline_bytes_max
        output = await held.log.rest() if held.log is not None else b""
        pieces = [piece for piece in (output, ended.data if large else b"") if piece]
        patience_seconds = self._settings.orphan_seconds if large else LOG_PATIENCE_SECONDS
        refs = await self.store(pieces, patience_seconds) if pieces else []
        if large and refs is None:  # the store's fault and not the job's
            ended.outcome, result = Outcome.RELEASED, None
            ended.error = ErrorInfo("StoreError", "the result could not be stored")
        elif large and refs is not None:
            result = Result(ended.content, ref=refs[-1])
        log = refs[0] if output and refs is not None else None
        log_bytes = (held.log.stored_bytes if held.log is not None else 0) + (log.length if log else 0)
        return finished_report(ended, result, log_bytes, log)
