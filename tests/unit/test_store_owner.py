"""One store, one service: another one is kept away while the owner writes, and takes over later."""

from __future__ import annotations

import asyncio
from random import Random

from jobsvc.journal import LogReader, claim, open_prefix
from jobsvc.log_records import ID_BYTES, Position, log_key
from jobsvc.manager import Manager
from jobsvc.store_owner import QUIET_SECONDS, has_gone_on, owner_of, set_free

from ..simulation import virtual_loop
from .manager_world import Pair, until


def pair_beside(first: Pair, service: str, **settings: float) -> Pair:
    """A service of this name on the same store, in a Ray of its own."""
    second = Pair(service=service, **settings)
    second.store = first.store
    second.lives = 100  # so that no process is taken for another one
    return second


def problem_of(pair: Pair, manager: Manager) -> str:
    return pair.status(manager).problem or ""


def test_a_second_service_keeps_away_from_one_that_writes() -> None:
    async def story() -> None:
        # given a service that has nothing to do
        one = Pair(service="one")
        leader, standby = await one.leader_and_standby()
        # when managers of another service start on its store, and are there for minutes
        two = pair_beside(one, "two", snapshot_records=10)
        strangers = [two.start(name) for name in ("manager-a", "manager-b")]
        await until(lambda: all("'one'" in problem_of(two, each) for each in strangers))
        puts = one.store.requests["put"]
        await asyncio.sleep(300.0)
        # then they say whose it is and what to do, and have written nothing
        for each in strangers:
            assert each.role == "standby"
            assert "is in use by service 'one'" in problem_of(two, each)
            assert one.cluster_id().hex() in problem_of(two, each)
            assert not two.status(each).healthy
        assert one.store.requests["put"] - puts <= 300 / one.settings.idle_record_seconds + 1
        assert (leader.role, standby.role, leader.state.epoch) == ("leader", "standby", 1)

    virtual_loop.run(story())


def test_it_takes_over_when_the_owner_has_been_silent() -> None:
    async def story() -> None:
        # given a service with a job, and another one that waits
        one = Pair(service="one")
        leader, _ = await one.leader_and_standby()
        await one.enqueue(leader, 1)
        two = pair_beside(one, "two")
        stranger = two.start("manager-a")
        await until(lambda: problem_of(two, stranger) != "")
        # when the first one ends
        one.kill("manager-a")
        one.kill("manager-b")
        ended = asyncio.get_running_loop().time()
        # then the other one waits, says from whom it takes over, and does
        await until(lambda: "'one' led here last" in problem_of(two, stranger) or stranger.role == "leader")
        await until(lambda: stranger.role == "leader")
        waited = asyncio.get_running_loop().time() - ended
        assert QUIET_SECONDS - 1 <= waited <= QUIET_SECONDS + 10
        assert len(stranger.state.jobs) == 1
        # and the first one, started again, is the stranger now
        returned = one.start("manager-a")
        await until(lambda: "'two'" in problem_of(one, returned))
        await asyncio.sleep(60.0)
        assert (stranger.role, returned.role) == ("leader", "standby")

    virtual_loop.run(story())


def test_after_a_clean_end_it_takes_over_at_once() -> None:
    async def story() -> None:
        # given a service that was ended, and said so
        one = Pair(service="one")
        leader, _ = await one.leader_and_standby()
        await one.enqueue(leader, 1)
        for name in ("manager-a", "manager-b"):
            one.kill(name)
        await set_free(one.store, "two")  # somebody else's word is none
        assert await one.store.list("free/") == []
        await set_free(one.store, "one")
        # when another one starts on its store, then it waits for nothing
        loop = asyncio.get_running_loop()
        two, began = pair_beside(one, "two"), loop.time()
        stranger = two.start("manager-a")
        await until(lambda: stranger.role == "leader")
        assert loop.time() - began < 2.0
        assert len(stranger.state.jobs) == 1
        # and its own clean end is the only one that is remembered
        two.kill("manager-a")
        await set_free(two.store, "two")
        assert len(await two.store.list("free/")) == 1

    virtual_loop.run(story())


def test_what_was_said_before_more_was_written_is_void() -> None:
    async def story() -> None:
        # given a service that was ended, and started again under its name
        one = Pair(service="one")
        await one.leader_and_standby()
        for name in ("manager-a", "manager-b"):
            one.kill(name)
        await set_free(one.store, "one")
        again = pair_beside(one, "one")
        leader = again.start("manager-a")
        await until(lambda: leader.role == "leader")
        # when another one starts beside it, then it keeps away
        two = pair_beside(one, "two")
        stranger = two.start("manager-a")
        await until(lambda: "is in use by service 'one'" in problem_of(two, stranger))
        await asyncio.sleep(60.0)
        assert (leader.role, stranger.role) == ("leader", "standby")

    virtual_loop.run(story())


def test_the_same_name_is_the_same_service() -> None:
    async def story() -> None:
        # given a service whose machine is gone
        old = Pair(service="one")
        await old.leader_and_standby()
        old.kill("manager-a")
        old.kill("manager-b")
        # when it is started on another one
        new = pair_beside(old, "one")
        began = asyncio.get_running_loop().time()
        first = new.start("manager-a")
        # then it leads at once
        await until(lambda: first.role == "leader")
        assert asyncio.get_running_loop().time() - began < 1.0

    virtual_loop.run(story())


def test_two_that_meet_on_a_fresh_store_do_not_both_lead() -> None:
    async def story() -> None:
        one, two = Pair(service="one"), Pair(service="two")
        two.store, two.lives = one.store, 100
        everybody = [pair.start(name) for pair in (one, two) for name in ("manager-a", "manager-b")]
        await asyncio.sleep(120.0)
        assert sum(each.role == "leader" for each in everybody) == 1
        assert {each.state.epoch for each in everybody} == {1}

    virtual_loop.run(story())


def test_a_store_without_names_belongs_to_whoever_comes() -> None:
    async def story() -> None:
        # given a log as version 0.1 wrote it: its takeover names nobody
        one = Pair()
        cluster_id = await open_prefix(one.store, b"a" * ID_BYTES)
        reader = LogReader(one.store, cluster_id)
        assert await reader.read_next() is None
        assert await claim(reader, nonce=b"a" * ID_BYTES, log_time=0.0, random=Random(1)) is not None
        owner = await owner_of(one.store)
        assert owner is not None and not owner.is_other_than("one")
        # when a service of any name starts, then it leads at once
        began = asyncio.get_running_loop().time()
        leader = one.start("manager-a")
        await until(lambda: leader.role == "leader")
        assert asyncio.get_running_loop().time() - began < 1.0

    virtual_loop.run(story())


def test_the_store_alone_tells_who_led_last() -> None:
    async def story() -> None:
        one = Pair(service="one", snapshot_records=10)
        assert await owner_of(one.store) is None
        # given a leader, whose first record is in the log at first, and pruned later
        leader, _ = await one.leader_and_standby()
        for records in (0, 30):
            for number in range(records):
                await one.enqueue(leader, number)
            await asyncio.sleep(5.0)
            assert leader.leader is not None
            # when the store is asked, then it tells name, id, and place
            owner = await owner_of(one.store)
            assert owner is not None
            assert (owner.service, owner.cluster_id) == ("one", one.cluster_id())
            assert owner.next_position == leader.leader.commits.mark.next_position
            assert owner.is_other_than("two") and not owner.is_other_than("one")
            # and idle records show that it lives
            assert not await has_gone_on(one.store, owner)
            await asyncio.sleep(5.0)
            assert await has_gone_on(one.store, owner)
        assert log_key(Position(1, 0)) not in one.store_keys()
        # when another one has taken over, then the store tells that one
        one.kill("manager-a")
        one.kill("manager-b")
        heir = pair_beside(one, "two").start("manager-a")
        await until(lambda: heir.role == "leader")
        owner = await owner_of(one.store)
        assert owner is not None and owner.service == "two"

    virtual_loop.run(story())
