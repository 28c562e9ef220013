"""The store: five methods, of which four touch objects and none overwrites.

The journal needs exactly this of a store, and nothing more:

- `put_new` creates an object only if its key does not exist, atomically, whoever else tries.
- `get` returns what was put, or None; a byte range where asked.
- `list` returns all keys under a prefix, in byte order, complete and up to date.
- `delete` forgets a key; forgetting what is not there is no error.
- `probe` proves at start that the store does what the first line says, and warns of what may hurt.

A `put_new` has three outcomes, not two. CREATED: the bytes are durable under the key. EXISTS: some bytes
are there, perhaps our own from an earlier try. UNKNOWN: nobody can tell; the bytes may even appear
later, after the caller has died. Whoever calls decides with a `get`, or sends the same bytes again.

Reads raise `StoreError` when the store does not answer; the caller tries again.
"""

from __future__ import annotations

import enum
from typing import Protocol

from .errors import JobsvcError


class StoreError(JobsvcError):
    """The store did not answer a read, a list or a delete. Nothing is known; try again."""


class PutOutcome(enum.Enum):
    CREATED = "created"
    EXISTS = "exists"
    UNKNOWN = "unknown"


class ObjectStore(Protocol):
    """Keys are relative to the service's prefix, ASCII, `/`-separated, without `..` or empty parts."""

    requests: dict[str, int]  # requests made so far by kind: put, get, list, delete

    async def put_new(self, key: str, data: bytes) -> PutOutcome: ...

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None: ...

    async def list(self, prefix: str) -> list[str]: ...

    async def delete(self, key: str) -> None: ...

    async def probe(self) -> list[str]:
        """Prove exclusive creation. Raises StoreUnfit; returns warnings for the operator."""
        ...
