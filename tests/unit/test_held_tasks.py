"""Jobs of a task that no worker has wait, and cost neither leases nor the time of others."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from jobsvc import commands as c
from jobsvc.errors import Refusal
from jobsvc.jobs import (
    TASK_UNKNOWN,
    ErrorInfo,
    Finished,
    Job,
    JobOptions,
    NewJob,
    Outcome,
    State,
    WorkerOrders,
)
from jobsvc.manager import Manager
from jobsvc.queue_snapshot import check_invariants
from jobsvc.queue_state import QueueState
from jobsvc.scaling import Machines
from jobsvc.service_code import ServiceCode
from jobsvc.settings import PoolSettings

from .manager_world import START, Pair, done, run, until
from .queue_world import World, job_id

GONE = "t.gone"


async def fill(
    pair: Pair, manager: Manager, task: str, first: int, jobs: int, batch: int = 5_000
) -> list[bytes]:
    """Jobs of one task, in batches as a client sends them."""
    ids = [job_id(first + number) for number in range(jobs)]
    options = [JobOptions(task)]
    for start in range(0, jobs, batch):
        new = [NewJob(each, 0, b'{"args":[],"kwargs":{}}') for each in ids[start : start + batch]]
        [answer] = await pair.ask(manager, c.Enqueue(options, new))
        assert isinstance(answer, c.Accepted), answer
    return ids


class Worker:
    """One that runs all that it is given, but for the tasks that it does not have."""

    def __init__(self, pair: Pair, manager: Manager, lacks: set[str], name: str = "w1") -> None:
        self._pair, self._manager, self._lacks, self._name = pair, manager, lacks, name
        self.leased: Counter[str] = Counter()
        self.ran: list[bytes] = []
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        finished: list[Finished] = []
        while True:
            orders = await self._pair.report(
                self._manager, self._name, finished=finished, can_take=20, wait_seconds=5.0
            )
            finished = self._run(orders)

    def _run(self, orders: WorkerOrders) -> list[Finished]:
        ends = []
        for grant in orders.grants:
            task = orders.options[grant.option].task
            self.leased[task] += 1
            if task not in self._lacks:
                self.ran.append(grant.job_id)
                ends.append(done(grant))
                continue
            error = ErrorInfo(TASK_UNKNOWN, f"no task is named {task!r} here")
            ends.append(Finished(grant.job_id, grant.attempt, Outcome.RELEASED, START, START, error=error))
        return ends


@pytest.mark.parametrize("batch", [5_000, 1])  # frozen segments, and jobs of their own
def test_a_backlog_that_nobody_can_run_slows_nobody(batch: int) -> None:
    jobs = 100_000 if batch > 1 else 2_000

    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        # given a long backlog of a task that no worker has, and behind it jobs that can run
        await fill(pair, a, GONE, 1, jobs, batch)
        ids = await fill(pair, a, "t.work", 200_000, 100)
        # when a worker comes
        worker = Worker(pair, a, {GONE})
        await until(lambda: len(worker.ran) == 100, 5.0)
        # then those run at once, in their order
        assert worker.ran == ids
        # and for an hour the others cost a lease now and then, whatever their number
        await asyncio.sleep(3_600.0)
        assert 60 <= worker.leased[GONE] < 200
        assert a.state.total(State.QUEUED) + a.state.total(State.SCHEDULED) == jobs
        # and what comes meanwhile goes on as ever
        later = await fill(pair, a, "t.work", 300_000, 100, 1)
        await until(lambda: len(worker.ran) == 200, 5.0)
        assert worker.ran[100:] == later
        worker.task.cancel()

    run(story, heartbeat_seconds=5.0, lease_seconds=1000.0)


def test_all_of_them_run_in_order_when_a_worker_has_the_task_again() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        lacks = {GONE}
        ids = await fill(pair, a, GONE, 1, 3_000)
        worker = Worker(pair, a, lacks)
        await asyncio.sleep(300.0)
        # when the task is there again
        lacks.clear()
        # then the next try finds that out, and all run, once
        await until(lambda: len(worker.ran) == 3_000, 120.0)
        assert Counter(worker.ran) == Counter(ids)
        tried = [each for each in worker.ran[:200] if each in set(ids[:200])]
        assert len(tried) > 100, "about in their order"
        worker.task.cancel()

    run(story, heartbeat_seconds=5.0, lease_seconds=1000.0)


def test_a_reload_that_brings_the_task_back_waits_for_no_pause() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        a.use_code(ServiceCode({}, ["t.work"]))
        lacks = {GONE}
        await fill(pair, a, GONE, 1, 500)
        worker = CodeWorker(pair, a, lacks)
        await asyncio.sleep(600.0)
        view = (await pair.ask(a, c.GetJobs([job_id(400)])))[0].items[0]
        assert not isinstance(view, Refusal) and f"none named {GONE!r}" in view.waiting
        before = worker.leased[GONE]
        lacks.clear()
        a.use_code(ServiceCode({}, ["t.work", GONE]))
        await until(lambda: len(worker.ran) > 400, 5.0)
        assert worker.leased[GONE] > before
        worker.task.cancel()

    run(story, heartbeat_seconds=5.0, lease_seconds=1000.0)


class CodeWorker(Worker):
    """One that says which code it has."""

    async def _work(self) -> None:
        finished: list[Finished] = []
        code = ""
        while True:
            orders = await self._pair.report(
                self._manager, self._name, finished=finished, can_take=20, wait_seconds=5.0, code=code
            )
            code = orders.code.digest if orders.code is not None else code
            finished = self._run(orders)


def test_jobs_that_nobody_can_run_ask_for_no_workers() -> None:
    async def story(pair: Pair) -> None:
        pair.fleet.outlook = Machines()
        a, _ = await pair.leader_and_standby()
        await pair.report(a, "worker-default-1.99", busy_seconds={GONE: (10, 20.0)})  # while it was there
        await fill(pair, a, GONE, 1, 5_000)
        worker = Worker(pair, a, {GONE}, "worker-default-1.99")
        await asyncio.sleep(120.0)
        assert a.leader is not None and a.leader.pool_views["default"].wanted == 1
        worker.task.cancel()

    pools = {"default": PoolSettings(min_workers=1, max_workers=50, target_drain_seconds=1)}
    run(story, heartbeat_seconds=5.0, lease_seconds=1000.0, pools=pools)


def test_another_pool_has_a_word_of_its_own() -> None:
    world = World()
    [job] = world.enqueue(queue="a", pool="gpu")
    task = world.state.jobs[job].options.task
    world.state.lanes.hold("default", task)
    assert world.lease("w1", 1, pool="gpu") == [job]


def test_functions_by_value_are_never_held_back() -> None:
    world = World()
    [job] = world.enqueue(content="pickle")
    world.state.lanes.hold("default", world.state.jobs[job].options.task)
    assert world.lease("w1", 1) == [job]


# --- lanes against a list -------------------------------------------------------------------------


def those(state: QueueState, *wanted: State) -> list[Job]:
    """Jobs in these states, in the order in which they would run; whatever is frozen stays so."""
    found = [job for each in state.jobs if (job := state.jobs.peek(each)) is not None and job.state in wanted]
    return sorted(found, key=lambda job: (-job.options.priority, job.seq))


@pytest.mark.parametrize("seed", range(8))
def test_lanes_with_tasks_held_back_give_what_a_sorted_list_gives(seed: int) -> None:
    # given tasks, some of which are held back now and then
    random, world = Random(seed), World()
    state, held, tasks = world.state, set[str](), ["a", "b", "c"]
    for _ in range(80):
        match random.randrange(8):
            case 0 | 1:
                count, priority = random.choice([1, 2, 40, 70]), random.choice([0, 0, 1])
                world.enqueue(count, task=random.choice(tasks), priority=priority)
            case 2:
                held.add(task := random.choice(tasks))
                state.lanes.hold("default", task)
            case 3 if held:
                held.discard(task := random.choice(sorted(held)))
                state.lanes.release("default", task)
            case 4:
                leased = those(state, State.RUNNING)
                for job in random.sample(leased, min(3, len(leased))):
                    world.report(job.id, Outcome.RELEASED)
            case 5:
                queued = those(state, State.QUEUED)
                for job in random.sample(queued, min(2, len(queued))):
                    world.do(c.Cancel([job.id]))
            case 6:
                ended = those(state, State.CANCELLED)
                for job in random.sample(ended, min(2, len(ended))):
                    world.do(c.Retry([job.id]))
            case _:
                # when some are leased, then they are what a sorted list of the others says
                count = random.choice([1, 3, 50])
                expected = [job.id for job in those(state, State.QUEUED) if job.options.task not in held]
                assert world.lease("w1", count) == expected[:count]
        check_invariants(state)
    # and all that were held back are back in their places
    for task in held:
        state.lanes.release("default", task)
    expected = [job.id for job in those(state, State.QUEUED)]
    assert world.lease("w1", 10_000) == expected
    world.check()


def test_a_lane_all_of_whose_jobs_are_held_back_is_served_again() -> None:
    # given more queues than are sorted for each lease, and one whose jobs are all held back
    world = World()
    [held] = world.enqueue(task="a", queue="first")
    others = [world.enqueue(task="b", queue=f"q{number}")[0] for number in range(40)]
    world.state.lanes.hold("default", "a")
    assert world.lease("w1", 1) == others[:1]
    assert world.lease("w1", 20) == others[1:21]
    # when they are held back no more, then they are next
    world.state.lanes.release("default", "a")
    assert world.lease("w1", 1) == [held]
    assert world.lease("w1", 100) == others[21:]
    # also the one that is tried
    [again] = world.enqueue(task="a", queue="first")
    more = [world.enqueue(task="b", queue=f"q{number}")[0] for number in range(40)]
    world.state.lanes.hold("default", "a")
    assert world.lease("w1", 1) == more[:1]
    assert world.state.lanes.try_one("default", "a") and world.state.lanes.is_tried("default", "a")
    assert world.lease("w1", 1) == [again]
    world.check()
