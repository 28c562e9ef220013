"""A small EC2 and a `ray up` in virtual time, for guards to keep a head alive in.

A head has the real `Pulse`, as a process of its machine: it ends with the machine, hangs with it, and
answers by its own way to the store.
"""

from __future__ import annotations

import asyncio
import itertools
from random import Random

from jobsvc.faulty_store import FaultyObjectStore
from jobsvc.guard import Ec2Silent, Guard, Head, Memory, Sight
from jobsvc.head_pulse import Pulse
from jobsvc.node_settings import GuardSettings
from jobsvc.object_store import ObjectStore

from ..simulation.virtual_loop import VirtualLoop

SETTINGS = GuardSettings()
CLUSTER = "harvest"


class Machine:
    """A head, or what became of one."""

    def __init__(self, number: int, launched_at: float, launched_for: str) -> None:
        self.id = f"i-{number}"
        self.launched_at = launched_at
        self.launched_for = launched_for
        self.state = "running"
        self.answers = False  # its GCS
        self.impaired = False
        self.way_to_store: FaultyObjectStore | None = None
        self.ended_at = 0.0
        self.ended_alive = False

    @property
    def is_up(self) -> bool:
        return self.state == "running"

    @property
    def pulse(self) -> str:
        """The name of the process."""
        return f"pulse of {self.id}"

    async def gcs_answers(self) -> bool:
        await asyncio.sleep(2.0)
        return self.answers

    def end(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        if self.is_up:
            self.ended_at, self.ended_alive = loop.time(), self.answers
        loop.kill(self.pulse)
        self.state, self.answers = "terminated", False

    def hang(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.freeze(self.pulse)
        self.answers = False


class Ec2World:
    """The truth. `launches` names the lease of each machine that was made."""

    def __init__(self, random: Random, store: ObjectStore) -> None:
        self.random = random
        self.store = store
        self.machines: list[Machine] = []
        self.launches: list[str] = []
        self.most_up = 0
        self.up_seconds = 30.0
        self.launch_failures = 0  # of the next launches
        self.delay_seconds = 0.1
        self.silent_until = 0.0
        self.ended_machines: set[str] = set()  # of guards
        self.store_faults: dict[str, float] = {}  # between heads and the store
        self._numbers = itertools.count(1)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def new_head(self, launched_for: str = "operator", *, answers: bool = True) -> Machine:
        machine = Machine(next(self._numbers), self.now, launched_for)
        machine.answers = answers
        machine.way_to_store = FaultyObjectStore(self.store, self.random, **self.store_faults)
        pulse = Pulse(machine.way_to_store, machine.id, machine.gcs_answers)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.start(machine.pulse, pulse.run())
        self.machines.append(machine)
        self.most_up = max(self.most_up, len(self.up))
        return machine

    @property
    def up(self) -> list[Machine]:
        return [machine for machine in self.machines if machine.is_up]

    async def answer(self) -> None:
        """The way to EC2 and back; no answer while it is silent."""
        await asyncio.sleep(self.random.expovariate(1 / self.delay_seconds))
        if self.now < self.silent_until:
            raise Ec2Silent("EC2 does not answer")


class WorldCloud:
    """EC2 as one guard sees it."""

    def __init__(self, world: Ec2World, name: str) -> None:
        self.world = world
        self.name = name

    async def look(self) -> Sight:
        await self.world.answer()
        heads = tuple(
            Head(
                id=each.id,
                is_up=each.is_up,
                is_ended=each.state == "terminated",
                launched_at=each.launched_at,
                private_ip=each.id,
            )
            for each in self.world.machines
        )
        await asyncio.sleep(self.world.random.expovariate(1 / self.world.delay_seconds))
        return Sight(heads=heads, own_machine_runs=self.name not in self.world.ended_machines)

    async def is_impaired(self, instance_id: str) -> bool:
        await self.world.answer()
        return any(each.id == instance_id and each.impaired for each in self.world.machines)

    async def end(self, instance_id: str) -> None:
        await self.world.answer()
        for each in self.world.machines:
            if each.id == instance_id:
                each.end()


class WorldHands:
    """`ray up` as one guard runs it: looks for a head, makes one if there is none, sets it up."""

    def __init__(self, world: Ec2World) -> None:
        self.world = world
        self.cut_off_from: set[str] = set()

    async def head_answers(self, ip: str) -> bool:
        await asyncio.sleep(0.01)
        return any(each.id == ip and each.answers for each in self.world.up if ip not in self.cut_off_from)

    async def launch(self, started_by: str) -> bool:
        world = self.world
        self.world.launches.append(started_by)
        try:
            await world.answer()
        except Ec2Silent:
            return False
        found = world.up
        if not found:
            found = [await asyncio.shield(self._run_instances(started_by))]
        if world.launch_failures > 0:
            world.launch_failures -= 1
            await asyncio.sleep(world.random.uniform(1.0, 20.0))
            return False
        await asyncio.sleep(world.up_seconds)
        found[0].answers = found[0].is_up
        return found[0].is_up

    def _run_instances(self, started_by: str) -> asyncio.Task[Machine]:
        """EC2 does it, whether or not the one who asked for it still lives."""

        async def new_head() -> Machine:
            await asyncio.sleep(self.world.random.uniform(0.5, 5.0))
            return self.world.new_head(started_by, answers=False)

        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop.start("EC2", new_head())


class GuardMachine:
    """A manager node: its guard's process may die and come back, its memory stays."""

    def __init__(
        self, world: Ec2World, store: ObjectStore, name: str = "manager", settings: GuardSettings = SETTINGS
    ) -> None:
        self.world = world
        self.store = store
        self.name = name
        self.settings = settings
        self.memory = Memory()
        self.hands = WorldHands(world)
        self.cloud = WorldCloud(world, name)
        self._nonces = itertools.count()

    def guard(self) -> Guard:
        """A process of the guard."""
        return Guard(
            self.settings,
            self.store,
            self.cloud,
            self.hands,
            name=self.name,
            cluster_name=CLUSTER,
            memory=self.memory,
            remember=self._remember,
            new_nonce=lambda: f"{self.name}-{next(self._nonces)}",
            monotonic=asyncio.get_running_loop().time,
        )

    def _remember(self, memory: Memory) -> None:
        self.memory = memory
