"""Reading ahead: a reader that is far behind asks for many records at a time, and is given them in order.

One GET after the other, a log of ten thousand records takes as many round trips. `ReadAhead.get` answers the
same question as the store's `get`, "what lies under the key of this position", and asks meanwhile for the
records after it. It decides nothing: the reader checks each record at its turn as if it had just been read.

Why it is safe
--------------
The reader steps on only over bytes that continue its chain hash, at its own position. What was read ahead
differs from what is read at its turn in one way: the answer is older. So it is a read whose answer was long
on its way, which a reader must bear anyway, as long as the question is still the same:

- *Bytes that were there* are as good as ever. A number is bound to its bytes (J1), nothing is overwritten. If
  they have been pruned since, they were the history all the same; the reader comes to the first one that
  it does not get, finds nothing under that key, and lists the snapshots, as it always did (J7).
- *Bytes that are not of the history* can lie under a number that was forgotten: a void takeover. The reader
  lists the snapshots after it has the bytes and before it believes a takeover (J7, J9). That order stays: the
  bytes only came earlier, and the snapshot that voids them is older than they are.
- *"Not there"* holds no longer than the moment of its answer, so it is never handed on: the record may have
  been written since. The same goes for a read that failed, and for a record that was too large to be held. At
  its turn such a record is read again, and that answer is the one that counts, for the end of the log
  (J12), for a claim (J8), for silence. Nothing lies between: the reader never waits for a key but its next.
- *Records behind a gap, or behind the takeover that ends their epoch*, may have been read ahead. Nobody asks
  for them: the next position is the reader's choice, and what was held for another epoch is dropped.

A leader that was fenced cannot profit either: its late write fails on the takeover, which lies there whoever
has read it. And a claim begins when a read at its turn found nothing, when nothing is held any more.

How far
-------
Names are guessed, not listed: an epoch has the numbers 0, 1, 2, … without gaps, and LIST is billed like a PUT
and brings a thousand names that mostly are known. The reach grows by one with each record and falls to
nothing at the first that was not there, so what is asked in vain is never more than what was read. After a
restart it grows from the first record. A follower must first read `after_records` in a row, which one that
is pushed to does not: it asks for exactly what it asked for without this module.

Bounds: `records_max` are asked for or held, and each of them with an equal share of `bytes_max`. Of a larger
record only that share is fetched, and dropped. What was asked for and is not wanted any more is cancelled;
a store that works in threads may still finish as many of them as it has threads.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from .errors import StoreUnfit
from .log_records import Position, log_key
from .object_store import ObjectStore, StoreError

MIB = 1024 * 1024


class Reach(NamedTuple):
    """How far a reader may read ahead."""

    records_max: int = 32  # asked for or held
    bytes_max: int = 64 * MIB  # of all of them together
    after_records: int = 32  # read in a row by a follower: about what a leader writes in a second


DEFAULT_REACH = Reach()


class ReadAhead:
    """What was asked for before its turn. One reader's own; one `get` at a time."""

    def __init__(self, store: ObjectStore, reach: Reach = DEFAULT_REACH) -> None:
        self._store = store
        self._reach = reach
        self._record_bytes_max = reach.bytes_max // reach.records_max
        self._epoch = 0
        self._ahead: dict[int, asyncio.Task[bytes | None]] = {}  # by number in the epoch, ascending
        self._row = -reach.after_records  # records read in a row; below 0: not yet enough of them

    def begin(self) -> None:
        """A replay begins: nothing is held, and much is to come."""
        self._drop()
        self._row = 0

    async def get(self, position: Position) -> bytes | None:
        """What lies under the key of this position, which is the reader's next. Raises StoreError."""
        self._forget_all_before(position)
        self._reach_out(position)
        early = self._taken(position.n)
        if early is None:
            encoded = await self._store.get(log_key(position))
        else:
            encoded = await self._at_its_turn(position, await _answer(early))
        if encoded is None:
            self._drop()
            self._row = -self._reach.after_records
        else:
            self._row += 1
        return encoded

    async def _at_its_turn(self, position: Position, early: bytes | None) -> bytes | None:
        """Bytes that came early are as good as new. Nothing that came early means nothing."""
        if early is not None:
            return early
        self._row = min(self._row, 0)  # the end is near, or the store in trouble, or the records are large
        return await self._store.get(log_key(position))

    def _taken(self, n: int) -> asyncio.Task[bytes | None] | None:
        return self._ahead.pop(n, None)

    def _reach_out(self, position: Position) -> None:
        for n in range(position.n + 1, position.n + 1 + min(self._row, self._reach.records_max)):
            if n not in self._ahead:
                key = log_key(Position(position.epoch, n))
                self._ahead[n] = asyncio.create_task(self._fetched(key), name=f"reads {key} ahead")

    async def _fetched(self, key: str) -> bytes | None:
        """The record, or None for whatever reason: its turn will tell."""
        try:
            encoded = await self._store.get(key, 0, self._record_bytes_max)
        except (StoreError, StoreUnfit):
            return None
        if encoded is None or len(encoded) == self._record_bytes_max:
            return None
        return encoded

    def _forget_all_before(self, position: Position) -> None:
        """Pushed records have been stepped over, or an epoch has ended."""
        if position.epoch != self._epoch:
            self._epoch = position.epoch
            self._drop()
            self._row = min(self._row, 0)  # nobody knows how many records the next epoch has
        while self._ahead and (n := next(iter(self._ahead))) < position.n:
            self._ahead.pop(n).cancel()

    def _drop(self) -> None:
        for task in self._ahead.values():
            task.cancel()
        self._ahead.clear()


async def _answer(early: asyncio.Task[bytes | None]) -> bytes | None:
    if early.done():
        await asyncio.sleep(0)  # else a reader with all records at hand would let nobody else go on
    return await early
