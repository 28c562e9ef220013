"""Keeping each pool at the size that its work needs: start, retire, and notice who is missing.

Once a second the leader compares what is wanted (`scaling.wanted_workers`) with what the fleet says is
there. Too few: new workers are started, a few at a time. Too many: workers that were idle for `idle_seconds`
are asked to leave, those on the node with the fewest workers first, so that whole nodes become free. A
worker that the fleet does not know is lost, whoever started it; a worker that was asked to leave and does
not is ended.

A pool is a bulkhead. Each is looked at in a task of its own: one whose workers cannot be started, or whose
start hangs, says so in its state and holds up no other. Its `StartBrake` makes the tries ever more seldom.

Where the cloud refuses machines of a type, Ray's autoscaler goes on asking for that type. So workers that
wait are started anew, to be placed anywhere but on the types that were refused lately. When no other type has
their shape, the autoscaler says that they are impossible, and they may be placed anywhere again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import islice
from typing import Protocol

from . import commands as c
from .bulkheads import ENDS_ALL, said
from .errors import Unavailable
from .jobs import State
from .leader import Leader
from .scaling import (
    LONG_SECONDS,
    REFUSAL_SECONDS,
    Machines,
    TaskSeconds,
    impossible,
    outlook,
    shape_of,
    since,
    wanted_workers,
    while_held_back,
)
from .settings import PoolSettings, Settings
from .start_brake import StartBrake
from .worker_registry import KnownWorker

LOOK_SECONDS = 1.0
STARTS_MAX = 8  # of one pool in one look
PATIENCE_SECONDS = 3.0  # a worker on a machine that is there has started by then, mostly
QUEUED_SEEN, LANES_SEEN, HELD_SEEN = (
    100,
    100,
    5,
)  # jobs that are looked at for their tasks, of a pool, of a worker
MACHINES_EVERY_SECONDS = 3.0
PART, POOL_PART, START_PART = "scaler", "pool", "start of workers"
LONG_START_SECONDS = 15.0  # then it is said since when they have been starting
REGISTER_SECONDS = (
    60.0  # so long Ray waits for a process that it has started (worker_register_timeout_seconds)
)
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

    async def trouble(self) -> str | None:
        """The last process for a worker that ended before Ray knew it, in words; None if all came through."""
        ...


class PoolScaler:
    """One for each leadership."""

    def __init__(self, leader: Leader, fleet: Fleet, settings: Settings) -> None:
        self._leader = leader
        self._bulkheads = leader.bulkheads
        self._fleet = fleet
        self._settings = settings
        self._started = 0
        self._missing: dict[str, int] = {}
        self._look_now = asyncio.Event()
        self._levelling: dict[str, asyncio.Task[None]] = {}
        self._brakes = {pool: StartBrake() for pool in settings.pools}
        self._starting: dict[str, list[str]] = {}  # pool -> workers that have not come up
        self._starting_since: dict[str, float] = {}
        self._trouble: str | None = (
            ""  # what was there before, or has been held against a pool; "": not asked
        )
        self._machines: Machines | None = None
        self._machines_at = float("-inf")
        self._not_on: dict[str, frozenset[str]] = {}  # pool -> machine types
        self._anywhere_until: dict[str, float] = {}

    def look_now(self) -> None:
        """Something has changed: do not wait for the second to end."""
        self._look_now.set()

    def worker_died(self, worker: str, why: str) -> None:
        """Its process was seen to die."""
        self._note_death(worker, why)
        self.look_now()

    def _note_death(self, worker: str, why: str) -> None:
        for brake in self._brakes.values():
            brake.died(worker, why, self._now())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Look for ever. It is level-triggered: after a look that failed the next one sees the same."""
        while True:
            pause = LOOK_SECONDS
            try:
                await self._look()
            except ENDS_ALL:
                raise
            except Unavailable as error:  # Ray is busy or its head is away: no defect of this part
                self._bulkheads.failed(PART, error)
            except Exception as error:
                pause = self._bulkheads.failed(PART, error)
            else:
                self._bulkheads.worked(PART)
            try:
                async with asyncio.timeout(pause):
                    await self._look_now.wait()
            except TimeoutError:
                pass
            self._look_now.clear()

    async def _look(self) -> None:
        names = await self._fleet.names()
        self._notice_missing(names)
        await self._end_lost(names)
        await self._end_unknown_pools(names)
        await self._end_unborn(names)
        levelling = [
            self._level_alone(pool, [name for name, its in names.items() if its == pool])
            for pool in self._settings.pools
            if pool not in self._levelling and self._bulkheads.due(POOL_PART, pool)
        ]
        if levelling:
            await asyncio.wait(levelling, timeout=LOOK_SECONDS)  # one that hangs holds up no other

    def _level_alone(self, pool: str, names: list[str]) -> asyncio.Task[None]:
        """Whatever a pool raises costs this pool, and shows in its state."""

        async def level() -> None:
            try:
                await self._level(pool, self._settings.pools[pool], names)
            except ENDS_ALL:
                raise
            except Exception as error:
                self._bulkheads.failed(POOL_PART, error, pool)
                self._show_failed(pool, len(names), error)
            else:
                self._bulkheads.worked(POOL_PART, pool)
            finally:
                del self._levelling[pool]

        task = self._levelling[pool] = self._leader.begin(level(), f"pool {pool}")
        return task

    def _show_failed(self, pool: str, observed: int, error: Exception) -> None:
        settings, before = self._settings.pools[pool], self._leader.pool_views.get(pool)
        wanted = before.wanted if before is not None else settings.min_workers
        text = f"a defect in its scaling: {said(error)}"
        self._leader.pool_views[pool] = c.PoolView(
            pool, wanted, observed, settings.min_workers, settings.max_workers, text
        )

    def _notice_missing(self, names: dict[str, str]) -> None:
        leader = self._leader
        missing = [name for name in leader.registry.workers if name not in names]
        missing += [
            name for name in leader.state.leases if name not in names and name not in leader.registry.workers
        ]
        young = [name for brake in self._brakes.values() for name in brake.young if name not in names]
        self._missing = {name: self._missing.get(name, 0) + 1 for name in (*missing, *young)}
        for name, looks in self._missing.items():
            if looks == MISSING_LOOKS:
                self._note_death(name, "")
                if name in missing:
                    leader.begin_loss(name)

    async def _end_lost(self, names: dict[str, str]) -> None:
        """What the leader has given up is not there, whatever the fleet says: its machine may be gone.

        Ray may take a minute to see that. Until then a worker that is lost would pass for one that starts.
        """
        lost = self._leader.registry.lost
        lost &= names.keys()
        for name in sorted(lost):
            await self._end(name)
            names.pop(name)

    async def _end_unborn(self, names: dict[str, str]) -> None:
        """A process that ends before Ray knows it leaves its worker starting, and its CPUs set aside.

        For a minute nobody else gets them, and the process counts among the few that Ray starts at a time; so
        the next try is after that minute. Whose process it was, nobody says: it is held against the pool that
        has been starting for the longest; if that was wrong, the next one will be held against another.
        """
        now = self._now()
        suspects = [(at, pool) for pool, at in self._starting_since.items() if now - at > PATIENCE_SECONDS]
        before = self._trouble
        if not suspects and before != "":
            return
        self._trouble = await self._fleet.trouble()
        if not suspects or not self._trouble or self._trouble == before:
            return
        if self._machines is not None and (self._machines.requested or self._machines.starting):
            return  # those that wait for machines would be taken for it
        pool = min(suspects)[1]
        self._brakes[pool].refused(self._trouble, now, REGISTER_SECONDS)
        for name in self._starting.pop(pool, []):
            await self._end(name)
            names.pop(name, None)
        del self._starting_since[pool]

    async def _end_unknown_pools(self, names: dict[str, str]) -> None:
        """Workers of a pool that the settings do not have any more get no jobs: they are asked to leave."""
        workers = self._leader.registry.workers
        for name in [name for name, pool in names.items() if pool not in self._settings.pools]:
            worker = workers.get(name)
            if worker is None:
                await self._fleet.end(name)
            elif not worker.retiring:
                worker.retiring = True
                worker.wake()

    async def _end(self, name: str) -> None:
        for brake in self._brakes.values():
            brake.ended(name)
        await self._fleet.end(name)

    async def _level(self, pool: str, pool_settings: PoolSettings, names: list[str]) -> None:
        leader = self._leader
        workers = leader.registry.workers
        staying = [name for name in names if not (name in workers and workers[name].retiring)]
        for name in set(names).difference(staying):
            self._brakes[pool].ended(name)
        wanted = self._wanted(pool, pool_settings)
        here = leader.registry.here(pool)
        held_back = sum(worker.held_back is not None for worker in here)
        wanted = while_held_back(
            pool_settings, wanted, staying=len(staying), here=len(here), held_back=held_back
        )
        starting = [name for name in staying if name not in workers or not workers[name].reported]
        self._starting[pool] = starting
        waiting = await self._waiting(pool, pool_settings, len(starting))
        if waiting is not None and self._choose_types(pool, pool_settings):
            for name in starting:
                await self._end(name)  # the next look starts others in their place
        leader.pool_views[pool] = c.PoolView(
            pool, wanted, len(staying), pool_settings.min_workers, pool_settings.max_workers, waiting
        )
        await self._start(pool, min(wanted - len(staying), STARTS_MAX))
        if len(staying) > wanted:
            self._retire_idle(
                pool_settings, [workers[n] for n in staying if n in workers], len(staying) - wanted
            )
        await self._end_stuck(pool_settings, [workers[n] for n in names if n in workers])

    async def _start(self, pool: str, count: int) -> None:
        """A start that is refused (Ray does not take the pool's settings, say) is tried again ever later."""
        brake = self._brakes[pool]
        brake.looked(self._now(), self._starting[pool])
        for _ in range(count):
            if not brake.may_start(self._now()):
                return
            self._started += 1
            name = f"worker-{pool}-{self._leader.state.epoch}.{self._started}"
            try:
                await self._fleet.start(pool, name, self._not_on.get(pool, frozenset()))
            except ENDS_ALL:
                raise
            except Exception as error:
                brake.refused(said(error), self._now())
                self._bulkheads.failed(START_PART, error, pool)
                return
            brake.started(name, self._now())
            self._bulkheads.worked(START_PART, pool)

    def _held_back(self, pool: str) -> str | None:
        """Why no worker of a pool is started now, or was not when it was last tried, in words."""
        return self._brakes[pool].problem(self._now(), self._leader.commits.clock.wall())

    async def _waiting(self, pool: str, pool_settings: PoolSettings, starting: int) -> str | None:
        """What a pool's missing workers wait for, in words."""
        now = asyncio.get_running_loop().time()
        held_back = self._held_back(pool)
        if not starting:
            self._starting_since.pop(pool, None)
            return held_back
        text = f"{held_back}; " if held_back else ""
        machines = await self._look_for_machines()
        never = impossible(machines, shape_of(pool_settings)) if machines is not None else None
        if never is not None:
            return text + never
        text += f"{starting} worker{'s' if starting > 1 else ''} to start"
        seconds = now - self._starting_since.setdefault(pool, now)
        if seconds < PATIENCE_SECONDS:
            return text  # they have a machine, and will be there in a moment
        log_time = self._leader.commits.now()
        why = outlook(machines, shape_of(pool_settings), log_time) if machines is not None else None
        if why is not None:
            return f"{text}: {why}"
        return text + since(log_time - seconds) if seconds > LONG_START_SECONDS else text

    async def _look_for_machines(self) -> Machines | None:
        now = self._now()
        if now - self._machines_at > MACHINES_EVERY_SECONDS:
            self._machines_at = now
            self._machines = await self._fleet.machines()
        return self._machines

    def _choose_types(self, pool: str, pool_settings: PoolSettings) -> bool:
        """On which types a pool's workers are not to wait. True if that has changed."""
        if self._machines is None:
            return False
        now = self._leader.commits.clock.wall()
        before = self._not_on.get(pool, frozenset())
        refused = self._machines.refused_lately(now)
        if before and shape_of(pool_settings) in self._machines.impossible:
            self._anywhere_until[pool] = now + REFUSAL_SECONDS
        if now < self._anywhere_until.get(pool, 0.0):
            refused = frozenset()
        self._not_on[pool] = refused
        return refused != before and bool(refused or before)

    def _wanted(self, pool: str, pool_settings: PoolSettings) -> int:
        """What the jobs ask for: queued ones (paused queues do not count), and those that workers hold."""
        leader, now = self._leader, self._now()
        state, workers = leader.state, leader.registry.workers
        lanes = state.ready_lanes(pool)
        held = [jobs for name, jobs in state.leases.items() if name in workers and workers[name].pool == pool]
        tasks = Counter(job.options.task for jobs in held for job in islice(jobs.values(), HELD_SEEN))
        for lane in lanes[:LANES_SEEN]:
            tasks.update(job.options.task for job in lane.heads(max(1, QUEUED_SEEN // len(lanes))))
        queued = sum(state.counts[queue][State.QUEUED] for queue in {lane.queue for lane in lanes})
        busy_long = [w for w in leader.registry.here(pool) if w.runs_for(now) > LONG_SECONDS]
        return wanted_workers(
            pool_settings,
            queued=max(0, queued - sum(lane.set_aside() for lane in lanes)),
            running=sum(map(len, held)),
            job_seconds=leader.task_seconds.get(pool, TaskSeconds()).mean(tasks),
            busy_long=len(busy_long),
        )

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
            self._brakes[worker.pool].ended(worker.name)
            worker.wake()

    async def _end_stuck(self, pool: PoolSettings, workers: list[KnownWorker]) -> None:
        now = asyncio.get_running_loop().time()
        for worker in workers:
            if worker.retiring and now - worker.seen_at > self._settings.lease_seconds:
                await self._end(worker.name)
