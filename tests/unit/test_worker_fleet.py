"""When a manager holds back with new workers: after those that die as they start, not after those killed."""

from __future__ import annotations

import asyncio

from jobsvc.errors import Unavailable
from jobsvc.manager_actor import AT_ONCE_SECONDS, EARLY_DEATH_SECONDS, WorkerFleet
from jobsvc.settings import Settings, encode_settings

from ..simulation import virtual_loop


class Deaths:
    """A fleet whose workers die when the story says so."""

    def __init__(self) -> None:
        self.fleet = WorkerFleet(encode_settings(Settings(data="memory")), lambda name: None)

    async def of(self, *names: str, after_seconds: float) -> None:
        for name in names:
            self.fleet._started_at[name] = asyncio.get_running_loop().time()
        await asyncio.sleep(after_seconds)
        for name in names:
            self.fleet._hold_back_after(name)

    async def holds_back(self) -> bool:
        """Asked in a way that starts no worker: a name without a pool is refused after the pause alone."""
        try:
            await self.fleet.start("no such pool", "w", frozenset())
        except Unavailable:
            return True
        except KeyError:
            return False
        raise AssertionError("a worker was started")


def test_workers_that_were_killed_together_are_replaced_at_once() -> None:
    async def story() -> None:
        deaths = Deaths()
        # given five workers that are young, and a machine that goes with all of them
        await deaths.of("w1", "w2", "w3", "w4", "w5", after_seconds=EARLY_DEATH_SECONDS / 2)
        assert not await deaths.holds_back()

    virtual_loop.run(story())


def test_workers_that_die_again_and_again_as_they_start_are_started_ever_more_seldom() -> None:
    async def story() -> None:
        deaths = Deaths()
        await deaths.of("w1", "w2", after_seconds=AT_ONCE_SECONDS)
        # when those in their place die as well
        for times, pause in ((2, 4.0), (3, 8.0)):
            await deaths.of("w3", "w4", after_seconds=2 * AT_ONCE_SECONDS)
            assert await deaths.holds_back()
            await asyncio.sleep(pause - 0.1)
            assert await deaths.holds_back(), times
            await asyncio.sleep(0.2)
            assert not await deaths.holds_back(), times
        # then one that has lived for a while shows that workers can live
        await deaths.of("w5", after_seconds=EARLY_DEATH_SECONDS + 1)
        await deaths.of("w6", after_seconds=EARLY_DEATH_SECONDS / 2)
        assert not await deaths.holds_back()

    virtual_loop.run(story())


def test_a_quick_row_of_deaths_is_not_taken_for_one_accident() -> None:
    async def story() -> None:
        deaths = Deaths()
        # given workers that die as quickly as they can be started, never a second apart
        held_back = False
        for number in range(10):
            await deaths.of(f"w{number}", after_seconds=0.6 * AT_ONCE_SECONDS)
            held_back = held_back or await deaths.holds_back()
        assert held_back

    virtual_loop.run(story())
