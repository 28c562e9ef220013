"""The store that misbehaves: it must do so by its seed alone, and never break the honest store inside."""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Coroutine
from random import Random
from typing import Any

import pytest

from jobsvc.errors import InvalidRequest
from jobsvc.faulty_store import FaultyObjectStore
from jobsvc.object_store import MemoryObjectStore, PutOutcome, StoreError

CREATED, EXISTS, UNKNOWN = PutOutcome.CREATED, PutOutcome.EXISTS, PutOutcome.UNKNOWN


class _JumpingSelector(selectors.SelectSelector):
    """Where a real selector would wait, this one moves the clock on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "the loop would wait for ever"
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(story: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(story)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_without_faults_it_is_the_store_inside_with_delays() -> None:
    async def story() -> None:
        store = FaultyObjectStore(MemoryObjectStore(), Random(1), delay_seconds=0.1)
        assert await store.probe() == []
        assert await store.put_new("a", b"bytes") is CREATED
        assert await store.put_new("a", b"other") is EXISTS
        assert await store.get("a", 1, 2) == b"yt"
        assert await store.get("b") is None
        assert await store.list("a") == ["a"]
        await store.delete("a")
        assert await store.get("a") is None
        assert store.requests["put"] == 4
        assert 0.5 < now() < 20

    run(story())


def test_a_request_for_many_keys_that_fails_may_have_deleted_some() -> None:
    async def story() -> None:
        inner = MemoryObjectStore()
        for key in ("a", "b", "c", "d"):
            await inner.put_new(key, b"x")
        store = FaultyObjectStore(inner, Random(1), read_error_rate=1.0)
        with pytest.raises(StoreError):
            await store.delete_many(["a", "b", "c", "d"])
        assert await inner.list("") == ["c", "d"]

    run(story())


async def _busy(seed: int) -> list[tuple[str, str, float]]:
    """Four clients over one store with every fault; the story of all that they saw."""
    seen: list[tuple[str, str, float]] = []
    inner = MemoryObjectStore()

    async def client(name: str, random: Random) -> None:
        store = FaultyObjectStore(
            inner,
            random,
            delay_seconds=0.5,
            put_error_rate=0.1,
            put_lost_rate=0.1,
            put_late_rate=0.1,
            read_error_rate=0.1,
        )
        for number in range(50):
            outcome = await store.put_new(f"k/{number}", name.encode())
            seen.append((name, outcome.value, now()))
            try:
                seen.append((name, str(await store.get(f"k/{number}")), now()))
            except StoreError:
                seen.append((name, "no answer", now()))
        await store.settle()

    await asyncio.gather(*(client(f"c{n}", Random(seed * 10 + n)) for n in range(4)))
    seen += [("end", f"{key}={await inner.get(key)!r}", 0.0) for key in await inner.list("")]
    return seen


def test_one_seed_is_one_story() -> None:
    first = run(_busy(7))
    assert run(_busy(7)) == first
    assert run(_busy(8)) != first
    assert {"created", "exists", "unknown", "no answer"} <= {what for _, what, _ in first}


def test_unknown_comes_with_and_without_the_effect() -> None:
    async def outcomes(**rates: float) -> tuple[Counter[PutOutcome], int]:
        inner = MemoryObjectStore()
        store = FaultyObjectStore(inner, Random(3), **rates)
        said = Counter([await store.put_new(f"k/{number}", b"") for number in range(200)])
        return said, len(await inner.list(""))

    assert run(outcomes(put_error_rate=1.0)) == ({UNKNOWN: 200}, 0)
    assert run(outcomes(put_lost_rate=1.0)) == ({UNKNOWN: 200}, 200)
    said, stored = run(outcomes(put_lost_rate=0.3, put_error_rate=0.3))
    assert said[CREATED] < stored < 200


def test_a_late_write_lands_after_the_answer_unknown() -> None:
    async def story() -> None:
        inner = MemoryObjectStore()
        store = FaultyObjectStore(inner, Random(5), put_late_rate=1.0, late_seconds=60)
        assert await store.put_new("log/0", b"late") is UNKNOWN
        assert now() < 1
        assert await inner.get("log/0") is None  # a 404 now proves nothing
        await store.settle()
        assert now() > 1
        assert await inner.get("log/0") == b"late"

    run(story())


def test_a_late_write_does_not_overwrite_who_came_first() -> None:
    async def story() -> None:
        inner = MemoryObjectStore()
        dead = FaultyObjectStore(inner, Random(5), put_late_rate=1.0, late_seconds=60)
        assert await dead.put_new("log/0", b"record of the dead leader") is UNKNOWN
        assert await inner.put_new("log/0", b"takeover") is CREATED
        await dead.settle()
        assert await inner.get("log/0") == b"takeover"

    run(story())


def test_the_write_of_a_cancelled_caller_lands_all_the_same() -> None:
    async def story() -> None:
        inner = MemoryObjectStore()
        store = FaultyObjectStore(inner, Random(5), delay_seconds=1.0)
        leader = asyncio.create_task(store.put_new("log/0", b"last words"))
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        assert await inner.get("log/0") is None
        await store.settle()
        assert await inner.get("log/0") == b"last words"

    run(story())


def test_a_store_that_is_too_slow_is_unknown_at_the_timeout_and_effective_later() -> None:
    async def story() -> None:
        inner = MemoryObjectStore()
        store = FaultyObjectStore(inner, Random(5), timeout_seconds=5.0)
        store.slow(20.0)
        assert await store.put_new("a", b"") is UNKNOWN
        assert now() == 5.0
        assert await inner.get("a") is None
        with pytest.raises(StoreError):
            await store.get("a")
        await store.settle()
        assert await inner.get("a") == b""
        store.slow(0.0)
        assert await store.put_new("a", b"") is EXISTS

    run(story())


def test_an_outage_ends_by_itself() -> None:
    async def story() -> None:
        inner = MemoryObjectStore()
        store = FaultyObjectStore(inner, Random(5))
        store.outage_until(10.0)
        tries = 0
        while await store.put_new("a", b"") is UNKNOWN:
            assert await inner.get("a") is None
            tries += 1
            await asyncio.sleep(1)
        assert 5 <= tries <= 10
        assert 10.0 <= now() < 12.0

    run(story())


def test_who_is_cut_off_reaches_nothing_and_others_do() -> None:
    async def story() -> None:
        inner = MemoryObjectStore()
        cut = FaultyObjectStore(inner, Random(1), delay_seconds=1.0, timeout_seconds=30.0)
        other = FaultyObjectStore(inner, Random(2))
        under_way = asyncio.create_task(cut.put_new("log/0", b"left in time"))
        await asyncio.sleep(0.001)
        cut.cut()
        assert await cut.put_new("log/1", b"never leaves") is UNKNOWN
        assert await under_way is UNKNOWN
        assert await other.get("log/0") == b"left in time"
        with pytest.raises(StoreError):
            await cut.list("")
        cut.heal()
        assert await cut.put_new("log/1", b"now") is CREATED

    run(story())


def test_a_refused_key_is_the_callers_error_here_too() -> None:
    async def story() -> None:
        with pytest.raises(InvalidRequest):
            await FaultyObjectStore(MemoryObjectStore(), Random(1)).put_new("a//b", b"")

    run(story())


def test_rates_that_are_no_rates_are_refused() -> None:
    for rates in ({"put_error_rate": 0.6, "put_lost_rate": 0.6}, {"read_error_rate": -0.1}):
        with pytest.raises(InvalidRequest):
            FaultyObjectStore(MemoryObjectStore(), Random(1), **rates)
