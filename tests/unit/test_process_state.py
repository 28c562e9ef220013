"""A job bends its process in every way there is; the next one finds it as it was."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from jobsvc.jobs import Outcome
from jobsvc.settings import MIB, PoolSettings

from .bending_tasks import BENDS
from .job_desk import Desk, Place, desk, job, told

BENDING = "tests.unit.bending_tasks"
# what no function of Python's sets, and only a look at everything shows
IN_C = {"folder_in_c", "environment_in_c", "handlers_in_c", "dumpable", "new_privileges"}
IN_C |= {"out_of_memory_score", "default_decimals", "standard_library", "standard_class", "library"}
IN_C |= {"web_clients", "start_method"}
# what another process has
FOR_GOOD = {"handlers_in_c", "new_privileges", "standard_library", "standard_input_closed", "audit_hook"}
FOR_GOOD |= {"standard_class"}
BY_RIGHTS = {"limit_for_good", "priority", "users", "out_of_memory_score"}  # who has them can put it back


def bending(task: str, *args: Any) -> Any:
    return job(f"bending_tasks.{task}", *args)


async def result_of(here: Desk, task: str, *args: Any) -> Any:
    wanted = bending(task, *args)
    end = await here.run_one(wanted)
    assert end.outcome is Outcome.SUCCEEDED, end.error
    return msgspec.json.decode(end.data)


@pytest.mark.parametrize("what", sorted(BENDS))
def test_what_a_job_bends_is_put_back(what: str) -> None:
    async def story() -> None:
        async with desk(tasks=(BENDING,)) as here:
            # given: how it is, and a process that has run both tasks
            before = await result_of(here, "see_it", what)
            # when: a job bends it, with others close behind that look at it
            task = "bend_it_for_longer" if what in IN_C else "bend_it"
            bent, *after = bending(task, what), bending("see_it", what), bending("pid")
            first, seen, pid = await here.run(bent, *after)
            # then: they see it as it was, and only where that needs another process there is one
            if what != "alarm_at_once":
                assert (first.outcome, first.error) == (Outcome.SUCCEEDED, None)
            assert (seen.outcome, seen.error) == (Outcome.SUCCEEDED, None)
            assert addressless(msgspec.json.decode(seen.data)) == addressless(before)
            if what not in BY_RIGHTS and what != "alarm_at_once":
                assert (pid.data != first.data) == (what in FOR_GOOD)
            assert here.said(after[0]) == ""
            await here.goes_on()

    asyncio.run(story())


def addressless(text: str) -> str:
    """Two processes have their objects in two places."""
    return " ".join(word for word in text.split() if not word.startswith("0x"))


@told
async def test_a_seed_is_its_jobs_own() -> None:
    async with desk(tasks=(BENDING,)) as here:
        seeded = [await result_of(here, "seeded", 1) for _ in range(2)]
        free = [await result_of(here, "seeded", None) for _ in range(2)]
        again = [await result_of(here, "seeded", seed) for seed in (1, None)]
        assert seeded[0] == seeded[1] == again[0]
        assert len({seeded[0], *free, again[1]}) == 4


@pytest.mark.parametrize("how", ["task", "stubborn", "later", "soon"])
def test_what_is_left_on_the_loop_runs_in_no_other_job(how: str) -> None:
    async def story() -> None:
        async with desk(tasks=(BENDING,)) as here:
            leaver, after = bending("leave_on_the_loop", how), bending("use_the_loop")
            first, second = await here.run(leaver, after)
            assert (first.data, second.data) == (b'"left"', b'"used"')
            assert here.said(after) == ""
            assert here.said(leaver) == {"soon": "soon\n", "stubborn": here.said(leaver)}.get(how, "")

    asyncio.run(story())


# --- what stays is counted ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["memory", "descriptors", "threads"])
def test_a_process_that_has_grown_is_renewed_between_two_jobs(what: str) -> None:
    pool = PoolSettings(
        process_growth_bytes_max=50 * MIB, process_growth_descriptors_max=50, process_growth_threads_max=50
    )

    async def story() -> None:
        async with desk(pool, tasks=(BENDING,)) as here:
            # given: a task whose first run leaves a lot, as one that loads a model
            loaded = await result_of(here, "leak", what, 60)
            # then: that does not count
            assert await result_of(here, "leak", what, 30) == loaded
            assert await result_of(here, "leak", what, 30) == loaded
            # and: what is over the limit does
            await here.run_one(bending("pid_after", 0.03))
            assert await result_of(here, "pid") != loaded

    asyncio.run(story())


@told
async def test_a_process_runs_so_many_jobs() -> None:
    async with desk(PoolSettings(max_jobs_per_process=3), tasks=(BENDING,)) as here:
        ends = await here.run(*(bending("pid") for _ in range(10)))
        pids = [end.data for end in ends]
        assert [pids.count(each) for each in dict.fromkeys(pids)] == [3, 3, 3, 1]


@told
async def test_modules_have_their_last_word_but_not_for_ever(place: Place) -> None:
    async with desk(PoolSettings(max_jobs_per_process=1), tasks=(BENDING,)) as here:
        await here.run_one(bending("say_at_the_end", place.text, 600))
        await here.goes_on()
        assert place.read() == "ended"


@told
async def test_memory_that_others_have_left_is_not_charged_to_a_job() -> None:
    async with desk(PoolSettings(job_memory_bytes_max=200 * MIB), tasks=(BENDING,)) as here:
        jobs = []
        for _ in range(8):
            jobs += [bending("leak", "memory", 40), bending("use_memory", 100, 0.4)]
        ends = await here.run(*jobs)
        assert [end.error for end in ends] == [None] * 16
        greedy = await here.run_one(bending("use_memory", 300, 5))
        assert greedy.error is not None and greedy.error.type == "OutOfMemory"


@told
async def test_descriptors_that_jobs_leak_never_run_out() -> None:
    async with desk(PoolSettings(process_growth_descriptors_max=10**6), tasks=(BENDING,)) as here:
        for _ in range(30):
            await result_of(here, "leak", "descriptors", 100)
