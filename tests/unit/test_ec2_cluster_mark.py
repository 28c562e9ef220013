"""The word that a cluster is wanted or not: the last one holds, also over a store that loses answers."""

from __future__ import annotations

import asyncio
import random

import pytest

from jobsvc.ec2_cluster_mark import announce_down, announce_up, is_down
from jobsvc.faulty_store import FaultyObjectStore
from jobsvc.object_store import MemoryObjectStore, PutOutcome, StoreError


def test_the_last_word_holds() -> None:
    async def story() -> list[bool]:
        store = MemoryObjectStore()
        heard = [await is_down(store, "harvest")]
        for say in (announce_down, announce_up, announce_down):
            await say(store, "harvest", "a test")
            heard.append(await is_down(store, "harvest"))
        return heard

    assert asyncio.run(story()) == [False, True, False, True]


def test_saying_it_again_adds_nothing_and_other_clusters_do_not_hear_it() -> None:
    async def story() -> tuple[list[str], bool]:
        store = MemoryObjectStore()
        await announce_down(store, "harvest", "a test")
        await announce_down(store, "harvest", "a test")
        return await store.list("cluster/state/"), await is_down(store, "harvest2")

    assert asyncio.run(story()) == (["cluster/state/harvest/0000000001-down"], False)


def test_two_that_speak_at_once_leave_it_down() -> None:
    async def story() -> bool:
        store = MemoryObjectStore()
        # what is left when each has read before the other wrote
        for state in ("up", "down"):
            await store.put_new(f"cluster/state/harvest/0000000007-{state}", b"{}")
        return await is_down(store, "harvest")

    assert asyncio.run(story())


@pytest.mark.parametrize("seed", range(5))
def test_lost_answers_do_not_matter(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobsvc.ec2_cluster_mark.PAUSE_SECONDS", 0.0)

    async def story() -> bool:
        honest = MemoryObjectStore()
        store = FaultyObjectStore(
            honest, random.Random(seed), delay_seconds=0.0, put_error_rate=0.3, put_lost_rate=0.3
        )
        await announce_down(store, "harvest", "a test")
        return await is_down(honest, "harvest")

    assert asyncio.run(story())


def test_a_store_that_takes_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(MemoryObjectStore):
        async def put_new(self, key: str, data: bytes) -> PutOutcome:
            return PutOutcome.UNKNOWN

    monkeypatch.setattr("jobsvc.ec2_cluster_mark.PAUSE_SECONDS", 0.0)
    with pytest.raises(StoreError, match="harvest is down"):
        asyncio.run(announce_down(Silent(), "harvest", "a test"))
