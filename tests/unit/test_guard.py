"""The guard as stories: a head dies in every way there is, and exactly one other comes, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from jobsvc.ec2_cluster_mark import announce_down
from jobsvc.faulty_store import FaultyObjectStore
from jobsvc.object_store import MemoryObjectStore, ObjectStore, PutOutcome

from ..simulation.virtual_loop import VirtualLoop, run
from .guard_world import CLUSTER, SETTINGS, Ec2World, GuardMachine, Machine

MINUTE = 60.0
HOLD = SETTINGS.hold_seconds


class Story:
    """One cluster with one head and one guard, which has seen the head alive."""

    def __init__(self) -> None:
        self.store = MemoryObjectStore()
        self.world = Ec2World(Random(1), self.store)
        self.machine = GuardMachine(self.world, self.store)
        self.head: Machine

    async def begin(self) -> None:
        self.head = self.world.new_head()
        self.live(self.machine)
        await asyncio.sleep(20)

    def live(self, machine: GuardMachine) -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.start(machine.name, machine.guard().run())

    async def until(self, is_so: Callable[[], bool], seconds: float) -> float:
        """How long it took. AssertionError if it does not come."""
        started = self.world.now
        while not is_so():
            assert self.world.now - started < seconds, f"not in {seconds:g} s"
            await asyncio.sleep(0.5)
        return self.world.now - started

    def another_answers(self) -> bool:
        return any(each.answers and each is not self.head for each in self.world.up)

    @property
    def leases(self) -> list[str]:
        return sorted(key for key in self.store._objects if key.startswith("guard/"))


def tell(story: Callable[[Story], Coroutine[Any, Any, None]]) -> Story:
    told = Story()

    async def all_of_it() -> None:
        await told.begin()
        await story(told)

    run(all_of_it())
    return told


# --- gone -------------------------------------------------------------------------------------------


def test_a_head_that_ec2_has_ended_is_followed_by_one_other() -> None:
    async def story(told: Story) -> None:
        told.head.end()
        took = await told.until(told.another_answers, 2 * MINUTE)
        assert took < told.world.up_seconds + 30
        await asyncio.sleep(30 * MINUTE)

    told = tell(story)
    assert told.leases == ["guard/i-1/0000"]
    assert [each.launched_for for each in told.world.up] == ["guard/i-1/0000"]
    assert told.world.launches == ["guard/i-1/0000"]


def test_heads_die_one_after_the_other() -> None:
    async def story(told: Story) -> None:
        for _ in range(3):
            told.head.end()
            await told.until(told.another_answers, 2 * MINUTE)
            (told.head,) = told.world.up
            await asyncio.sleep(MINUTE)

    assert tell(story).leases == [f"guard/i-{number}/0000" for number in (1, 2, 3)]


def test_a_stopped_head_is_ended_before_another_is_made() -> None:
    async def story(told: Story) -> None:
        told.head.state, told.head.answers = "stopped", False
        await told.until(told.another_answers, 2 * MINUTE)

    assert tell(story).head.state == "terminated"


def test_a_machine_that_ec2_calls_impaired_is_replaced_after_a_minute_of_silence() -> None:
    async def story(told: Story) -> None:
        told.head.answers, told.head.impaired = False, True
        await asyncio.sleep(SETTINGS.head_silent_seconds - 5)
        assert told.head.is_up
        await told.until(told.another_answers, 2 * MINUTE)

    told = tell(story)
    assert not told.head.is_up
    assert told.world.most_up == 1


def test_a_head_that_reboots_in_time_stays() -> None:
    async def story(told: Story) -> None:
        told.head.answers = False
        await asyncio.sleep(2 * SETTINGS.head_silent_seconds)
        told.head.answers = True
        await asyncio.sleep(10 * MINUTE)

    told = tell(story)
    assert told.head.is_up and told.leases == []


def test_a_head_that_stays_silent_is_ended_first_and_then_followed() -> None:
    async def story(told: Story) -> None:
        told.head.answers = False
        took = await told.until(told.another_answers, 6 * MINUTE)
        assert took > 3 * SETTINGS.head_silent_seconds

    told = tell(story)
    assert not told.head.is_up
    assert told.world.most_up == 1


# --- not gone, or not ours to bring back ------------------------------------------------------------


def test_a_guard_that_never_saw_a_head_alive_brings_none_back() -> None:
    store = MemoryObjectStore()
    world = Ec2World(Random(1), store)

    async def story() -> None:
        world.new_head().end()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(GuardMachine(world, store).guard().run(), 60 * MINUTE)

    run(story())
    assert world.launches == []


def test_a_cluster_that_was_taken_down_stays_down() -> None:
    async def story(told: Story) -> None:
        await announce_down(told.store, CLUSTER, "a test")
        told.head.end()
        await asyncio.sleep(60 * MINUTE)

    assert tell(story).world.launches == []


def test_a_guard_whose_own_machine_is_being_ended_does_nothing() -> None:
    async def story(told: Story) -> None:
        told.world.ended_machines.add("manager")
        told.head.end()
        await asyncio.sleep(60 * MINUTE)

    assert tell(story).world.launches == []


def test_nothing_is_done_while_ec2_is_silent_and_everything_after() -> None:
    async def story(told: Story) -> None:
        told.world.silent_until = told.world.now + 20 * MINUTE
        told.head.end()
        await asyncio.sleep(19 * MINUTE)
        assert told.leases == []
        await told.until(told.another_answers, 3 * MINUTE)

    tell(story)


def test_nothing_is_done_while_the_store_is_silent() -> None:
    async def story(told: Story) -> None:
        store = FaultyObjectStore(told.store, Random(2))
        store.cut()
        other = GuardMachine(told.world, store, "cut-off")
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.kill("manager")
        told.live(other)
        await asyncio.sleep(20)
        told.head.end()
        await asyncio.sleep(10 * MINUTE)
        assert told.world.launches == []
        store.heal()
        await told.until(told.another_answers, 3 * MINUTE)

    tell(story)


def test_a_guard_that_was_frozen_looks_again_before_it_acts() -> None:
    async def story(told: Story) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.freeze("manager")
        told.head.answers = False
        await asyncio.sleep(60 * MINUTE)
        loop.thaw("manager")
        await asyncio.sleep(MINUTE)
        told.head.answers = True
        await asyncio.sleep(MINUTE)

    told = tell(story)
    assert told.head.is_up and told.leases == []


def test_a_head_that_the_operator_starts_is_left_to_come_up() -> None:
    async def story(told: Story) -> None:
        told.head.end()
        coming = told.world.new_head(answers=False)
        await asyncio.sleep(10 * MINUTE)
        coming.answers = True
        await asyncio.sleep(10 * MINUTE)

    assert tell(story).leases == []


# --- what goes wrong on the way ---------------------------------------------------------------------


def test_a_launch_that_fails_is_tried_again_and_goes_on_with_what_is_there() -> None:
    async def story(told: Story) -> None:
        told.world.launch_failures = 2
        told.head.end()
        await told.until(told.another_answers, 5 * MINUTE)

    told = tell(story)
    assert told.world.launches == ["guard/i-1/0000"] * 3
    assert told.world.most_up == 1


def test_a_guard_whose_process_dies_goes_on_with_its_lease() -> None:
    async def story(told: Story) -> None:
        told.head.end()
        await told.until(lambda: bool(told.world.launches), MINUTE)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.kill("manager")
        again = GuardMachine(told.world, told.store, "manager, again")
        again.memory = told.machine.memory
        told.live(again)
        await told.until(told.another_answers, 3 * MINUTE)

    assert tell(story).leases == ["guard/i-1/0000"]


def test_a_guard_that_comes_back_waits_for_what_ec2_was_asked_before() -> None:
    async def story(told: Story) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        told.head.end()
        await told.until(lambda: bool(told.world.launches), MINUTE)
        await asyncio.sleep(0.3)  # EC2 has been asked, and the machine is not there yet
        loop.kill("manager")
        again = GuardMachine(told.world, told.store, "manager, again")
        again.memory = told.machine.memory
        told.live(again)
        await told.until(told.another_answers, 3 * MINUTE)

    assert tell(story).world.most_up == 1


def test_a_guard_whose_machine_dies_half_way_is_followed_by_another() -> None:
    async def story(told: Story) -> None:
        other = GuardMachine(told.world, told.store, "other")
        told.live(other)
        await asyncio.sleep(20)
        told.world.up_seconds = 10 * MINUTE
        told.head.end()
        await told.until(lambda: len(told.world.up) == 1, 2 * MINUTE)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        holder = "other" if other.memory.claim is not None and other.memory.claim.is_sure else "manager"
        loop.kill(holder)
        half_made = told.world.up[0]
        await told.until(told.another_answers, HOLD + 20 * MINUTE)
        assert not half_made.is_up

    told = tell(story)
    assert told.leases == ["guard/i-1/0000", "guard/i-1/0001"]
    assert told.world.most_up == 1


def test_a_launch_that_does_not_end_is_killed_when_the_lease_runs_out() -> None:
    async def story(told: Story) -> None:
        told.world.up_seconds = 100 * MINUTE
        told.head.end()
        await told.until(lambda: len(told.world.up) == 1, 2 * MINUTE)
        told.world.up_seconds = 30
        await told.until(told.another_answers, 2 * HOLD + 10 * MINUTE)

    assert tell(story).leases[-1] == "guard/i-1/0001"


def test_of_two_heads_the_first_that_answers_stays() -> None:
    async def story(told: Story) -> None:
        await asyncio.sleep(10)
        told.world.new_head("by mistake")
        await asyncio.sleep(MINUTE)

    told = tell(story)
    assert [each.id for each in told.world.up] == [told.head.id]


def test_a_head_that_was_silent_once_does_not_delay_its_replacement_later() -> None:
    async def story(told: Story) -> None:
        told.head.answers = False
        await told.until(lambda: told.leases != [], 6 * MINUTE)
        told.head.answers, told.head.state = True, "running"
        await asyncio.sleep(HOLD + 2 * MINUTE)
        if told.head.is_up:
            told.head.end()
        await told.until(told.another_answers, 3 * MINUTE)

    tell(story)


# --- chance -----------------------------------------------------------------------------------------


async def chaos(seed: int, shared: ObjectStore) -> Ec2World:
    """Three guards, a bad store, a slow EC2, launches that fail; guards die and come back remembering."""
    random = Random(seed)
    world = Ec2World(random, shared)
    world.delay_seconds = random.choice((0.1, 1.0, 8.0))
    world.launch_failures = random.choice((0, 0, 1, 3))
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    machines = []
    for number in range(3):
        store = FaultyObjectStore(
            shared,
            random,
            put_error_rate=0.1,
            put_lost_rate=0.15,
            put_late_rate=0.15,
            read_error_rate=0.1,
            delay_seconds=random.choice((0.01, 0.5)),
        )
        machines.append(GuardMachine(world, store, f"guard-{number}"))
    head = world.new_head()
    lives = dict.fromkeys(range(3), 0)

    def start(number: int) -> None:
        machine = machines[number]
        loop.start(f"guard-{number}/{lives[number]}", machine.guard().run())

    for number in range(3):
        start(number)
    await asyncio.sleep(60)
    head.end()
    for _ in range(random.randrange(0, 6)):  # while they are at it
        await asyncio.sleep(random.uniform(0, random.choice((8, 30, 120))))
        number = random.randrange(3)
        loop.kill(f"guard-{number}/{lives[number]}")
        lives[number] += 1
        await asyncio.sleep(random.uniform(0, random.choice((2, 30))))
        start(number)
        if random.random() < 0.3:
            world.silent_until = world.now + random.uniform(0, 120)
    started = world.now
    while not any(each.answers for each in world.up):
        assert world.now - started < 10 * HOLD, "no head came"
        await asyncio.sleep(5)
    await asyncio.sleep(5 * MINUTE)
    return world


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_whatever_happens_there_is_one_head_in_the_end_and_never_two(first: int) -> None:
    for seed in range(first, first + 20):
        world = run(chaos(seed, MemoryObjectStore()))
        assert len(world.up) == 1, f"seed {seed}"
        assert world.most_up == 1, f"seed {seed}: two heads at once"


class StoreThatOverwrites(MemoryObjectStore):
    """What must not be: every put is the first one."""

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        self._objects[key] = data
        return PutOutcome.CREATED


def test_without_the_exclusive_put_the_same_chance_finds_two_heads() -> None:
    assert any(run(chaos(seed, StoreThatOverwrites())).most_up > 1 for seed in range(60))
