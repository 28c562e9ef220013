"""Keeping each pool at the size that its work needs: start, retire, and notice who is missing.

Once a second the leader compares what is wanted (`scaling.wanted_workers`) with what the fleet says is
there. Too few: new workers are started, a few at a time. Too many: workers that were idle for `idle_seconds`
are asked to leave, those on the node with the fewest workers first, so that whole nodes become free. A
worker that the fleet does not know is lost, whoever started it; a worker that was asked to leave and does
not is ended.

Where the cloud refuses machines of a type, Ray's autoscaler goes on asking for that type. So workers that
wait are started anew, to be placed anywhere but on the types that were refused lately. When no other type has
their shape, the autoscaler says that they are impossible, and they may be placed anywhere again.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from . import commands as c
from .errors import Unavailable
from .jobs import State
from .leader import Leader
from .scaling import REFUSAL_SECONDS, Machines, outlook, shape_of, wanted_workers
from .settings import PoolSettings, Settings
from .worker_registry import KnownWorker

LOOK_SECONDS = 1.0
STARTS_MAX = 8  # of one pool in one look
PATIENCE_SECONDS = 3.0  # a worker on a machine that is there has started by then, mostly
MACHINES_EVERY_SECONDS = 3.0
MISSING_LOOKS = 2  # a worker must be missing this often: a list may be older than a start


class Fleet(Protocol):
    """The workers' processes."""

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        """Start a worker on no machine of these types."""
        ...

    async def end(self, name: str) -> None: ...

    async def names(self) -> dict[str, str]:
        """Name -> pool of every worker that exists or is being started. Raises Unavailable."""
        ...

    async def machines(self) -> Machines | None:
        """What is being done about machines that are not there; None if nobody can say."""
        ...


class PoolScaler:
    """One for each leadership."""

    def __init__(self, leader: Leader, fleet: Fleet, settings: Settings) -> None:
        self._leader = leader
        self._fleet = fleet
        self._settings = settings
        self._started = 0
        self._missing: dict[str, int] = {}
        self._look_now = asyncio.Event()
        self._starting_since: dict[str, float] = {}
        self._machines: Machines | None = None
        self._machines_at = float("-inf")
        self._not_on: dict[str, frozenset[str]] = {}  # pool -> machine types
        self._anywhere_until: dict[str, float] = {}

    def look_now(self) -> None:
        """Something has changed: do not wait for the second to end."""
        self._look_now.set()

    async def run(self) -> None:
        while True:
            try:
                await self._look()
            except Unavailable:
                pass  # level-triggered: the next look sees the same
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._look_now.wait()
            except TimeoutError:
                pass
            self._look_now.clear()

    async def _look(self) -> None:
        names = await self._fleet.names()
        self._notice_missing(names)
        await self._end_lost(names)
        for pool, pool_settings in self._settings.pools.items():
            await self._level(pool, pool_settings, [name for name, its in names.items() if its == pool])

    def _notice_missing(self, names: dict[str, str]) -> None:
        leader = self._leader
        missing = [name for name in leader.registry.workers if name not in names]
        missing += [
            name for name in leader.state.leases if name not in names and name not in leader.registry.workers
        ]
        self._missing = {name: self._missing.get(name, 0) + 1 for name in missing}
        for name, looks in self._missing.items():
            if looks == MISSING_LOOKS:
                leader.begin(leader.lose_worker(name), f"loss of {name}")

    async def _end_lost(self, names: dict[str, str]) -> None:
        """What the leader has given up is not there, whatever the fleet says: its machine may be gone.

        Ray may take a minute to see that. Until then a worker that is lost would pass for one that starts.
        """
        lost = self._leader.registry.lost
        lost &= names.keys()
        for name in sorted(lost):
            await self._fleet.end(name)
            names.pop(name)

    async def _level(self, pool: str, pool_settings: PoolSettings, names: list[str]) -> None:
        leader = self._leader
        workers = leader.registry.workers
        staying = [name for name in names if not (name in workers and workers[name].retiring)]
        measured = leader.job_seconds.get(pool)
        queued, running = self._load(pool)
        wanted = wanted_workers(
            pool_settings,
            queued=queued,
            running=running,
            job_seconds=measured.seconds if measured is not None else None,
        )
        starting = [name for name in staying if name not in workers or not workers[name].reported]
        waiting = await self._waiting(pool, pool_settings, len(starting))
        if waiting is not None and self._choose_types(pool, pool_settings):
            for name in starting:
                await self._fleet.end(name)  # the next look starts others in their place
        leader.pool_views[pool] = c.PoolView(
            pool, wanted, len(staying), pool_settings.min_workers, pool_settings.max_workers, waiting
        )
        for _ in range(min(wanted - len(staying), STARTS_MAX)):
            self._started += 1
            name = f"worker-{pool}-{leader.state.epoch}.{self._started}"
            await self._fleet.start(pool, name, self._not_on.get(pool, frozenset()))
        if len(staying) > wanted:
            self._retire_idle(
                pool_settings, [workers[n] for n in staying if n in workers], len(staying) - wanted
            )
        await self._end_stuck(pool_settings, [workers[n] for n in names if n in workers])

    async def _waiting(self, pool: str, pool_settings: PoolSettings, starting: int) -> str | None:
        """What a pool's missing workers wait for, in words."""
        now = asyncio.get_running_loop().time()
        if not starting:
            self._starting_since.pop(pool, None)
            return None
        text = f"{starting} worker{'s' if starting > 1 else ''} to start"
        if now - self._starting_since.setdefault(pool, now) < PATIENCE_SECONDS:
            return text  # they have a machine, and will be there in a moment
        if now - self._machines_at > MACHINES_EVERY_SECONDS:
            self._machines_at = now
            self._machines = await self._fleet.machines()
        why = None
        if self._machines is not None:
            why = outlook(self._machines, shape_of(pool_settings), self._leader.commits.now())
        return f"{text}: {why}" if why else text

    def _choose_types(self, pool: str, pool_settings: PoolSettings) -> bool:
        """On which types a pool's workers are not to wait. True if that has changed."""
        if self._machines is None:
            return False
        now = self._leader.commits.now()
        before = self._not_on.get(pool, frozenset())
        refused = self._machines.refused_lately(now)
        if before and shape_of(pool_settings) in self._machines.impossible:
            self._anywhere_until[pool] = now + REFUSAL_SECONDS
        if now < self._anywhere_until.get(pool, 0.0):
            refused = frozenset()
        self._not_on[pool] = refused
        return refused != before and bool(refused or before)

    def _load(self, pool: str) -> tuple[int, int]:
        """Queued jobs of a pool (paused queues do not count), and running ones."""
        state = self._leader.state
        queues = {lane.queue for lane in state.ready_lanes(pool)}
        queued = sum(state.counts[queue][State.QUEUED] for queue in queues)
        workers = self._leader.registry.workers
        running = sum(
            len(held) for name, held in state.leases.items() if name in workers and workers[name].pool == pool
        )
        return queued, running

    def _retire_idle(self, pool: PoolSettings, workers: list[KnownWorker], excess: int) -> None:
        now = asyncio.get_running_loop().time()
        on_node: dict[str, int] = {}
        for worker in workers:
            on_node[worker.node] = on_node.get(worker.node, 0) + 1
        idle = [
            worker
            for worker in workers
            if worker.idle_since is not None and now - worker.idle_since >= pool.idle_seconds
        ]
        idle.sort(key=lambda worker: (on_node[worker.node], worker.node, worker.name))
        for worker in idle[:excess]:
            worker.retiring = True
            worker.wake()

    async def _end_stuck(self, pool: PoolSettings, workers: list[KnownWorker]) -> None:
        now = asyncio.get_running_loop().time()
        for worker in workers:
            if worker.retiring and now - worker.seen_at > self._settings.lease_seconds:
                await self._fleet.end(worker.name)
