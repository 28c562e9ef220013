"""A pool whose workers cannot live costs itself, and nobody else."""

from __future__ import annotations

import asyncio

import pytest

from jobsvc import commands as c
from jobsvc.jobs import State
from jobsvc.scaling import MachineRequest, Machines
from jobsvc.settings import PoolSettings

from .manager_world import FakeFleet, Pair, done, run, until

POOLS = {
    "bad": PoolSettings(min_workers=1, max_workers=3),
    "default": PoolSettings(min_workers=1, max_workers=3, target_drain_seconds=1.0),
    "also": PoolSettings(min_workers=1, max_workers=1),
}


class BadPool(FakeFleet):
    """Pool `bad` does what the story says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.tries: list[float] = []

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        if pool == "bad" and self.how != "heals":
            self.tries.append(asyncio.get_running_loop().time())
            if self.how == "raises":
                raise ValueError("working_dir must be a URI")
            if self.how == "hangs":
                await asyncio.sleep(1000.0)
        await super().start(pool, name, not_on)

    async def end(self, name: str) -> None:
        if self.how == "cannot end":
            raise RuntimeError("ray.kill failed")
        await super().end(name)

    async def names(self) -> dict[str, str]:
        if self.how == "no list":
            raise KeyError("namespace")
        if self.how == "dies":
            self.there = {name: pool for name, pool in self.there.items() if pool != "bad"}
        return await super().names()

    async def trouble(self) -> str | None:
        return None

    async def machines(self) -> Machines | None:
        if self.how == "no machines":
            raise OSError("GCS")
        return await super().machines()


def epoch(pair: Pair) -> int:
    return pair.managers["manager-a"].state.epoch


async def work_off(pair: Pair, count: int) -> None:
    """Jobs of the default pool run on the workers that were started for it."""
    a = pair.managers["manager-a"]
    ids = await pair.enqueue(a, *range(1, count + 1))
    while any(a.state.jobs[each].state is not State.SUCCEEDED for each in ids):
        for name in [name for name, pool in pair.fleet.there.items() if pool == "default"]:
            orders = await pair.report(a, name, can_take=5)
            await pair.report(a, name, finished=[done(grant) for grant in orders.grants])
        await asyncio.sleep(0.5)


@pytest.mark.parametrize("how", ["raises", "hangs", "dies", "no machines"])
def test_a_pool_that_cannot_be_served_slows_no_other(how: str) -> None:
    async def story(pair: Pair) -> None:
        pair.fleet = BadPool(how)
        a, _ = await pair.leader_and_standby()
        began = asyncio.get_running_loop().time()
        await until(lambda: {"default", "also"} <= set(pair.fleet.there.values()))
        assert asyncio.get_running_loop().time() - began < 2.0
        await asyncio.wait_for(work_off(pair, 30), 10.0)
        await asyncio.sleep(100.0)
        assert epoch(pair) == 1 and a.role == "leader"

    run(story, pools=POOLS)


def test_a_start_that_raises_is_named_counted_and_tried_again_ever_later_until_it_works() -> None:
    async def story(pair: Pair) -> None:
        fleet = pair.fleet = BadPool("raises")
        a, _ = await pair.leader_and_standby()
        await until(lambda: len(fleet.tries) == 5)
        # then the pauses grow
        pauses = [later - earlier for earlier, later in zip(fleet.tries, fleet.tries[1:], strict=False)]
        assert pauses == sorted(pauses) and pauses[0] >= 2.0 and pauses[-1] >= 16.0, pauses
        # and pool, jobs, status and metrics say so
        status = pair.status(a)
        assert status.pulse is not None and status.healthy
        said = {view.name: view.waiting for view in status.pulse.pools}
        assert said["default"] is None or "to start" in said["default"]
        assert said["bad"] is not None
        assert said["bad"].startswith("workers cannot be started since 13:46:")
        assert "ValueError: working_dir must be a URI; the next try is in" in said["bad"]
        [problem] = [each for each in status.problems if each.part == "start of workers bad"]
        assert problem.times == 5 and "working_dir" in problem.text
        [count] = [each for each in status.counters if each.name == "part_failures"]
        assert count.labels == {"part": "start of workers"} and count.value == 5
        # and it is forgotten when a worker lives
        fleet.how = "heals"
        await until(lambda: "bad" in fleet.there.values(), 100.0)
        for _ in range(3):
            for name in fleet.there:
                await pair.report(a, name)
            await asyncio.sleep(4.0)
        assert pair.status(a).problems == []
        assert "cannot" not in str({view.name: view.waiting for view in pair.status(a).pulse.pools})  # type: ignore[union-attr]

    run(story, pools=POOLS)


def test_a_pool_that_no_machine_can_serve_says_so_at_once() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        pair.fleet.outlook = Machines(here=[{"CPU": 4.0}])
        [job] = await pair.enqueue(a, 1, queue="g", pool="gpu")
        await until(lambda: bool(a.leader and a.leader.pool_views["gpu"].waiting), 2.5)
        said = "no machine here has what a worker of this pool needs (GPU: 1)"
        assert a.leader is not None and a.leader.pool_views["gpu"].waiting == said
        [found] = await pair.ask(a, c.GetJobs([job]))
        assert found.items[0].waiting == f"for a worker of pool gpu: {said}"
        # and that ends when a machine comes
        pair.fleet.outlook = Machines(here=[{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}])
        await until(lambda: "to start" in str(a.leader and a.leader.pool_views["gpu"].waiting))

    run(story, pools={**POOLS, "gpu": PoolSettings(num_gpus=1)}, queues={"g": "gpu"})


class TwoCpus(FakeFleet):
    """Room for two. Processes of pool `bad` end before Ray knows them, and keep their room."""

    def __init__(self) -> None:
        super().__init__()
        self.tries: list[float] = []

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        await super().start(pool, name, not_on)
        if pool == "bad":
            self.tries.append(asyncio.get_running_loop().time())

    async def trouble(self) -> str | None:
        return f"a process ended ({len(self.tries)} so far)" if self.tries else None

    def up(self) -> list[str]:
        return [name for name in list(self.there)[:2] if self.there[name] != "bad"]


def test_a_start_that_never_gets_through_does_not_keep_its_room_from_others() -> None:
    async def story(pair: Pair) -> None:
        # given a pool whose workers never come up, and work for two of another, on a machine for two
        fleet = pair.fleet = TwoCpus()
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, *range(1, 41))
        began = asyncio.get_running_loop().time()
        both_at: float | None = None
        while (now := asyncio.get_running_loop().time()) < began + 200.0:
            for name in fleet.up():
                await pair.report(a, name, can_take=1)
            if both_at is None and len(fleet.up()) == 2:
                both_at = now
            await asyncio.sleep(0.5)
        # then the other has both places in seconds
        assert both_at is not None and both_at - began < 10.0
        # and the bad one is tried once a minute, and says why
        pauses = [later - earlier for earlier, later in zip(fleet.tries, fleet.tries[1:], strict=False)]
        assert len(pauses) == 3 and min(pauses) >= 60.0, pauses
        assert a.leader is not None
        said = a.leader.pool_views["bad"].waiting
        assert said is not None and "times: a process ended (" in said, said
        assert all(not name.startswith("worker-default") for name in fleet.ended)

    default = PoolSettings(min_workers=1, max_workers=2, target_drain_seconds=1.0)
    pools = {"bad": PoolSettings(min_workers=1), "default": default}
    run(story, pools=pools)


def test_no_pool_that_waits_for_a_machine_is_taken_for_one_whose_processes_end() -> None:
    async def story(pair: Pair) -> None:
        # given processes of somebody's that end again and again, while a machine is on its way
        fleet = pair.fleet = TwoCpus()
        fleet.outlook = Machines(requested=[MachineRequest("big", 1, 0.0)])
        fleet.tries.append(0.0)
        await pair.leader_and_standby()
        for number in range(20):
            await asyncio.sleep(10.0)
            fleet.tries.append(float(number))
        # then nobody's start is ended
        assert fleet.ended == []

    run(story, pools={"default": POOLS["also"]})


@pytest.mark.parametrize("how", ["no list", "cannot end"])
def test_a_fleet_that_raises_does_not_end_the_leadership(how: str) -> None:
    async def story(pair: Pair) -> None:
        fleet = pair.fleet = BadPool("")
        a, _ = await pair.leader_and_standby()
        await until(lambda: len(fleet.there) == 3)
        fleet.how = how
        # given workers that must be ended, and jobs
        for name in list(fleet.there):
            await pair.report(a, name)
        await asyncio.wait_for(work_off(pair, 5), 10.0)
        await asyncio.sleep(120.0)
        assert epoch(pair) == 1 and a.role == "leader"
        assert [each.part for each in pair.status(a).problems]
        [answer] = await pair.ask(a, c.GetWorkers())
        assert isinstance(answer, c.Workers)
        # then all is well when the fleet is
        fleet.how = ""
        await until(lambda: {"bad", "default", "also"} <= set(fleet.there.values()), 100.0)

    run(story, pools=POOLS, lease_seconds=6.0, heartbeat_seconds=1.0)
