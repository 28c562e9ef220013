"""The store: six methods, of which five touch objects and none overwrites.

The journal needs exactly this of a store, and nothing more:

- `put_new` creates an object only if its key does not exist, atomically, whoever else tries.
- `get` returns what was put, or None; a byte range where asked.
- `list` returns all keys under a prefix, in byte order, complete and up to date.
- `delete` forgets a key; forgetting what is not there is no error.
- `delete_many` forgets any number of keys, in no order, with as few requests as the store can. When it fails,
  some may be gone: the caller asks again for all of them.
- `probe` proves at start that the store does what the first line says, and warns of what may hurt.

A `put_new` has three outcomes, not two. CREATED: the bytes are durable under the key. EXISTS: some bytes
are there, durable, perhaps our own from an earlier try. UNKNOWN: nobody can tell; the bytes may even
appear later, after the caller has died. Whoever calls decides with a `get`, or sends the same bytes again.

Reads raise `StoreError` when the store does not answer; the caller tries again. What trying again cannot
mend (no access, no such bucket) is `StoreUnfit`, from any method: it must not look like an outage.

A key is never the folder of another key: with `a` there is no `a/b`. Directories cannot hold both, so no
store is asked to; the directory store refuses the second one.
"""

from __future__ import annotations

import asyncio
import enum
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol

from .errors import InvalidRequest, JobsvcError, StoreUnfit

KEY_BYTES_MAX = 512  # S3 takes 1,024, the service's prefix included
PART_BYTES_MAX = 200  # a file name may have 255
PROBE_KEY = "probe/exclusive"
PROBE_TRIES = 5
PROBE_PAUSE_SECONDS = 0.2  # doubles with each try
HALF_A_DATE_SECONDS = 0.5  # a `Date` is cut to whole seconds


Keys = list[str]  # named here because `list` is a method of every store
Warnings = list[str]


class StoreError(JobsvcError):
    """The store did not answer a read, a list or a delete. Nothing is known; try again."""


class PutOutcome(enum.Enum):
    CREATED = "created"
    EXISTS = "exists"
    UNKNOWN = "unknown"


class StoreDate(NamedTuple):
    """What a store says the time is: the `Date` of an answer, and when it came, by the loop's clock."""

    header: str
    at: float

    def ahead_of(self, wall: float, now: float) -> float | None:
        """By how many seconds the store's clock is ahead of this one; None if it makes no sense."""
        try:
            then = parsedate_to_datetime(self.header).timestamp()
        except ValueError:
            return None
        return then + HALF_A_DATE_SECONDS + now - self.at - wall


def date_of(store: ObjectStore) -> StoreDate | None:
    """The latest, of a store that has a clock of its own."""
    dated: StoreDate | None = getattr(store, "dated", None)
    return dated


class ObjectStore(Protocol):
    """Keys are relative to the service's prefix, ASCII, `/`-separated, without `..` or empty parts."""

    requests: dict[str, int]  # requests made so far by kind: put, get, list, delete
    put_failure: str  # why it is not known how the latest put went, for people; empty if it is

    async def put_new(self, key: str, data: bytes) -> PutOutcome: ...

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None: ...

    async def list(self, prefix: str) -> Keys: ...

    async def delete(self, key: str) -> None: ...

    async def delete_many(self, keys: Keys) -> None: ...

    async def probe(self) -> Warnings:
        """Prove exclusive creation. Raises StoreUnfit; returns warnings for the operator."""
        ...


def check_key(key: str) -> None:
    """Raise InvalidRequest unless every store can hold this key. A prefix is checked as a key it begins."""
    if not key or len(key) > KEY_BYTES_MAX:
        raise InvalidRequest(f"a key has 1 to {KEY_BYTES_MAX} characters, this one {len(key)}", "key")
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest(f"{key!r} has characters outside printable ASCII", "key")
    for part in key.split("/"):
        if part in ("", ".", ".."):
            raise InvalidRequest(f"{key!r} has an empty part, '.' or '..'", "key")
        if len(part) > PART_BYTES_MAX:
            raise InvalidRequest(f"{key!r} has a part over {PART_BYTES_MAX} characters", "key")


def check_prefix(prefix: str) -> None:
    check_key(prefix + "x")


def check_range(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise InvalidRequest(f"offset {offset} and length {length} must not be negative", "range")


def new_request_counts() -> dict[str, int]:
    return {"put": 0, "get": 0, "list": 0, "delete": 0}


def because(failure: str) -> str:
    """What is known of the reason, to be put behind what was not done."""
    return f": {failure}" if failure else ""


def takes_nothing(store: ObjectStore) -> str | None:
    """Why nobody could lead on this store now, if its latest put went nowhere."""
    return f"the store takes nothing: {store.put_failure}" if store.put_failure else None


async def prove_exclusive_create(store: ObjectStore) -> None:
    """Put the probe key twice, with different bytes: the second must be refused and change nothing.

    The key is always the same and never deleted, so that managers which start together cannot take
    each other's probe away and both find the store unfit.
    """
    await _put_answered(store, b"first")
    outcome = await _put_answered(store, b"second")
    found = await store.get(PROBE_KEY)
    if outcome is not PutOutcome.EXISTS or found != b"first":
        raise StoreUnfit(
            "the store does not refuse to create a key that exists, so two leaders could both commit"
            f" (second put: {outcome.value}, found {found!r})"
        )
    if PROBE_KEY not in await store.list("probe/"):
        raise StoreUnfit("the store does not list what was just put")
    await store.delete("probe/never-put")  # nothing to forget: shows that deleting is allowed


async def _put_answered(store: ObjectStore, data: bytes) -> PutOutcome:
    pause_seconds = PROBE_PAUSE_SECONDS
    for _ in range(PROBE_TRIES):
        outcome = await store.put_new(PROBE_KEY, data)
        if outcome is not PutOutcome.UNKNOWN:
            return outcome
        await asyncio.sleep(pause_seconds)
        pause_seconds *= 2
    raise StoreError(f"the store did not answer a put in {PROBE_TRIES} tries{because(store.put_failure)}")


class MemoryObjectStore:
    """An honest store that forgets everything with its process: for tests and simulations.

    One event loop, no waiting inside: each call is atomic. Faults are `FaultyObjectStore`'s business.
    """

    put_failure = ""

    def __init__(self) -> None:
        self.requests = new_request_counts()
        self._objects: dict[str, bytes] = {}

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        check_key(key)
        self.requests["put"] += 1
        if key in self._objects:
            return PutOutcome.EXISTS
        self._objects[key] = bytes(data)
        return PutOutcome.CREATED

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        check_key(key)
        check_range(offset, length)
        self.requests["get"] += 1
        data = self._objects.get(key)
        if data is None or (offset == 0 and length is None):
            return data
        return data[offset : None if length is None else offset + length]

    async def list(self, prefix: str) -> Keys:
        check_prefix(prefix)
        self.requests["list"] += 1
        return sorted(key for key in self._objects if key.startswith(prefix))

    async def delete(self, key: str) -> None:
        check_key(key)
        self.requests["delete"] += 1
        self._objects.pop(key, None)

    async def delete_many(self, keys: Keys) -> None:
        for key in keys:
            check_key(key)
        for key in keys:
            await self.delete(key)

    async def probe(self) -> Warnings:
        await prove_exclusive_create(self)
        return []
