"""The way between a guard and its head is cut: a head that lives stays, one that does not is replaced."""

from __future__ import annotations

import asyncio
from random import Random
from typing import NamedTuple

import msgspec
import pytest

from jobsvc import guard
from jobsvc.faulty_store import FaultyObjectStore
from jobsvc.guard_evidence import Evidence, Verdict, judge
from jobsvc.head_pulse import POLL_SECONDS, Sign
from jobsvc.node_settings import GuardSettings
from jobsvc.object_store import MemoryObjectStore

from ..simulation.virtual_loop import VirtualLoop, run
from .guard_world import SETTINGS, Ec2World, GuardMachine, Machine
from .test_guard import MINUTE, Story, tell

HOUR = 60 * MINUTE
PATIENCE = 3 * SETTINGS.head_silent_seconds
UP_SECONDS = 30.0 + 30.0  # to end the old head, and for another to answer
SLACK_SECONDS = 60.0  # looks, and a question that is put first


def cut(told: Story, head: Machine | None = None) -> None:
    """No packet between the guard's machine and this head; both still reach EC2 and the store."""
    told.machine.hands.cut_off_from.add((head or told.head).id)


# --- it lives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [MINUTE, PATIENCE + MINUTE, 3 * HOUR])
@pytest.mark.parametrize("impaired", [False, True])
def test_a_head_that_lives_is_not_ended_however_long_the_cut(seconds: float, impaired: bool) -> None:
    async def story(told: Story) -> None:
        cut(told)
        told.head.impaired = impaired
        await asyncio.sleep(seconds)
        told.machine.hands.cut_off_from.clear()
        await asyncio.sleep(10 * MINUTE)

    told = tell(story)
    assert (told.head.is_up, told.leases, told.world.launches) == (True, [], [])


def test_a_cut_costs_a_put_in_ten_seconds_at_most() -> None:
    async def story(told: Story) -> None:
        await asyncio.sleep(HOUR)
        assert told.store.requests["put"] == 0
        cut(told)
        await asyncio.sleep(HOUR)
        assert 0 < told.store.requests["put"] <= HOUR / POLL_SECONDS + 1

    tell(story)


def test_a_head_that_cannot_reach_the_store_lives_as_long_as_its_port_answers() -> None:
    async def story(told: Story) -> None:
        assert told.head.way_to_store is not None
        told.head.way_to_store.cut()
        told.head.impaired = True
        await asyncio.sleep(2 * HOUR)

    told = tell(story)
    assert told.head.is_up and told.leases == []


def test_a_guard_that_reaches_neither_head_nor_store_ends_nobody() -> None:
    async def story(told: Story) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.kill("manager")
        store = FaultyObjectStore(told.store, Random(2))
        told.machine = GuardMachine(told.world, store, "cut-off")
        told.live(told.machine)
        await asyncio.sleep(20)
        store.cut()
        cut(told)
        await asyncio.sleep(2 * HOUR)
        store.heal()
        await asyncio.sleep(HOUR)

    told = tell(story)
    assert told.head.is_up and told.leases == []


def head_that_was_well_again_while_the_store_was_away(silent_seconds: float) -> Machine:
    """It hangs for almost the guard's patience; then nobody reaches the store; meanwhile it is well again."""

    async def story(told: Story) -> None:
        await silent_then_no_store_then_back(told, silent_seconds)

    return tell(story).head


async def silent_then_no_store_then_back(told: Story, silent_seconds: float) -> None:
    assert told.head.way_to_store is not None
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    store = FaultyObjectStore(told.store, Random(3))
    loop.kill("manager")
    told.machine = GuardMachine(told.world, store, "again")
    told.live(told.machine)
    await asyncio.sleep(20)
    cut(told)
    loop.freeze(told.head.pulse)
    await asyncio.sleep(silent_seconds)
    for each in (store, told.head.way_to_store):
        each.cut()
    loop.thaw(told.head.pulse)
    await asyncio.sleep(20 * MINUTE)
    store.heal()
    await asyncio.sleep(12)
    told.head.way_to_store.heal()
    await asyncio.sleep(20 * MINUTE)


ALMOST = [PATIENCE - less for less in (2, 5, 8)]


def test_time_before_a_long_gap_does_not_count() -> None:
    assert all(head_that_was_well_again_while_the_store_was_away(silent).is_up for silent in ALMOST)


def test_if_it_did_count_a_head_that_lives_would_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GAP_SECONDS_MAX", 1e9)
    assert not all(head_that_was_well_again_while_the_store_was_away(silent).is_up for silent in ALMOST)


def test_another_head_behind_a_cut_is_taken_for_the_living_one_that_it_is() -> None:
    async def story(told: Story) -> None:
        coming = told.world.new_head()
        cut(told, coming)
        told.head.end()
        await asyncio.sleep(2 * SETTINGS.hold_seconds)
        assert coming.is_up and told.machine.memory.head == coming.id
        told.head = coming
        coming.end()
        await told.until(told.another_answers, 2 * MINUTE)

    tell(story)


# --- it does not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["its Ray is dead", "it hangs", "EC2 has ended it"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_head_that_does_not_live_is_replaced_in_time(fate: str, is_cut: bool) -> None:
    async def story(told: Story) -> None:
        if is_cut:
            cut(told)
            await asyncio.sleep(HOUR)
        bound = PATIENCE + UP_SECONDS + SLACK_SECONDS
        if fate == "its Ray is dead":
            told.head.answers = False
        elif fate == "it hangs":
            told.head.hang()
        else:
            told.head.end()
            bound = UP_SECONDS + SLACK_SECONDS
        await told.until(told.another_answers, bound)

    told = tell(story)
    assert not told.head.is_up
    assert told.world.most_up == 1


def test_a_head_that_hangs_for_a_while_and_answers_late_is_asked_again() -> None:
    async def story(told: Story) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        cut(told)
        loop.freeze(told.head.pulse)
        await asyncio.sleep(PATIENCE - 30)
        loop.thaw(told.head.pulse)
        await asyncio.sleep(30)
        loop.freeze(told.head.pulse)
        await asyncio.sleep(PATIENCE - 30)
        assert told.head.is_up
        await told.until(told.another_answers, UP_SECONDS + SLACK_SECONDS)

    tell(story)


def test_a_head_without_a_pulse_is_judged_by_its_port_alone() -> None:
    # given a head of the code before this
    async def story(told: Story) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.kill(told.head.pulse)
        cut(told)
        await told.until(told.another_answers, PATIENCE + UP_SECONDS + SLACK_SECONDS)

    tell(story)


def test_a_pulse_that_did_not_ask_its_ray_would_keep_a_dead_head(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(told: Story) -> None:
        told.head.answers = False
        with pytest.raises(AssertionError, match="not in"):
            await told.until(told.another_answers, HOUR)

    async def always(self: Machine) -> bool:
        return True

    monkeypatch.setattr(Machine, "gcs_answers", always)
    tell(story)


# --- chance -----------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    world: Ec2World
    fate: str
    replaced_after: float


FATES = ("lives", "its Ray is dead", "it hangs", "EC2 has ended it")
BOUND_SECONDS = 20 * MINUTE  # PATIENCE, with looks that fail and are slow, and a launch or two


async def cut_by_chance(seed: int) -> Outcome:
    """Three guards, cut off from the head for a while or for good, bad ways to the store; then its fate."""
    random = Random(seed)
    shared = MemoryObjectStore()
    world = Ec2World(random, shared)
    world.delay_seconds = random.choice((0.1, 1.0, 4.0))
    faults = {"put_error_rate": 0.1, "put_lost_rate": 0.15, "put_late_rate": 0.15, "read_error_rate": 0.05}
    faults["delay_seconds"] = random.choice((0.01, 0.5))
    world.store_faults = dict(faults)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    head = world.new_head()
    head.impaired = random.random() < 0.3
    machines = [
        GuardMachine(world, FaultyObjectStore(shared, random, **faults), f"guard-{n}") for n in range(3)
    ]
    for machine in machines:
        loop.start(machine.name, machine.guard().run())
    await asyncio.sleep(MINUTE)
    for machine in machines:
        if random.random() < 0.8:
            machine.hands.cut_off_from.add(head.id)
    for _ in range(random.randrange(4)):
        await asyncio.sleep(random.uniform(0, random.choice((MINUTE, PATIENCE, 20 * MINUTE))))
        machine = random.choice(machines)
        machine.hands.cut_off_from ^= {head.id}  # healed, or cut
        if random.random() < 0.3:
            world.silent_until = world.now + random.uniform(0, 2 * MINUTE)
        if random.random() < 0.3:
            assert isinstance(machine.store, FaultyObjectStore)
            machine.store.outage_until(world.now + random.uniform(0, 10 * MINUTE))
    fate = random.choice(FATES)
    if fate == "its Ray is dead":
        head.answers = False
    elif fate == "it hangs":
        head.hang()
    elif fate == "EC2 has ended it" and head.is_up:
        head.end()
        head.ended_alive = False  # by nobody of ours
    began = world.now
    while fate != "lives" and not any(each.answers and each is not head for each in world.up):
        assert world.now - began < BOUND_SECONDS + 12 * MINUTE, f"seed {seed}: {fate}, and no head came"
        await asyncio.sleep(1)
    took = world.now - began
    await asyncio.sleep(15 * MINUTE)
    return Outcome(world, fate, took)


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_whoever_is_cut_off_a_living_head_stays_and_a_dead_one_is_replaced(first: int) -> None:
    for seed in range(first, first + 10):
        world, fate, _ = run(cut_by_chance(seed))
        assert not any(each.ended_alive for each in world.machines), f"seed {seed}: it lived"
        assert len(world.up) == world.most_up == 1, f"seed {seed}: {fate}"
        assert (world.launches == []) == (fate == "lives"), f"seed {seed}: {fate}"


def test_without_the_answers_in_the_store_the_same_chance_ends_a_living_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def judge_by_port(seen: Evidence, settings: GuardSettings) -> Verdict:
        return judge(msgspec.structs.replace(seen, store=Sign.ASKED), settings)

    monkeypatch.setattr(guard, "judge", judge_by_port)
    monkeypatch.setattr(guard.Guard, "_watched", watched_whatever_the_store_says)
    assert any(run_to_its_end(seed) for seed in range(40))


watched_as_it_is = guard.Guard._watched


def watched_whatever_the_store_says(self: guard.Guard, *problem: object) -> float:
    return watched_as_it_is(self, *(each for each in problem if not isinstance(each, Sign)))


def run_to_its_end(seed: int) -> bool:
    """Whether a head was ended that lived."""
    return any(each.ended_alive for each in run(cut_by_chance(seed)).world.machines)
