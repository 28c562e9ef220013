"""What a worker keeps in the store: payloads it reads, results, logs and the outbox it writes.

Every key of a worker contains an attempt or a session, and no two writers share one, so an object that
exists already is our own from a try whose answer got lost. Writes are repeated with the same bytes until
they are known to be there or patience ends; whoever calls says what that means.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import TypeVar

from .jobs import BlobRef, Finished, encode, id_text
from .object_store import ObjectStore, PutOutcome, StoreError
from .put_pace import PutPace
from .settings import KIB, MIB

REQUESTS_MAX = 8  # in the air at once
SPAN_BYTES_MAX = 8 * MIB  # of a pack, read in one piece
GAP_BYTES_MAX = 64 * KIB  # between two ranges that are read together
FETCH_TRIES = 6
LOG_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.1
_PAUSE_SECONDS_MAX = 5.0

T = TypeVar("T")


class PayloadMissing(Exception):
    """The object, or the range in it, is not there: waiting will not bring it back."""


def log_key(job_id: bytes, attempt: int, number: int) -> str:
    return f"logs/{id_text(job_id)}/{attempt}/{number:06}"


def outbox_prefix(worker: str) -> str:
    return f"outbox/{worker}/"


def outbox_key(worker: str, session: str, number: int) -> str:
    return f"{outbox_prefix(worker)}{session}/{number:06}"


class WorkerObjects:
    """The store with a worker's patience, and at a worker's pace."""

    def __init__(self, store: ObjectStore, random: random.Random) -> None:
        self._store = store
        self.pace = PutPace()
        self._random = random
        self._turns = asyncio.Semaphore(REQUESTS_MAX)

    async def wait_turn(self) -> None:
        """Wait until the pace allows a PUT that is not urgent."""
        await asyncio.sleep(self.pace.wait_seconds(asyncio.get_running_loop().time()))

    async def put(self, key: str, data: bytes, patience_seconds: float) -> bool:
        """True when the bytes are durable; False when patience ended before anyone could tell. At once."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_seconds
        tries = 0
        while True:
            try:
                async with self._turns:
                    self.pace.note_put(loop.time())
                    outcome = await self._store.put_new(key, data)
            except StoreError:
                outcome = PutOutcome.UNKNOWN
            if outcome is not PutOutcome.UNKNOWN:
                return True
            pause = self._pause(tries)
            if loop.time() + pause > deadline:
                return False
            tries += 1
            await asyncio.sleep(pause)

    async def fetch(self, refs: list[BlobRef]) -> list[bytes | PayloadMissing]:
        """The bytes of ranges that `together` grouped. Raises StoreError when the store does not answer."""
        first = min(ref.offset for ref in refs)
        span = max(ref.offset + ref.length for ref in refs) - first
        data = await self._read(refs[0].key, first, span)
        return [_part(data, ref, first) for ref in refs]

    async def _read(self, key: str, offset: int, length: int) -> bytes | None:
        tries = 0
        while True:
            try:
                async with self._turns:
                    return await self._store.get(key, offset, length)
            except StoreError:
                tries += 1
                if tries == FETCH_TRIES:
                    raise
            await asyncio.sleep(self._pause(tries))

    def _pause(self, tries: int) -> float:
        longest: float = min(_PAUSE_SECONDS * 2**tries, _PAUSE_SECONDS_MAX)
        return longest * self._random.uniform(0.5, 1.0)

    async def put_outbox(
        self, worker: str, session: str, number: int, finished: list[Finished], patience_seconds: float
    ) -> bool:
        return await self.put(outbox_key(worker, session, number), encode(finished), patience_seconds)


def together(items: Iterable[T], ref_of: Callable[[T], BlobRef | None]) -> list[list[T]]:
    """Items in groups whose ranges lie close together in one object, so that one read brings a group."""
    groups: list[list[T]] = []
    first, end = BlobRef("", 0, 0), 0
    for item in items:
        ref = ref_of(item)
        if ref is None:
            continue
        near = ref.key == first.key and first.offset <= ref.offset <= end + GAP_BYTES_MAX
        if groups and near and ref.offset + ref.length - first.offset <= SPAN_BYTES_MAX:
            groups[-1].append(item)
            end = max(end, ref.offset + ref.length)
        else:
            groups.append([item])
            first, end = ref, ref.offset + ref.length
    return groups


def _part(data: bytes | None, ref: BlobRef, first: int) -> bytes | PayloadMissing:
    if data is None:
        return PayloadMissing(f"the payload object {ref.key} does not exist")
    part = data[ref.offset - first : ref.offset - first + ref.length]
    if len(part) < ref.length:
        return PayloadMissing(f"the payload object {ref.key} ends before byte {ref.offset + ref.length}")
    return part


class AttemptLog:
    """The output of one attempt. While it runs, chunks are stored now and then; the rest goes into a pack.

    What cannot be stored is not counted.
    """

    def __init__(self, objects: WorkerObjects, job_id: bytes, attempt: int) -> None:
        self._objects = objects
        self._job_id = job_id
        self._attempt = attempt
        self._waiting: list[bytes] = []
        self._number = 0
        self.stored_bytes = 0  # in chunks
        self._turn = asyncio.Lock()

    @property
    def waiting_bytes(self) -> int:
        return sum(len(data) for data in self._waiting)

    @property
    def due(self) -> bool:
        """A chunk may be stored now."""
        now = asyncio.get_running_loop().time()
        return bool(self._waiting) and not self._turn.locked() and self._objects.pace.wait_seconds(now) == 0

    def add(self, data: bytes) -> None:
        self._waiting.append(data)

    async def upload(self) -> None:
        """Store what waits as one chunk."""
        async with self._turn:
            data = self._take()
            if not data:
                return
            key = log_key(self._job_id, self._attempt, self._number)
            self._number += 1  # also if it fails: the object may still appear, and no number is used twice
            if await self._objects.put(key, data, LOG_PATIENCE_SECONDS):
                self.stored_bytes += len(data)

    async def rest(self) -> bytes:
        """What no chunk has, when the attempt has ended."""
        async with self._turn:
            return self._take()

    def _take(self) -> bytes:
        data, self._waiting = b"".join(self._waiting), []
        return data
