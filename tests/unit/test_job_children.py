"""What a job has started ends with it; what it printed, kept open and used is that job's alone."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from jobsvc.jobs import Outcome
from jobsvc.settings import MIB, PoolSettings

from .job_desk import Desk, Place, desk, is_alive, job, told

LEAVING = "tests.unit.leaving_tasks"


def leaving(task: str, *args: Any) -> Any:
    return job(f"leaving_tasks.{task}", *args)


async def result_of(here: Desk, task: str, *args: Any) -> Any:
    end = await here.run_one(leaving(task, *args))
    assert end.outcome is Outcome.SUCCEEDED, end.error
    return msgspec.json.decode(end.data)


@pytest.mark.parametrize(
    "task",
    [
        "leave_a_child",
        "leave_a_session",
        "leave_a_stranger",
        "leave_a_child_of_a_thread",
        "leave_a_fork",
        "leave_a_polite_child",
        "leave_a_pool",
    ],
)
def test_what_a_job_leaves_running_ends_with_it(task: str) -> None:
    async def story() -> None:
        async with desk(tasks=(LEAVING,)) as here:
            # given: a job that leaves a process, and one behind it that is there for longer
            leaver, after = leaving(task), job("jobsvc.sleep", 1.5)
            here.submit(leaver, after)
            # when: the first has ended
            end = await here.end_of(leaver)
            # then: nothing of it runs, and the second has a process and a log without a trace of it
            assert end.outcome is Outcome.SUCCEEDED
            assert not is_alive(int(end.data))
            assert (await here.end_of(after)).outcome is Outcome.SUCCEEDED
            assert here.said(after) == ""
            await here.goes_on()

    asyncio.run(story())


@told
async def test_the_last_words_of_a_child_are_its_jobs() -> None:
    async with desk(tasks=(LEAVING,), kill_grace_seconds=10) as here:
        leaver, after = leaving("leave_a_polite_child"), job("jobsvc.echo", 1)
        await here.run(leaver, after)
        assert (here.said(leaver), here.said(after)) == ("1\nlast words\n", "")


@told
async def test_jobs_behind_one_that_left_children_run_once_and_in_order() -> None:
    async with desk(tasks=(LEAVING,)) as here:
        jobs = [job("jobsvc.echo", n) for n in range(100)]
        ends = await here.run(*jobs[:50], leaving("leave_a_fork"), *jobs[50:])
        assert [end.outcome for end in ends] == [Outcome.SUCCEEDED] * 101
        assert [int(end.data) for end in ends[:50] + ends[51:]] == list(range(100))


@told
async def test_a_pool_in_a_modules_global_works_in_every_job() -> None:
    async with desk(tasks=(LEAVING,)) as here:
        assert [await result_of(here, "use_the_pool") for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("task", ["use_shared_memory", "use_a_fork_server"])
def test_what_multiprocessing_starts_for_itself_ends_at_once_and_costs_no_process(task: str) -> None:
    async def story() -> None:
        async with desk(tasks=(LEAVING,), kill_grace_seconds=600) as here:  # it takes no notice of SIGTERM
            pid = await result_of(here, "own_pid")
            for _ in range(2):
                assert not is_alive(await result_of(here, task))
            assert await result_of(here, "own_pid") == pid

    asyncio.run(story())


@told
async def test_shared_memory_that_a_job_keeps_costs_its_process() -> None:
    async with desk(tasks=(LEAVING,)) as here:
        pid = await result_of(here, "own_pid")
        assert not is_alive(await result_of(here, "keep_shared_memory"))
        assert await result_of(here, "own_pid") != pid


@told
async def test_a_child_that_has_ended_is_buried_and_costs_no_process() -> None:
    async with desk(tasks=(LEAVING,)) as here:
        first, dead, second = [
            await result_of(here, task) for task in ("own_pid", "leave_a_dead_child", "own_pid")
        ]
        assert first == second
        assert not is_alive(dead)


@told
async def test_what_a_module_started_as_it_was_imported_stays() -> None:
    async with desk(tasks=(LEAVING,)) as here:
        before = await result_of(here, "pid_of_the_module")
        assert before is not None
        await here.goes_on()
        assert await result_of(here, "pid_of_the_module") == before
        left = await result_of(here, "leave_a_child")
        assert not is_alive(left)


@told
async def test_the_memory_of_a_child_is_not_the_next_jobs() -> None:
    async with desk(PoolSettings(job_memory_bytes_max=300 * MIB), tasks=(LEAVING,)) as here:
        leaver, after = leaving("leave_a_large_child", 150), leaving("share_memory", 80, 0, 0)
        first, second = await here.run(leaver, after)
        assert (first.outcome, second.outcome) == (Outcome.SUCCEEDED, Outcome.SUCCEEDED)


@told
async def test_pages_that_processes_share_count_once() -> None:
    async with desk(PoolSettings(job_memory_bytes_max=400 * MIB), tasks=(LEAVING,)) as here:
        sharing = await here.run_one(leaving("share_memory", 60, 6, 1.5))
        assert sharing.outcome is Outcome.SUCCEEDED, sharing.error
        greedy = await here.run_one(leaving("leave_a_large_child", 600, 60))
        assert greedy.error is not None and greedy.error.type == "OutOfMemory"


@told
async def test_forks_of_forks_keep_their_own_files(place: Place) -> None:
    async with desk(tasks=(LEAVING,)) as here:
        assert await result_of(here, "fork_twice_and_write", place.text) == "." * 60


@told
async def test_what_c_code_has_not_flushed_is_its_own_jobs() -> None:
    async with desk(tasks=(LEAVING,)) as here:
        jobs = [leaving("print_in_c", f"{n} ") for n in range(3)]
        silent = [job("jobsvc.echo", n) for n in range(3)]
        await here.run(*(each for pair in zip(jobs, silent, strict=True) for each in pair))
        assert [here.said(each) for each in jobs] == ["0 ", "1 ", "2 "]
        assert [here.said(each) for each in silent] == ["", "", ""]


@told
async def test_what_the_other_half_of_a_fork_printed_is_heard() -> None:
    async with desk(tasks=(LEAVING,)) as here:
        forking = leaving("print_and_come_back_twice")
        assert (await here.run_one(forking)).data == b'"parent"'
        assert here.said(forking) == "from the fork"
