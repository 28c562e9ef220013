"""The rules of the journal, each as a story."""

from __future__ import annotations

import asyncio
from collections import deque
from random import Random
from typing import Any

import pytest

from jobsvc.errors import DataMissing, Fenced, StoreUnfit
from jobsvc.journal import LogReader, LogWriter, Record, StaleReader, StepDown, claim, open_prefix
from jobsvc.log_records import (
    InvalidRecord,
    Mark,
    Position,
    data_record,
    decode_record,
    log_key,
    positions_of,
    snapshot_key,
    takeover_record,
)
from jobsvc.object_store import MemoryObjectStore, PutOutcome, StoreError
from jobsvc.snapshots import prune, write_snapshot
from tests.simulation.virtual_loop import run

CLUSTER = b"cluster of tests"


def nonce(name: str) -> bytes:
    return name.encode().ljust(16, b".")


class ScriptedStore(MemoryObjectStore):
    """A memory store whose next puts and reads go as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.puts: deque[str] = deque()  # "error", "lost", "silent": without effect, answer, or end
        self.failing: set[str] = set()  # kinds of reads that do not answer
        self.sent: list[tuple[str, bytes]] = []
        self.before_get: Any = None

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        self.sent.append((key, data))
        fault = self.puts.popleft() if self.puts else ""
        if fault == "error":
            return PutOutcome.UNKNOWN
        if fault == "silent":
            await asyncio.sleep(1e6)
        outcome = await super().put_new(key, data)
        return PutOutcome.UNKNOWN if fault == "lost" else outcome

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        if self.before_get is not None:
            hook, self.before_get = self.before_get, None
            await hook()
        if "get" in self.failing:
            raise StoreError("no answer")
        return await super().get(key, offset, length)

    async def list(self, prefix: str) -> list[str]:
        if "list" in self.failing:
            raise StoreError("no answer")
        return await super().list(prefix)

    def lose(self, key: str) -> None:
        del self._objects[key]

    def write(self, key: str, data: bytes) -> None:
        self._objects[key] = data


async def followed(store: MemoryObjectStore) -> LogReader:
    """A reader at the end of the log."""
    reader = LogReader(store, CLUSTER)
    await reader.restart()
    while await reader.read_next() is not None:
        pass
    return reader


async def led(reader: LogReader, name: str = "a") -> LogWriter:
    writer = await claim(reader, nonce=nonce(name), log_time=0.0, random=Random(1))
    assert writer is not None
    return writer


async def grown(writer: LogWriter, *bodies: bytes) -> list[Mark]:
    marks = []
    for body in bodies:
        await writer.append(body, 1, writer.mark.log_time + 1)
        marks.append(writer.mark)
    return marks


async def bodies_of(store: MemoryObjectStore) -> list[bytes]:
    reader = LogReader(store, CLUSTER)
    await reader.restart()
    read: list[Record] = []
    while (record := await reader.read_next()) is not None:
        read.append(record)
    return [record.body for record in read if record.kind == "data"]


# --- bytes ----------------------------------------------------------------------------------------


def test_a_record_is_what_was_written() -> None:
    mark = Mark(Position(3, 7), bytes(range(32)), 5.0, {0: 1, 1: 2, 2: 3}, 99)
    record = data_record(mark, CLUSTER, nonce("w"), body=b"body", count=2, log_time=6.5)
    assert decode_record(record.encoded, CLUSTER) == record
    assert mark.after(record) == Mark(Position(3, 8), record.chain, 6.5, mark.ends, 100)


def test_a_takeover_ends_its_epoch() -> None:
    mark = Mark(Position(0, 4), bytes(32), 5.0)
    after = mark.after(takeover_record(mark, CLUSTER, nonce("w"), log_time=5.0))
    assert after.next_position == (1, 0)
    assert after.ends == {0: 4}
    assert after.last_position == (0, 4)


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    encoded = data_record(Mark(), CLUSTER, nonce("w"), body=b"body", count=1, log_time=1.0).encoded
    for place in range(len(encoded)):
        broken = bytearray(encoded)
        broken[place] ^= 1 << place % 8
        with pytest.raises(InvalidRecord):
            decode_record(bytes(broken), CLUSTER)
        with pytest.raises(InvalidRecord):
            decode_record(encoded[:place], CLUSTER)
    with pytest.raises(InvalidRecord, match="another service"):
        decode_record(encoded, b"another cluster.")


def test_keys_order_as_the_log_does() -> None:
    positions = [Position(e, n) for e in (0, 1, 9, 10, 11) for n in (0, 1, 9, 10, 999_999_999_999)]
    keys = [log_key(position) for position in positions]
    assert sorted(keys) == keys
    assert positions_of([*keys, "log/", "log/x", "log/1/2", "other"], "log/") == positions


# --- J3: what the outcome of a put means ----------------------------------------------------------


@pytest.mark.parametrize("faults", [["lost"], ["error"], ["error", "error", "lost"], ["lost", "error"]])
def test_an_unknown_outcome_is_asked_for_with_the_same_bytes(faults: list[str]) -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        store.sent.clear()
        store.puts.extend(faults)
        await grown(writer, b"one")
        assert len(set(store.sent)) == 1
        assert len(store.sent) == len(faults) + (faults[-1:] != [])
        assert await bodies_of(store) == [b"one"]

    run(story())


def test_bytes_of_somebody_else_have_fenced_me() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store), "a")
        await grown(writer, b"one")
        await led(await followed(store), "b")
        with pytest.raises(Fenced, match="takeover record of process 62"):
            await writer.append(b"two", 1, 9.0)
        with pytest.raises(Fenced):  # for good
            await writer.append(b"two", 1, 9.0)
        assert await bodies_of(store) == [b"one"]

    run(story())


def test_exists_without_bytes_proves_nothing() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        key = log_key(Position(1, 0))
        store.write(key, b"there for a moment")

        async def vanish() -> None:
            store.lose(key)

        store.before_get = vanish
        await grown(writer, b"one")
        assert await bodies_of(store) == [b"one"]

    run(story())


# --- J2, J4: one in the air, and when to stop -----------------------------------------------------


def test_one_record_at_a_time() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        store.puts.append("silent")
        first = asyncio.create_task(writer.append(b"one", 1, 1.0))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one record at a time"):
            await writer.append(b"two", 1, 1.0)
        first.cancel()

    run(story())


@pytest.mark.parametrize("fault", ["error", "silent"])
def test_a_store_that_answers_nothing_ends_the_leadership(fault: str) -> None:
    async def story() -> None:
        store = ScriptedStore()
        loop = asyncio.get_running_loop()
        writer = await led(await followed(store))
        store.puts.extend([fault] * 10_000)
        began = loop.time()
        with pytest.raises(StepDown):
            await writer.append(b"one", 1, 1.0)
        assert 9.0 <= loop.time() - began <= 16.0
        with pytest.raises(StepDown):
            await writer.append(b"one", 1, 1.0)

    run(story())


def test_answers_that_settle_nothing_do_not_keep_a_leader_alive() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        store.write(log_key(Position(1, 0)), b"unreadable at the moment")
        store.failing.add("get")
        with pytest.raises(StepDown):
            await writer.append(b"one", 1, 1.0)

    run(story())


def test_a_leader_that_slept_long_gets_one_more_answer() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        await asyncio.sleep(3600)
        await grown(writer, b"one")
        assert await bodies_of(store) == [b"one"]

    run(story())


def test_after_a_cancelled_append_only_the_same_record_can_follow() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        for same in (True, False):
            number = writer.mark.next_position.n
            store.puts.append("silent")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await writer.append(b"first", 1, 1.0)
            if same:
                record = await writer.append(b"first", 1, 1.0)
                assert record.position == (1, number)
        with pytest.raises(StepDown, match="may already hold another record"):
            await writer.append(b"other", 1, 1.0)

    run(story())


def test_log_time_never_goes_back() -> None:
    async def story() -> None:
        store = ScriptedStore()
        reader = await followed(store)
        writer = await claim(reader, nonce=nonce("a"), log_time=100.0, random=Random(1))
        assert writer is not None
        for bad in (99.0, float("nan")):
            with pytest.raises(ValueError, match="log time"):
                await writer.append(b"one", 1, bad)
        await writer.append(b"one", 1, 100.0)
        later = await claim(await followed(store), nonce=nonce("b"), log_time=7.0, random=Random(1))
        assert later is not None
        assert later.mark.log_time == 100.0
        forged = data_record(later.mark, CLUSTER, nonce("b"), body=b"", count=0, log_time=99.0)
        store.write(log_key(Position(2, 0)), forged.encoded)
        reader = LogReader(store, CLUSTER)
        with pytest.raises(StaleReader, match="log time goes back"):
            while await reader.read_next() is not None:
                pass

    run(story())


# --- J6: reading ----------------------------------------------------------------------------------


def test_a_reader_never_looks_past_a_gap_or_a_takeover() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store), "a")
        await grown(writer, b"one")
        reader = await followed(store)
        orphan = data_record(writer.mark, CLUSTER, nonce("a"), body=b"?", count=1, log_time=9.0)
        store.write(log_key(Position(1, 2)), orphan.encoded)  # beyond a gap
        assert await reader.read_next() is None
        await led(reader, "b")
        store.write(log_key(Position(1, 2)), orphan.encoded)  # beyond the takeover at (1, 1)
        other = LogReader(store, CLUSTER)
        seen = []
        while (record := await other.read_next()) is not None:
            seen.append(record.position)
        assert seen == [(0, 0), (1, 0), (1, 1)]

    run(story())


def test_what_was_pushed_is_taken_only_if_it_is_the_next() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        reader = await followed(store)
        one = await writer.append(b"one", 1, 1.0)
        two = await writer.append(b"two", 1, 1.0)
        assert reader.accept_pushed(two.encoded) is None
        assert reader.accept_pushed(b"noise") is None
        assert reader.accept_pushed(one.encoded) == one
        assert reader.accept_pushed(one.encoded) is None
        assert await reader.read_next() == two
        takeover = takeover_record(reader.mark, CLUSTER, nonce("b"), log_time=1.0)
        assert reader.accept_pushed(takeover.encoded) is None

    run(story())


def test_a_push_may_overtake_a_read() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        reader = await followed(store)
        one = await writer.append(b"one", 1, 1.0)
        two = await writer.append(b"two", 1, 1.0)

        async def push() -> None:
            assert reader.accept_pushed(one.encoded) == one

        store.before_get = push
        assert await reader.read_next() == two
        assert await reader.read_next() is None

    run(story())


def test_a_damaged_record_stops_the_second_time() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        await grown(writer, b"one", b"two")
        key = log_key(Position(1, 1))
        whole = store._objects[key]
        store.write(key, whole[:-1] + bytes([whole[-1] ^ 1]))
        reader = LogReader(store, CLUSTER)
        with pytest.raises(StaleReader, match="checksum"):
            while await reader.read_next() is not None:
                pass
        with pytest.raises(StaleReader, match="not restarted"):
            await reader.read_next()
        await reader.restart()
        with pytest.raises(DataMissing, match="a fresh replay found the same"):
            while await reader.read_next() is not None:
                pass

    run(story())


def test_a_record_of_another_history_sends_the_reader_back_once() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        marks = await grown(writer, b"one", b"two", b"three")
        forked = Mark(marks[0].next_position, bytes(32), 1.0, marks[0].ends, marks[0].records)
        reader = LogReader(store, CLUSTER, forked)
        with pytest.raises(StaleReader, match="chain hash"):
            await reader.read_next()
        await reader.restart()
        while await reader.read_next() is not None:
            pass
        assert reader.mark.next_position == (1, 3)

    run(story())


# --- J7, J8, J9: takeovers ------------------------------------------------------------------------


def test_genesis_is_a_takeover_like_any_other() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        assert writer.epoch == 1
        assert writer.mark.next_position == (1, 0)
        assert sorted(store._objects) == [log_key(Position(0, 0))]

    run(story())


def test_of_two_claims_one_wins_and_the_other_follows() -> None:
    async def story() -> None:
        store = ScriptedStore()
        first, second = await followed(store), await followed(store)
        writer = await led(first, "a")
        assert await claim(second, nonce=nonce("b"), log_time=0.0, random=Random(1)) is None
        record = await second.read_next()
        assert record is not None
        assert record.nonce == nonce("a")
        await grown(writer, b"one")
        assert await bodies_of(store) == [b"one"]

    run(story())


def test_a_claim_whose_answer_got_lost_is_still_won() -> None:
    async def story() -> None:
        store = ScriptedStore()
        reader = await followed(store)
        store.puts.extend(["lost", "error"])
        assert (await led(reader)).epoch == 1

    run(story())


async def pruned(store: ScriptedStore) -> tuple[LogWriter, list[Mark]]:
    """A leader of epoch 1 with six records, of which all up to (1, 2) are pruned."""
    writer = await led(await followed(store), "leader")
    marks = await grown(writer, b"0", b"1", b"2", b"3", b"4", b"5")
    for mark in (marks[2], marks[4]):
        await write_snapshot(store, CLUSTER, mark, b"state")
    await prune(store, CLUSTER)
    return writer, marks


async def late_reader(store: ScriptedStore, mark: Mark) -> LogReader:
    """It read to the end once, when the end was there."""
    reader = LogReader(store, CLUSTER, mark)
    reader._end_is_proved = True
    return reader


def test_a_claim_at_a_pruned_number_is_void_and_fools_no_reader() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer, marks = await pruned(store)
        claimant, bystander = await late_reader(store, marks[0]), await late_reader(store, marks[0])
        with pytest.raises(StaleReader, match="void claim"):
            await claim(claimant, nonce=nonce("void"), log_time=0.0, random=Random(1))
        assert await store.get(log_key(Position(1, 1))) is not None
        with pytest.raises(StaleReader, match="behind the snapshot"):
            await bystander.read_next()
        await writer.append(b"6", 1, 99.0)  # the true leader has noticed nothing
        for reader in (claimant, bystander):
            assert await reader.restart() == b"state"
            while await reader.read_next() is not None:
                pass
            assert reader.mark.next_position == (1, 7)

    run(story())


def test_the_winner_asks_for_the_snapshots_until_it_knows() -> None:
    async def story() -> None:
        store = ScriptedStore()
        reader = await followed(store)
        store.failing.add("list")
        asyncio.get_running_loop().call_later(2.0, store.failing.clear)
        assert (await led(reader)).epoch == 1
        store.failing.add("list")
        with pytest.raises(StepDown, match="no list of snapshots"):
            await claim(await followed_despite(store), nonce=nonce("b"), log_time=0.0, random=Random(1))

    async def followed_despite(store: ScriptedStore) -> LogReader:
        store.failing.clear()
        reader = await followed(store)
        store.failing.add("list")
        return reader

    run(story())


def test_a_reader_that_waits_at_a_pruned_number_finds_out() -> None:
    async def story() -> None:
        store = ScriptedStore()
        _, marks = await pruned(store)
        reader = await late_reader(store, marks[0])
        assert await reader.read_next() is None
        with pytest.raises(StaleReader, match="not there to read"):
            await reader.check_stale()
        at_the_end = await followed(store)
        await at_the_end.check_stale()

    run(story())


def test_a_fenced_leaders_late_write_cannot_land_even_after_pruning() -> None:
    async def story() -> None:
        store = ScriptedStore()
        old = await led(await followed(store), "old")
        await grown(old, b"one")
        zombie = data_record(old.mark, CLUSTER, nonce("old"), body=b"late", count=1, log_time=9.0)
        new = await led(await followed(store), "new")
        marks = await grown(new, b"two", b"three", b"four")
        for mark in marks[:2]:
            await write_snapshot(store, CLUSTER, mark, b"state")
        await prune(store, CLUSTER)
        assert await store.put_new(log_key(Position(1, 1)), zombie.encoded) is PutOutcome.EXISTS
        with pytest.raises(Fenced):
            await old.append(b"late", 1, 9.0)

    run(story())


# --- J12: what is gone is not passed over ---------------------------------------------------------


@pytest.mark.parametrize("gone", [Position(0, 0), Position(1, 0), Position(1, 2)])
def test_a_lost_record_refuses_to_start_and_to_be_claimed(gone: Position) -> None:
    async def story() -> None:
        store = ScriptedStore()
        await grown(await led(await followed(store), "a"), b"one", b"two")
        await grown(await led(await followed(store), "b"), b"three")
        store.lose(log_key(gone))
        with pytest.raises(DataMissing, match=f"{log_key(gone)} is missing, but"):
            await followed(store)
        whole = len(store._objects)
        reader = LogReader(store, CLUSTER)
        with pytest.raises((DataMissing, AssertionError)):
            await reader.restart()
            while reader.mark.next_position != gone:
                await reader.read_next()
            await led(reader)  # without having looked for the end
        assert len(store._objects) == whole  # nothing was written into the hole

    run(story())


def test_a_lost_end_that_a_damaged_snapshot_covers_is_not_claimed_over() -> None:
    async def story() -> None:
        store = ScriptedStore()
        marks = await grown(await led(await followed(store)), b"one", b"two", b"three")
        await write_snapshot(store, CLUSTER, marks[0], b"older")
        await write_snapshot(store, CLUSTER, marks[2], b"newer")
        store.lose(log_key(Position(1, 1)))
        store.lose(log_key(Position(1, 2)))
        key = snapshot_key(Position(1, 2))
        store.write(key, store._objects[key][:-1])
        with pytest.raises(DataMissing, match="does not verify"):
            await followed(store)
        assert await store.get(log_key(Position(1, 1))) is None

    run(story())


def test_a_record_that_comes_while_the_end_is_proved_is_no_loss() -> None:
    async def story() -> None:
        store = ScriptedStore()
        writer = await led(await followed(store))
        reader = LogReader(store, CLUSTER)
        await reader.restart()
        await reader.read_next()

        real_get = store.get

        async def get(key: str, offset: int = 0, length: int | None = None) -> bytes | None:
            found = await real_get(key, offset, length)
            store.get = real_get  # type: ignore[method-assign]
            await grown(writer, b"one", b"two")
            return found  # an answer that is older than what came

        store.get = get  # type: ignore[method-assign]
        assert await reader.read_next() is None
        assert [record.body for record in [await reader.read_next(), await reader.read_next()] if record] == [
            b"one",
            b"two",
        ]

    run(story())


# --- J14: the prefix ------------------------------------------------------------------------------


def test_the_first_cluster_id_guards_the_prefix() -> None:
    async def story() -> None:
        store = ScriptedStore()
        assert await open_prefix(store, nonce("first")) == nonce("first")
        assert await open_prefix(store, nonce("second")) == nonce("first")
        await led(LogReader(store, nonce("first")))
        stranger = LogReader(store, nonce("stranger"))
        with pytest.raises(StaleReader, match="another service"):
            await stranger.read_next()

    run(story())


def test_a_prefix_of_something_else_is_refused() -> None:
    async def story() -> None:
        store = ScriptedStore()
        store.write("cluster", b"somebody's file")
        with pytest.raises(StoreUnfit, match="not one of jobsvc"):
            await open_prefix(store, nonce("a"))

    run(story())


def test_a_store_that_overwrites_is_refused() -> None:
    class Overwriting(MemoryObjectStore):
        async def put_new(self, key: str, data: bytes) -> PutOutcome:
            self._objects[key] = data
            return PutOutcome.CREATED

    with pytest.raises(StoreUnfit, match="does not refuse"):
        run(open_prefix(Overwriting(), nonce("a")))
