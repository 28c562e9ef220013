"""Reading ahead, told as stories: many GETs in the air, one order, and no answer older than its worth."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from jobsvc.errors import DataMissing, StoreUnfit
from jobsvc.journal import LogReader, LogWriter, Mark, StaleReader, claim
from jobsvc.log_records import Position, log_key, takeover_record
from jobsvc.object_store import MemoryObjectStore, StoreError
from jobsvc.read_ahead import Reach, ReadAhead
from jobsvc.snapshots import prune, write_snapshot
from tests.simulation.virtual_loop import run

from . import manager_world
from .manager_world import Pair, until

CLUSTER = b"cluster of tests"
GET_SECONDS = 0.02
SMALL = Reach(records_max=4, bytes_max=4 * 1024, after_records=3)


def nonce(name: str) -> bytes:
    return name.encode().ljust(16, b".")


class SlowStore(MemoryObjectStore):
    """Each GET looks after `before`, then takes its time; and it is known how many are in the air."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []  # keys of the log, in the order of the questions
        self.in_the_air = self.most_in_the_air = 0
        self.bytes_held = 0
        self.seconds: dict[str, float] = {}  # of some keys; the others take GET_SECONDS
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}  # once, when a key is asked for

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        if key.startswith("log/"):
            self.asked.append(key)
        self.in_the_air += 1
        self.most_in_the_air = max(self.most_in_the_air, self.in_the_air)
        try:
            if key in self.before:
                await self.before.pop(key)()
            found = await super().get(key, offset, length)
            await asyncio.sleep(self.seconds.get(key, GET_SECONDS))
        finally:
            self.in_the_air -= 1
        self.bytes_held += len(found or b"")
        return found

    def counts(self) -> dict[str, int]:
        return dict(self.requests)


async def at_the_end(store: MemoryObjectStore, reach: Reach = SMALL) -> LogReader:
    reader = LogReader(store, CLUSTER, reach=reach)
    await reader.restart()
    await read_on(reader)
    return reader


async def read_on(reader: LogReader) -> list[bytes]:
    bodies = []
    while (record := await reader.read_next()) is not None:
        if record.kind == "data":
            bodies.append(record.body)
    return bodies


async def led(reader: LogReader, name: str = "a") -> LogWriter:
    writer = await claim(reader, nonce=nonce(name), log_time=0.0, random=Random(1))
    assert writer is not None
    return writer


async def grown(writer: LogWriter, first: int, last: int) -> list[bytes]:
    bodies = [b"%d" % n for n in range(first, last)]
    for body in bodies:
        await writer.append(body, 1, 0.0)
    return bodies


async def a_log(store: SlowStore, records: int) -> tuple[LogWriter, list[bytes]]:
    """Of epoch 1, whose takeover is the first record of all."""
    writer = await led(await at_the_end(store))
    bodies = await grown(writer, 0, records)
    store.asked.clear()
    store.most_in_the_air = 0
    return writer, bodies


def test_records_come_in_order_however_their_answers_do() -> None:
    async def story() -> None:
        store, random = SlowStore(), Random(1)
        _, bodies = await a_log(store, 100)
        store.seconds = {log_key(Position(1, n)): random.random() for n in range(100)}
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        assert await read_on(reader) == bodies
        assert store.most_in_the_air > 1
        assert sorted(set(store.asked)) != store.asked  # it did not ask one by one

    run(story())


def test_a_log_is_read_in_a_fraction_of_its_round_trips() -> None:
    async def story() -> None:
        store = SlowStore()
        _, bodies = await a_log(store, 400)
        reader = LogReader(store, CLUSTER)
        await reader.restart()
        began = asyncio.get_running_loop().time()
        assert await read_on(reader) == bodies
        assert asyncio.get_running_loop().time() - began < 400 * GET_SECONDS / 15

    run(story())


@pytest.mark.parametrize("reach", [SMALL, Reach(records_max=1, bytes_max=1024), Reach()])
def test_no_more_is_in_the_air_than_the_reach_allows(reach: Reach) -> None:
    async def story() -> None:
        store = SlowStore()
        _, bodies = await a_log(store, 200)
        reader = LogReader(store, CLUSTER, reach=reach)
        await reader.restart()
        for _ in range(150):
            assert await reader.read_next() is not None
            await asyncio.sleep(GET_SECONDS * 2)  # a reader that is slow: what is held does not grow
            assert len(reader._records._ahead) <= reach.records_max
        await read_on(reader)
        assert store.most_in_the_air <= reach.records_max + 1  # and the one whose turn it is

    run(story())


def test_what_is_asked_in_vain_is_never_more_than_what_was_read() -> None:
    async def story() -> None:
        for records in (0, 1, 2, 3, 5, 8, 50):
            store = SlowStore()
            _, bodies = await a_log(store, records)
            reader = LogReader(store, CLUSTER, reach=SMALL)
            await reader.restart()
            assert await read_on(reader) == bodies
            there = records + 1  # the takeover of epoch 0
            the_end = 1  # is always asked for, at its turn
            assert len(store.asked) - there - the_end <= min(there, SMALL.records_max + 1)

    run(story())


def test_a_record_that_is_too_large_is_read_at_its_turn() -> None:
    async def story() -> None:
        store = SlowStore()
        writer, bodies = await a_log(store, 10)
        large = b"x" * 1_000_000
        await writer.append(large, 1, 0.0)
        last = await grown(writer, 11, 15)
        store.bytes_held = 0
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        assert await read_on(reader) == [*bodies, large, *last]
        assert store.asked.count(log_key(Position(1, 10))) == 2
        share = SMALL.bytes_max // SMALL.records_max
        # Whole once; ahead of its turn no more of it than its share.
        assert store.bytes_held < 1_000_000 + share + 30 * 250

    run(story())


@pytest.mark.parametrize("error", [StoreError, StoreUnfit])
def test_a_get_that_fails_in_the_middle_is_done_again_at_its_turn(error: type[Exception]) -> None:
    async def story() -> None:
        store = SlowStore()
        _, bodies = await a_log(store, 30)
        key = log_key(Position(1, 17))

        async def fail() -> None:
            raise error("no answer")

        store.before[key] = fail
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        assert await read_on(reader) == bodies
        assert store.asked.count(key) == 2

    run(story())


def test_a_failure_at_its_turn_is_told_and_nothing_has_changed() -> None:
    async def story() -> None:
        store = SlowStore()
        _, bodies = await a_log(store, 30)
        key = log_key(Position(1, 17))

        async def fail() -> None:
            store.before[key] = fail
            raise StoreError("no answer")

        store.before[key] = fail
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        with pytest.raises(StoreError):
            await read_on(reader)
        assert reader.mark.next_position == (1, 17)
        store.before.clear()
        assert await read_on(reader) == bodies[17:]

    run(story())


def test_not_there_is_forgotten_when_the_turn_comes() -> None:
    async def story() -> None:
        store = SlowStore()
        writer, bodies = await a_log(store, 20)
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        while reader.mark.next_position != (1, 18):
            await reader.read_next()
        await asyncio.sleep(1)  # (1, 20) and (1, 21) were asked for, and are not there
        assert log_key(Position(1, 21)) in store.asked
        bodies += await grown(writer, 20, 30)
        assert await read_on(reader) == bodies[18:]

    run(story())


def test_a_follower_that_is_pushed_to_asks_for_nothing_more() -> None:
    async def requests(reach: Reach) -> dict[str, int]:
        store = SlowStore()
        writer, _ = await a_log(store, 100)
        reader = await at_the_end(store, reach)
        before = store.counts()
        for turn in range(60):
            pushed = await writer.append(b"pushed", 1, 0.0)
            if turn % 3:
                assert reader.accept_pushed(pushed.encoded) is not None
            if turn % 9 == 8 or not turn % 3:  # one was lost, or it is time to look
                await read_on(reader)
        await read_on(reader)
        after = store.counts()
        return {kind: after[kind] - before[kind] for kind in after}

    async def story() -> None:
        plain = await requests(Reach(records_max=1, bytes_max=1, after_records=1_000_000))
        assert await requests(Reach()) == plain
        assert plain["list"] == 0

    run(story())


def test_a_follower_that_has_fallen_far_behind_reads_ahead() -> None:
    async def story() -> None:
        store = SlowStore()
        writer, _ = await a_log(store, 5)
        reader = await at_the_end(store)
        store.most_in_the_air = 0
        bodies = await grown(writer, 5, 5 + SMALL.after_records)
        assert await read_on(reader) == bodies
        assert store.most_in_the_air == 1
        bodies = await grown(writer, 100, 140)
        lists = store.requests["list"]
        assert await read_on(reader) == bodies
        assert store.most_in_the_air == SMALL.records_max + 1
        assert store.requests["list"] == lists  # names are guessed

    run(story())


def test_pushes_overtake_what_is_held() -> None:
    async def story() -> None:
        store = SlowStore()
        writer, bodies = await a_log(store, 40)
        encoded = [store._objects[log_key(Position(1, n))] for n in range(40)]
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        while reader.mark.next_position != (1, 20):
            await reader.read_next()
        for n in range(20, 30):
            assert reader.accept_pushed(encoded[n]) is not None

        async def push() -> None:
            for n in range(31, 33):
                assert reader.accept_pushed(encoded[n]) is not None

        assert (await reader.read_next()) is not None
        reader._records._drop()
        store.before[log_key(Position(1, 31))] = push  # in the midst of a read
        assert await read_on(reader) == bodies[33:]
        assert reader.mark.next_position == (1, 40)

    run(story())


def test_it_goes_on_over_takeovers_and_never_looks_behind_one() -> None:
    async def story() -> None:
        store = SlowStore()
        writer, bodies = await a_log(store, 12)
        for name in "bcd":
            reader = await at_the_end(store)
            junk = log_key(Position(reader.mark.next_position.epoch, reader.mark.next_position.n + 1))
            writer = await led(reader, name)
            store._objects[junk] = b"behind a takeover"
            bodies += await grown(writer, 20, 32)
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        assert await read_on(reader) == bodies
        assert reader.mark.next_position == (4, 12)

    run(story())


async def marks_of(store: MemoryObjectStore) -> list[Mark]:
    reader = LogReader(store, CLUSTER)
    marks = []
    while await reader.read_next() is not None:
        marks.append(reader.mark)
    return marks


async def prune_behind(store: MemoryObjectStore, marks: list[Mark], older: int, newer: int) -> None:
    for place in (older, newer):
        await write_snapshot(store, CLUSTER, marks[place], b"state")
    await prune(store, CLUSTER)


def test_what_is_pruned_under_the_reader_sends_it_back_to_the_snapshot() -> None:
    async def story() -> None:
        store = SlowStore()
        _, bodies = await a_log(store, 40)
        marks = await marks_of(store)
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        while reader.mark.next_position != (1, 10):
            await reader.read_next()
        await asyncio.sleep(1)
        held = len(reader._records._ahead)
        assert held >= SMALL.records_max - 1
        await prune_behind(store, marks, 30, 35)
        read = []
        with pytest.raises(StaleReader, match="not there to read"):
            while (record := await reader.read_next()) is not None:
                read.append(record.body)
        assert read == bodies[10 : 10 + held]  # they were the history, and that is as far as it gets
        assert await reader.restart() == b"state"
        assert await read_on(reader) == bodies[35:]

    run(story())


def test_a_void_takeover_that_was_read_ahead_fools_nobody() -> None:
    async def story() -> None:
        store = SlowStore()
        _, bodies = await a_log(store, 40)
        marks = await marks_of(store)
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        while reader.mark.next_position != (1, 10):
            await reader.read_next()
        reader._records._drop()
        await prune_behind(store, marks, 30, 35)
        void = takeover_record(marks[10], CLUSTER, nonce("void"), log_time=0.0)
        assert void.position == (1, 10)
        store._objects[log_key(void.position)] = void.encoded
        reader._records._ahead[10] = asyncio.create_task(store.get(log_key(void.position)))
        await asyncio.sleep(1)
        with pytest.raises(StaleReader, match="there is a takeover at 1/10"):
            await reader.read_next()
        assert await reader.restart() == b"state"
        assert await read_on(reader) == bodies[35:]

    run(story())


def test_a_record_that_is_lost_is_missed_however_much_of_the_rest_was_read() -> None:
    async def story() -> None:
        store = SlowStore()
        await a_log(store, 40)
        del store._objects[log_key(Position(1, 20))]
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        with pytest.raises(DataMissing, match="is missing, but 19 records lie beyond it"):
            await read_on(reader)
        assert reader.mark.next_position == (1, 20)

    run(story())


def test_a_reader_that_has_everything_at_hand_lets_others_go_on() -> None:
    async def story() -> None:
        store = SlowStore()
        await a_log(store, 60)
        ahead = ReadAhead(store, Reach(records_max=50, bytes_max=50_000))
        ahead.begin()
        for n in range(40):
            await ahead.get(Position(1, n))
        await asyncio.sleep(1)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for n in range(40, 60):
            assert await ahead.get(Position(1, n)) is not None
        assert turns >= 20
        task.cancel()

    run(story())


def test_a_reader_that_gives_up_waiting_loses_nothing() -> None:
    async def story() -> None:
        store = SlowStore()
        _, bodies = await a_log(store, 30)
        store.seconds[log_key(Position(1, 12))] = 5.0
        reader = LogReader(store, CLUSTER, reach=SMALL)
        await reader.restart()
        while reader.mark.next_position != (1, 12):
            await reader.read_next()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.read_next()
        assert reader.mark.next_position == (1, 12)
        assert await read_on(reader) == bodies[12:]

    run(story())


def test_a_fresh_manager_that_must_take_over_reads_ahead_too() -> None:
    async def story(pair: Pair) -> None:
        first = pair.start("manager-a")
        await until(lambda: first.role == "leader")
        for number in range(400):
            await pair.enqueue(first, number)
        records = first.leader.commits.mark.records if first.leader is not None else 0
        assert records >= 400
        real_get = pair.store.get

        async def get(key: str, offset: int = 0, length: int | None = None) -> bytes | None:
            await asyncio.sleep(GET_SECONDS)
            return await real_get(key, offset, length)

        pair.store.get = get  # type: ignore[method-assign]
        pair.kill("manager-a")
        began = asyncio.get_running_loop().time()
        second = pair.start("manager-b")
        await until(lambda: second.role == "leader")
        assert len(second.state.jobs) == 400
        assert asyncio.get_running_loop().time() - began < records * GET_SECONDS / 4

    manager_world.run(story)
