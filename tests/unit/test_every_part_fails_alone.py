"""Every part beside the commit path raises in turn: whoever leads goes on leading, and jobs go on running.

The parts are not listed here. An ordinary life of a pair of managers is traced: each function of the package
that runs in it, and that never runs on the commit path (apply, append), is a place where something may raise.
Then the same life is lived again for each of them, and the function raises for a while.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

import jobsvc
from jobsvc import commands as c
from jobsvc import orphans
from jobsvc.errors import Unavailable
from jobsvc.jobs import TERMINAL, Finished, Outcome, encode
from jobsvc.scaling import MachineRequest, Machines
from jobsvc.settings import PoolSettings

from ..simulation import virtual_loop
from . import manager_world
from .manager_world import START, FakeFleet, FakePeer, Pair, done, until
from .queue_world import job_id

PACKAGE = Path(jobsvc.__file__).parent
RAISES_ONCE_AT, RAISES_FROM, RAISES_UNTIL, CALLS_UNTIL, ENDS_AT = 6.0, 10.0, 24.0, 26.0, 120.0
GRACE_SECONDS = 2.0
RAN_MIN = 5
SHARES = 8
LOOKS_MAX = 300  # at one function, before it is taken for one that never runs on the journal's path
FAKES = {FakeFleet.__name__, FakePeer.__name__}
POOLS = {
    "default": PoolSettings(min_workers=1, max_workers=3, idle_seconds=2.0, target_drain_seconds=0.5),
    "other": PoolSettings(min_workers=0, max_workers=1),
}
SETTINGS: dict[str, Any] = {
    "pools": POOLS,
    "queues": {"far": "other"},
    "lease_seconds": 6.0,
    "heartbeat_seconds": 1.0,
    "retention_seconds": 5.0,
    "snapshot_records": 40,
    "commit_interval_seconds": 0.1,
}


class Poison(Exception):
    """What is put into a place."""


# --- an ordinary life ------------------------------------------------------------------------------


class Life:
    """A pair of managers, workers, callers: everything that a leader does happens every few seconds."""

    def __init__(self) -> None:
        self.pair = Pair(**SETTINGS)
        self.pair.fleet.outlook = Machines(
            requested=[MachineRequest("worker-a", 1, START)], refused=[MachineRequest("b", 1, START, "none")]
        )
        self.enqueued: list[bytes] = []
        self.ran_at: list[float] = []
        self._numbers = iter(range(1, 10**9))

    async def live(self) -> None:
        pair = self.pair
        await pair.leader_and_standby()
        parts = [self._callers(), self._watcher(), self._accidents(), *(self._worker(n) for n in range(4))]
        tasks = [asyncio.ensure_future(part) for part in parts]
        await asyncio.sleep(CALLS_UNTIL)
        with suppress(TimeoutError):
            await until(lambda: not self.left(), ENDS_AT - CALLS_UNTIL)
        for task in tasks:
            task.cancel()
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()

    @property
    def leader(self) -> Any:
        return self.pair.managers["manager-a"]

    def left(self) -> int:
        """Accepted jobs that have not ended."""
        jobs = self.leader.state.jobs
        return sum(each in jobs and jobs[each].state not in TERMINAL for each in self.enqueued)

    async def _ask(self, *requests: c.Request) -> list[Any]:
        return await self.pair.ask(self.leader, *requests)

    async def _callers(self) -> None:
        for turn in range(int(CALLS_UNTIL)):
            ids = [job_id(next(self._numbers)) for _ in range(4)]
            with poisoned():
                queue = "far" if turn % 5 == 4 else "default"
                request = manager_world.enqueue_of(
                    ids,
                    queue=queue,
                    pool="other" if queue == "far" else "default",
                    max_attempts=3,
                    backoff_base_seconds=0.5,
                )
                [answer] = await self._ask(request)
                if isinstance(answer, c.Accepted):
                    self.enqueued += ids
                await self._ask(c.Cancel([ids[0]]), c.Retry([ids[0]]), c.GetJobs(ids, True), c.ListJobs())
                await self._ask(
                    c.GetQueues(), c.GetWorkers(), c.GetFailures(), c.GetHistory(60.0), c.ReadFeed(0)
                )
                await self._ask(
                    c.PatchQueue("held", turn % 2 == 0), c.Pull("demo.task", 1), c.GetPayload(ids[1])
                )
                await self._ask(
                    c.CountMatching("cancel", c.Selection(task="none")),
                    c.ChangeMatching("retry", c.Selection(task="none")),
                )
            await asyncio.sleep(1.0)

    async def _watcher(self) -> None:
        while True:
            with poisoned():
                self.pair.status(self.leader)
                self.leader.figures()
                await self.pair.feed(self.leader, 10**9, 0.5)
            await asyncio.sleep(0.7)

    async def _accidents(self) -> None:
        """Now and then a worker is gone: with a report in its outbox, or silently, or seen to die."""
        pair = self.pair
        for turn in range(1, int(CALLS_UNTIL // 4)):
            await asyncio.sleep(4.0)
            names = sorted(name for name, pool in pair.fleet.there.items() if pool == "default")
            if names and turn % 2:
                name = names[-1]
                held = self.leader.state.leases.get(name, {})
                ended = [
                    Finished(each.id, each.attempt, Outcome.RAISED, START, START) for each in held.values()
                ]
                await pair.store.put_new(f"outbox/{name}/s/{turn:08d}", encode(ended))
                pair.fleet.there.pop(name)
                with poisoned():
                    self.leader.worker_gone(name, "its machine went")
            await pair.store.put_new(f"results/{turn:012x}-pack", b"of nobody")

    async def _worker(self, place: int) -> None:
        """Whichever worker is there at this place works; each third job fails at first."""
        pair, known, finished = self.pair, "", list[Finished]()
        while True:
            names = sorted(name for name in pair.fleet.there)
            if place >= len(names):
                await asyncio.sleep(0.5)
                continue
            if names[place] != known:
                known, finished = names[place], []
            with poisoned():
                orders = await pair.report(
                    self.leader,
                    known,
                    pool=pair.fleet.there[known],
                    finished=finished,
                    busy_seconds={"demo.task": (len(finished), 0.1)} if finished else {},
                    can_take=3,
                    wait_seconds=1.0,
                )
                finished = [self._run(grant) for grant in orders.grants]
                if orders.retire:
                    await pair.report(self.leader, known, pool=pair.fleet.there[known], leaving=True)
                    pair.fleet.there.pop(known, None)
            await asyncio.sleep(0.3)

    def _run(self, grant: Any) -> Finished:
        bad = grant.job_id[-1] % 3 == 0 and grant.attempt == 1
        if not bad:
            self.ran_at.append(asyncio.get_running_loop().time())
        return done(grant, Outcome.RAISED if bad else Outcome.SUCCEEDED)


@contextmanager
def poisoned() -> Iterator[None]:
    """Callers and workers may meet the poison; they come again."""
    try:
        yield
    except (Poison, Unavailable):
        pass


# --- finding the places ----------------------------------------------------------------------------

JOURNAL_PATH = (
    "queue_state.apply",
    "commit_loop.CommitLoop.run",
    "commit_loop.CommitLoop.append",
    "manager.Manager._apply",
    "manager.Manager._recover",
    "manager.Manager._take_pushed",
    "manager.Manager._read_on",
)


def name_of(code: CodeType) -> str:
    return f"{Path(code.co_filename).stem}.{code.co_qualname}"


def function_of(code: CodeType) -> FunctionType | None:
    """The function with this code, if it has a name by which it is found."""
    module = Path(code.co_filename).stem
    found: Any = importlib.import_module(f"jobsvc.{module}") if module != "manager_world" else manager_world
    for part in code.co_qualname.split("."):
        found = inspect.getattr_static(found, part, None)
        if isinstance(found, property):
            found = found.fget
        elif isinstance(found, staticmethod | classmethod):
            found = found.__func__
    found = inspect.unwrap(found) if callable(found) else found
    return found if isinstance(found, FunctionType) and found.__code__ is code else None


class Tracing:
    """Every function of the package that runs after the pair is there, and those on the journal's path."""

    def __init__(self) -> None:
        self.on = False
        self.seen: Counter[CodeType] = Counter()
        self.committing: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if not self.on or event != "call" or code in self.committing or self.seen[code] > LOOKS_MAX:
            return
        path = Path(code.co_filename)
        fake = path.stem == "manager_world" and code.co_qualname.split(".")[0] in FAKES
        if not fake and (path.parent != PACKAGE or path.stem == "bulkheads"):
            return
        self.seen[code] += 1
        above: FrameType | None = frame
        while above is not None:
            if name_of(above.f_code) in JOURNAL_PATH:
                self.committing.add(code)
                return
            above = above.f_back


@cache
def places() -> dict[str, FunctionType]:
    """By name."""
    tracing = Tracing()

    async def story() -> None:
        life = Life()
        asyncio.get_running_loop().call_later(RAISES_FROM, setattr, tracing, "on", True)
        await life.live()

    sys.setprofile(tracing)
    try:
        virtual(story)
    finally:
        sys.setprofile(None)
    found = {}
    for code in tracing.seen.keys() - tracing.committing:
        function = function_of(code)
        if function is not None and not function.__closure__:
            found[name_of(code)] = function
    return found


def virtual(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it in virtual time, with orphans that are looked for often, and a log that nobody reads."""
    seconds = orphans.FIRST_LOOK_SECONDS, orphans.LOOK_EVERY_SECONDS
    orphans.FIRST_LOOK_SECONDS = orphans.LOOK_EVERY_SECONDS = 3.0
    logging.disable(logging.CRITICAL)
    try:
        virtual_loop.run(story())
    finally:
        logging.disable(logging.NOTSET)
        orphans.FIRST_LOOK_SECONDS, orphans.LOOK_EVERY_SECONDS = seconds


# --- putting poison into them ----------------------------------------------------------------------


def plain(*_: Any, **__: Any) -> Any:
    raise POISON()  # noqa: F821 - a global of the function that has this code for a while


async def awaited(*_: Any, **__: Any) -> Any:
    raise POISON()  # noqa: F821


def generated(*_: Any, **__: Any) -> Any:
    raise POISON()  # noqa: F821
    yield


@contextmanager
def raising(function: FunctionType, *, once: bool) -> Iterator[None]:
    """Whoever calls it, under whatever name, gets the poison."""
    before = function.__code__
    kind = awaited if inspect.iscoroutinefunction(function) else plain

    def poison() -> Poison:
        if once:
            function.__code__ = before
        return Poison(function.__qualname__)

    function.__globals__["POISON"] = poison
    function.__code__ = (generated if inspect.isgeneratorfunction(function) else kind).__code__
    try:
        yield
    finally:
        function.__code__ = before
        del function.__globals__["POISON"]


def lives_through(function: FunctionType) -> tuple[int, int]:
    """How many jobs ran while this function raised, and how many have not ended long after."""

    async def story() -> None:
        life = lives[0] = Life()
        living = asyncio.ensure_future(life.live())
        await asyncio.sleep(RAISES_ONCE_AT)
        with raising(function, once=True):
            await asyncio.sleep(RAISES_FROM - RAISES_ONCE_AT)
        with raising(function, once=False):
            await asyncio.sleep(RAISES_UNTIL - RAISES_FROM)
        await living
        for manager, task in life.pair.tasks.items():
            assert not task.done(), (manager, task.exception())
        assert (life.leader.role, life.leader.state.epoch) == ("leader", 1)
        await until(lambda: life.pair.managers["manager-b"].role == "standby")

    lives: dict[int, Life] = {}
    virtual(story)
    life = lives[0]
    ran = sum(RAISES_FROM + GRACE_SECONDS < at < RAISES_UNTIL for at in life.ran_at)
    return ran, life.left()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("share", range(SHARES))
def test_the_leader_goes_on_leading_and_jobs_go_on_running(share: int) -> None:
    found = places()
    assert {"pool_scaler.PoolScaler._look", "state_history.StateHistory.sample"} <= found.keys()
    stopped, left_over, ended = [], [], []
    for name in sorted(found)[share::SHARES]:
        try:
            ran, left = lives_through(found[name])
        except (AssertionError, Poison) as error:
            ended.append(f"{name}: {error}")
            continue
        if left:
            left_over.append(f"{name}: {left}")
        if ran < RAN_MIN and name.partition(".")[0] not in JOB_PATH_MODULES and name not in JOB_PATH:
            stopped.append(f"{name}: {ran}")
    assert not ended, "these end a leadership, or a standby"
    assert not left_over, "jobs do not end after these have raised"
    assert not stopped, "no jobs run while these raise"


# What each job goes through: no job runs without it, but nothing else ends.
JOB_PATH_MODULES = {"leasing", "ready_lanes", "ready_lines", "segments"}
JOB_PATH = {
    "commit_loop.CommitLoop.epoch",
    "commit_loop.CommitLoop.hurry",
    "commit_loop.CommitLoop.settled",
    "decisions._enqueue",
    "decisions.decide",
    "decisions.lease",
    "decisions.settle",
    "journal.LogWriter.epoch",
    "leader.Leader._answer",
    "leader.Leader._no_orders",
    "leader.Leader._orders",
    "leader.Leader._report",
    "leader.Leader._settle",
    "leader.Leader.apply_events",
    "leader.Leader.flight",
    "leader.Leader.report",
    "manager.Manager.handle_flight",
    "manager.Manager.report_and_ask",
    "queue_state.QueueState.ready_lanes",
    "settling.Settling._apply",
    "settling.Settling.settle",
    "worker_registry.KnownWorker.begins",
    "worker_registry.KnownWorker.note",
    "worker_registry.KnownWorker.wake",
    "worker_registry.WorkerRegistry.closes_poll",
    "worker_registry.WorkerRegistry.known",
    "worker_registry.WorkerRegistry.opens_poll",
}
