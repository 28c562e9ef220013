"""Snapshots and pruning: what is kept, what is trusted, and what a damaged one costs."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from jobsvc.errors import DataMissing
from jobsvc.faulty_store import FaultyObjectStore
from jobsvc.journal import LogReader, LogWriter, StaleReader, claim
from jobsvc.log_records import Mark, Position, log_key, snapshot_key
from jobsvc.object_store import MemoryObjectStore, StoreError
from jobsvc.snapshots import InvalidSnapshot, list_snapshots, load_newest, prune, write_snapshot
from tests.simulation.virtual_loop import run

CLUSTER = b"cluster of tests"


def nonce(name: str) -> bytes:
    return name.encode().ljust(16, b".")


class RottingStore(MemoryObjectStore):
    """A memory store on which bits can rot, and which remembers the order of deletions."""

    def __init__(self) -> None:
        super().__init__()
        self.deleted: list[str] = []

    def rot(self, key: str) -> None:
        data = bytearray(self._objects[key])
        data[-1] ^= 1
        self._objects[key] = bytes(data)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self._objects if key.startswith(prefix))

    async def delete(self, key: str) -> None:
        self.deleted.append(key)
        await super().delete(key)


async def led(store: MemoryObjectStore, name: str = "a") -> LogWriter:
    """A leader that has read everything."""
    reader = LogReader(store, CLUSTER)
    await reader.restart()
    while await reader.read_next() is not None:
        pass
    writer = await claim(reader, nonce=nonce(name), log_time=0.0, random=Random(1))
    assert writer is not None
    return writer


async def grown(writer: LogWriter, records: int) -> list[Mark]:
    marks = []
    for number in range(records):
        await writer.append(b"%d" % number, 1, writer.mark.log_time + 1)
        marks.append(writer.mark)
    return marks


# --- writing and loading --------------------------------------------------------------------------


def test_a_snapshot_is_found_again_with_its_mark() -> None:
    async def story() -> None:
        store = RottingStore()
        (mark,) = await grown(await led(store), 1)
        body = bytes(range(256)) * 40_000  # more than two slices
        await write_snapshot(store, CLUSTER, mark, body)
        loaded = await load_newest(store, CLUSTER)
        assert (loaded.mark, loaded.body, loaded.invalid) == (mark, body, frozenset())

    run(story())


def test_an_empty_state_is_a_state() -> None:
    async def story() -> None:
        store = RottingStore()
        (mark,) = await grown(await led(store), 1)
        await write_snapshot(store, CLUSTER, mark, b"")
        assert (await load_newest(store, CLUSTER)).body == b""

    run(story())


def test_before_the_first_record_there_is_nothing_to_keep() -> None:
    with pytest.raises(ValueError, match="first record"):
        run(write_snapshot(MemoryObjectStore(), CLUSTER, Mark(), b""))


def test_the_same_position_twice_counts_once_if_the_first_is_good() -> None:
    async def story() -> None:
        store = RottingStore()
        (mark,) = await grown(await led(store), 1)
        await write_snapshot(store, CLUSTER, mark, b"encoded by one")
        await write_snapshot(store, CLUSTER, mark, b"encoded by the other, in another order")
        assert (await load_newest(store, CLUSTER)).body == b"encoded by one"

    run(story())


def test_a_rotten_one_in_the_place_is_not_counted_on() -> None:
    async def story() -> None:
        store = RottingStore()
        (mark,) = await grown(await led(store), 1)
        await write_snapshot(store, CLUSTER, mark, b"state")
        store.rot(snapshot_key(mark.last_position or Position(0, 0)))
        with pytest.raises(InvalidSnapshot, match="does not fit"):
            await write_snapshot(store, CLUSTER, mark, b"state")

    run(story())


def test_a_put_that_never_lands_is_an_error_to_try_again() -> None:
    async def story() -> None:
        store = RottingStore()
        (mark,) = await grown(await led(store), 1)
        broken = FaultyObjectStore(store, Random(1), put_error_rate=1.0)
        with pytest.raises(StoreError, match="not there after"):
            await write_snapshot(broken, CLUSTER, mark, b"state")

    run(story())


def test_a_snapshot_of_another_cluster_is_none() -> None:
    async def story() -> None:
        store = RottingStore()
        (mark,) = await grown(await led(store), 1)
        await write_snapshot(store, CLUSTER, mark, b"state")
        with pytest.raises(DataMissing, match="another service"):
            await load_newest(store, b"another cluster.")

    run(story())


@pytest.mark.parametrize("cut", [0, 10, 80, 150, 250])
def test_no_cut_off_snapshot_passes(cut: int) -> None:
    async def story() -> None:
        store = RottingStore()
        (mark,) = await grown(await led(store), 1)
        await write_snapshot(store, CLUSTER, mark, b"x" * 300)
        key = store.keys("snapshots/")[0]
        store._objects[key] = store._objects[key][:cut]
        with pytest.raises(DataMissing, match="no snapshot verifies"):
            await load_newest(store, CLUSTER)

    run(story())


def test_with_a_damaged_newest_one_replay_goes_on_from_the_older() -> None:
    async def story() -> None:
        store = RottingStore()
        writer = await led(store)
        marks = await grown(writer, 4)
        await write_snapshot(store, CLUSTER, marks[0], b"old")
        await write_snapshot(store, CLUSTER, marks[2], b"new")
        await prune(store, CLUSTER)
        store.rot(snapshot_key(Position(1, 2)))
        reader = LogReader(store, CLUSTER)
        assert await reader.restart() == b"old"
        read = [await reader.read_next() for _ in range(4)]
        assert [record.body for record in read if record] == [b"1", b"2", b"3"]

    run(story())


# --- pruning --------------------------------------------------------------------------------------


def test_two_snapshots_and_all_after_the_older_one_stay() -> None:
    async def story() -> None:
        store = RottingStore()
        marks = await grown(await led(store), 6)
        for mark in (marks[0], marks[2], marks[4]):
            await write_snapshot(store, CLUSTER, mark, b"state")
        assert await prune(store, CLUSTER) == 4
        assert await list_snapshots(store) == [(1, 2), (1, 4)]
        assert store.keys("log/") == [log_key(Position(*at)) for at in ((0, 0), (1, 3), (1, 4), (1, 5))]
        assert store.deleted == [snapshot_key(Position(1, 0))] + [log_key(Position(1, n)) for n in range(3)]
        assert await prune(store, CLUSTER) == 0

    run(story())


def test_one_snapshot_prunes_nothing() -> None:
    async def story() -> None:
        store = RottingStore()
        marks = await grown(await led(store), 3)
        await write_snapshot(store, CLUSTER, marks[2], b"state")
        assert await prune(store, CLUSTER) == 0

    run(story())


def test_takeovers_stay_for_ever_and_void_ones_go() -> None:
    async def story() -> None:
        store = RottingStore()
        await grown(await led(store, "a"), 2)
        await grown(await led(store, "b"), 2)
        marks = await grown(await led(store, "c"), 5)
        await write_snapshot(store, CLUSTER, marks[0], b"state")
        await write_snapshot(store, CLUSTER, marks[1], b"state")
        await prune(store, CLUSTER)
        kept = [Position(0, 0), Position(1, 2), Position(2, 2), Position(3, 1), Position(3, 2)]
        assert store.keys("log/")[:5] == [log_key(at) for at in kept]
        # what a void claimant leaves at a pruned number
        await store.put_new(log_key(Position(1, 0)), b"a takeover that counts for nobody")
        await prune(store, CLUSTER)
        assert log_key(Position(1, 0)) not in store.keys("log/")
        assert log_key(Position(1, 2)) in store.keys("log/")

    run(story())


def test_what_a_damaged_older_snapshot_covered_is_kept() -> None:
    async def story() -> None:
        store = RottingStore()
        marks = await grown(await led(store), 6)
        for mark in (marks[0], marks[2], marks[4]):
            await write_snapshot(store, CLUSTER, mark, b"state")
        store.rot(snapshot_key(Position(1, 2)))
        assert await prune(store, CLUSTER) == 1  # the record that the oldest one covers
        assert await list_snapshots(store) == [(1, 0), (1, 2), (1, 4)]
        store.rot(snapshot_key(Position(1, 4)))
        reader = LogReader(store, CLUSTER)
        assert await reader.restart() == b"state"
        assert reader.mark.next_position == (1, 1)
        while await reader.read_next() is not None:
            pass
        assert reader.mark.next_position == (1, 6)

    run(story())


def test_twenty_thousand_records_are_pruned_in_a_minute() -> None:
    async def story() -> None:
        store = MemoryObjectStore()
        marks = await grown(await led(store), 3)
        await write_snapshot(store, CLUSTER, marks[1], b"state")
        await write_snapshot(store, CLUSTER, marks[2], b"state")
        for n in range(20_000):  # junk under the epoch that lies before the older snapshot
            store._objects[log_key(Position(0, n + 1))] = b""
        loop = asyncio.get_running_loop()
        most = 0

        class Slow(FaultyObjectStore):
            async def delete(self, key: str) -> None:
                nonlocal most
                await asyncio.sleep(0.03)
                most = max(most, len(self.flying))
                await store.delete(key)

        began = loop.time()
        assert await prune(Slow(store, Random(1)), CLUSTER) == 20_002
        assert loop.time() - began < 60
        assert most <= 16

    run(story())


# --- a late claim among damaged snapshots ------------------------------------------------------------


async def late_claim(store: RottingStore, rotten: int) -> LogReader:
    """Snapshots at (1,0), (1,2), (1,4); pruned to (1,2), whose snapshot deletion got lost; and a takeover
    that was sent long ago lands on the pruned number (1,1)."""
    writer = await led(store)
    marks = await grown(writer, 6)
    await write_snapshot(store, CLUSTER, marks[0], b"oldest")
    oldest = store._objects[snapshot_key(Position(1, 0))]
    late = LogReader(store, CLUSTER, marks[0])
    await write_snapshot(store, CLUSTER, marks[2], b"middle")
    await write_snapshot(store, CLUSTER, marks[4], b"newest")
    await prune(store, CLUSTER)
    store._objects[snapshot_key(Position(1, 0))] = oldest
    late._end_is_proved = True  # it had read to the end, long ago
    with pytest.raises(StaleReader, match="void claim"):
        await claim(late, nonce=nonce("late"), log_time=0.0, random=Random(1))
    for n in (4, 2)[:rotten]:
        store.rot(snapshot_key(Position(1, n)))
    return LogReader(store, CLUSTER)


def test_one_damaged_snapshot_fools_nobody() -> None:
    async def story() -> None:
        store = RottingStore()
        reader = await late_claim(store, rotten=1)
        assert await reader.restart() == b"middle"
        while await reader.read_next() is not None:
            pass
        assert reader.mark.next_position == (1, 6)

    run(story())


def test_with_two_damaged_snapshots_it_stops_rather_than_lose_records() -> None:
    async def story() -> None:
        store = RottingStore()
        reader = await late_claim(store, rotten=2)
        assert await reader.restart() == b"oldest"
        with pytest.raises(DataMissing, match="none of the 2 newer snapshots verifies"):
            await reader.read_next()

    run(story())


def test_a_true_takeover_behind_a_damaged_snapshot_is_followed() -> None:
    async def story() -> None:
        store = RottingStore()
        marks = await grown(await led(store, "a"), 2)
        await write_snapshot(store, CLUSTER, marks[0], b"older")
        marks = await grown(await led(store, "b"), 2)
        await write_snapshot(store, CLUSTER, marks[0], b"newer")
        await prune(store, CLUSTER)
        store.rot(snapshot_key(Position(2, 0)))
        reader = LogReader(store, CLUSTER)
        assert await reader.restart() == b"older"
        while await reader.read_next() is not None:
            pass
        assert reader.mark.next_position == (2, 2)

    run(story())
