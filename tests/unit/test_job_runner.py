"""Jobs in real processes: however they end, the worker hears promptly and correctly, and goes on."""

from __future__ import annotations

import asyncio
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobsvc import job_runner
from jobsvc.builtin_tasks import echo, sleep
from jobsvc.code_calls import BYTECODE, PYTHON, PickledBy, payload_of
from jobsvc.hold_back import HoldBack
from jobsvc.job_frames import EndFrame, HeldBack, JobKey, ReadyJob
from jobsvc.job_runner import ProcessRunner, crash_error
from jobsvc.jobs import Outcome
from jobsvc.settings import MIB, PoolSettings, Settings
from jobsvc.simulated_runner import Plan, SimulatedRunner
from jobsvc.worker_parts import JobRunner

from .job_desk import NASTY, Desk, Place, desk, is_alive, is_running, job, published_pids, told, until

TYPED = "tests.unit.typed_tasks"

# --- the contract that every runner keeps ---------------------------------------------------------


def simulated_plan(ready: ReadyJob) -> Plan:
    arguments = msgspec.json.decode(ready.payload)["args"]
    if ready.task == "jobsvc.sleep":
        return Plan(seconds=arguments[0])
    return Plan(data=msgspec.json.encode(arguments[0]))


def process_runner() -> JobRunner:
    return ProcessRunner(Settings(kill_grace_seconds=0.5))


def simulated_runner() -> JobRunner:
    return SimulatedRunner(simulated_plan, time.time)


both = pytest.mark.parametrize("make", [process_runner, simulated_runner], ids=["process", "simulated"])
Make = Callable[[], JobRunner]


def with_runner(make: Make, story: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        runner = make()
        await runner.start()
        try:
            await story(Desk(runner))
        finally:
            await runner.close()
            await runner.close()  # twice does no harm

    asyncio.run(run())


@both
def test_jobs_run_in_order_and_each_ends_once(make: Make) -> None:
    async def story(desk: Desk) -> None:
        jobs = [job("jobsvc.echo", number) for number in range(600)]
        ends = await desk.run(*jobs)
        assert [end.job_id for end in desk.ends] == [each.job_id for each in jobs]
        assert [end.data for end in ends] == [str(number).encode() for number in range(600)]
        assert all(end.started_at <= end.ended_at and end.seconds >= 0 for end in ends)
        assert desk.runner.current is None

    with_runner(make, story)


@both
def test_what_is_withdrawn_never_starts(make: Make) -> None:
    async def story(desk: Desk) -> None:
        running, *waiting = [job("jobsvc.sleep", 0.3), *(job("jobsvc.echo", n) for n in range(400))]
        desk.submit(running, *waiting)
        await desk.until_running(running)
        every_second = {each.key for each in waiting[::2]}
        assert desk.runner.withdraw({running.key, *every_second}) == every_second
        assert desk.runner.withdraw(every_second) == set()
        await desk.end_of(waiting[-1])
        kept = [running, *waiting[1::2]]
        assert [end.job_id for end in desk.ends] == [each.job_id for each in kept]

    with_runner(make, story)


@both
def test_only_the_job_that_runs_can_be_killed(make: Make) -> None:
    async def story(desk: Desk) -> None:
        long, next_one = job("jobsvc.sleep", 60), job("jobsvc.echo", "next")
        desk.submit(long, next_one)
        await desk.until_running(long)
        assert not desk.runner.kill(next_one.key, Outcome.CANCELLED)
        assert desk.runner.kill(long.key, Outcome.RELEASED)
        assert not desk.runner.kill(long.key, Outcome.CANCELLED), "it is being killed already"
        assert (await desk.end_of(long)).outcome is Outcome.RELEASED
        assert (await desk.end_of(next_one)).outcome is Outcome.SUCCEEDED
        assert not desk.runner.kill(long.key, Outcome.CANCELLED), "it has ended"

    with_runner(make, story)


@both
def test_a_job_that_takes_too_long_is_timed_out(make: Make) -> None:
    async def story(desk: Desk) -> None:
        long, short = job("jobsvc.sleep", 60, timeout=0.2), job("jobsvc.sleep", 0, timeout=20)
        first, second = await desk.run(long, short)
        assert (first.outcome, second.outcome) == (Outcome.TIMED_OUT, Outcome.SUCCEEDED)
        assert first.error is not None and first.error.type == "TimedOut"
        assert 0.2 <= first.seconds < 5

    with_runner(make, story)


# --- how jobs end ---------------------------------------------------------------------------------


@told
async def test_a_segfault_is_a_crash_with_the_signals_name() -> None:
    async with desk() as here:
        bad = job("segfault")
        end = await here.run_one(bad)
        assert end.outcome is Outcome.CRASHED
        assert end.error is not None
        assert (end.error.type, end.error.signal) == ("ProcessKilled", "SIGSEGV")
        assert here.said(bad).startswith("about to go\n")
        assert "in segfault" in here.said(bad), "the traceback of the crash is in the log"
        await here.goes_on()


@told
async def test_results_before_a_crash_count_and_jobs_behind_it_run_once() -> None:
    async with desk() as here:
        before = [job("jobsvc.echo", n) for n in range(50)]
        bad, behind = job("kill_myself", signal.SIGKILL), [job("jobsvc.echo", n) for n in range(50)]
        ends = await here.run(*before, bad, *behind)
        outcomes = [end.outcome for end in ends]
        assert outcomes == [Outcome.SUCCEEDED] * 50 + [Outcome.CRASHED] + [Outcome.SUCCEEDED] * 50
        error = ends[50].error
        assert error is not None and error.signal == "SIGKILL" and "memory ran out" in error.message


@told
async def test_a_crash_loses_no_side_effect_and_doubles_none(place: Place) -> None:
    async with desk() as here:
        jobs = [job("note", place.text, str(n)) for n in range(20)]
        await here.run(*jobs[:10], job("leave", 1), *jobs[10:])
        lines = place.read().split()
        assert lines == [str(n) for n in range(20)]


@told
async def test_leaving_by_exit_is_a_crash_with_the_exit_code() -> None:
    async with desk() as here:
        for code in (0, 3):
            end = await here.run_one(job("leave", code))
            assert end.outcome is Outcome.CRASHED
            assert end.error is not None
            assert (end.error.type, end.error.exit_code) == ("ProcessExited", code)
        await here.goes_on()


@told
async def test_memory_beyond_the_cap_is_a_crash_that_says_so() -> None:
    async with desk(PoolSettings(job_memory_bytes_max=150 * MIB)) as here:
        end = await here.run_one(job("eat_memory"))
        assert end.outcome is Outcome.CRASHED
        assert end.error is not None and end.error.type == "OutOfMemory"
        assert str(150 * MIB) in end.error.message
        await here.goes_on()


@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "ValueError"])
def test_what_a_task_raises_is_reported_and_the_process_lives(what: str) -> None:
    async def story() -> None:
        async with desk() as here:
            pid = here.runner._child.pid  # type: ignore[attr-defined]
            end = await here.run_one(job("raise_it", what))
            assert end.outcome is Outcome.RAISED
            assert end.error is not None and end.error.type == what
            assert "in raise_it" in end.error.traceback
            assert "job_process.py" not in end.error.traceback, "only the task's own frames"
            await here.goes_on()
            assert here.runner._child.pid == pid  # type: ignore[attr-defined]

    asyncio.run(story())


@told
async def test_errors_are_cut_and_never_fail_themselves() -> None:
    async with desk(error_bytes_max=2000) as here:
        long, mute, deep, recursion, interrupting, unnamed = await here.run(
            job("raise_it", "long"),
            job("raise_it", "Mute"),
            job("raise_it", "RecursionError"),
            job("recurse"),
            job("raise_it", "Interrupting"),
            job("raise_it", "Unnamed"),
        )
        for end in (long, mute, deep, recursion, interrupting, unnamed):
            assert end.outcome is Outcome.RAISED and end.error is not None
            assert len(end.error.message.encode()) + len(end.error.traceback.encode()) <= 2000
        assert long.error is not None and "... cut ..." in long.error.message
        assert mute.error is not None and "RuntimeError" in mute.error.message
        assert recursion.error is not None and recursion.error.type == "RecursionError"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("object", "JSON: object"),
        ("circle", "JSON: list"),
        ("lambda", "JSON: dict"),
        ("surrogate", "JSON: str"),
        ("inner", 'result["images"][1]: JSON has no bytes'),
        ("nan", 'result["loss"]: JSON has no word for nan'),
        ("set", "result: JSON has no word for a value of type set"),
        ("number as key", "result: the keys of an object are texts in JSON, and 1 is"),
        ("large", "3000000 bytes"),
        ("evil", "SystemExit as it was written"),
    ],
)
def test_a_result_that_cannot_be_stored_is_named(what: str, words: str) -> None:
    async def story() -> None:
        async with desk(result_bytes_max=MIB) as here:
            end = await here.run_one(job("give_back", what))
            assert end.outcome is Outcome.RAISED
            assert end.error is not None and end.error.type == "ResultNotStorable"
            assert words in end.error.message and end.final
            await here.goes_on()

    asyncio.run(story())


@told
async def test_bytes_come_back_raw_and_everything_else_as_json() -> None:
    async with desk() as here:
        raw, large, some = await here.run(*(job("give_back", what) for what in ("bytes", "large", "tuple")))
        assert (raw.content, raw.data) == ("raw", b"\x00\xff")
        assert (large.content, len(large.data)) == ("raw", 3_000_000)
        assert (some.content, some.data) == ("json", b"[1,[2]]")


@told
async def test_raw_payloads_are_one_line_of_names_and_then_bytes() -> None:
    async with desk() as here:
        hello = job("jobsvc.sha512")
        hello.content, hello.payload = "raw", b'{"iterations":2}\nhello'
        body = job("jobsvc.sha512")
        body.content, body.payload = "raw", b"\n" + bytes(range(256)) * 64
        first, second = await here.run(hello, body)
        assert first.data.startswith(b'"0592a10584ffabf9')
        assert second.outcome is Outcome.SUCCEEDED


@told
async def test_wrong_payloads_are_errors_of_the_job_and_unknown_tasks_are_not() -> None:
    async with desk() as here:
        broken, unknown, wrong = job("say"), job("no.such_task"), job("jobsvc.sleep", 1, 2, 3)
        broken.payload = b"{"
        ends = await here.run(broken, unknown, wrong)
        errors = [end.error for end in ends]
        assert [end.outcome for end in ends] == [Outcome.RAISED, Outcome.RELEASED, Outcome.RAISED]
        assert errors[0] is not None and "msgspec" in errors[0].type
        assert errors[1] is not None and errors[1].type == "TaskUnknown"
        assert "no task is named 'no.such_task'" in errors[1].message
        assert ends[1].never_ran and here.runner.held_back is None
        assert errors[2] is not None and errors[2].type == "TypeError"
        assert errors[2].message.startswith("args[1]: is too much: sleep(seconds=1.0) takes 1")
        # what no other run would change is final; a module that cannot be imported may be there tomorrow
        assert [end.final for end in ends] == [True, False, True]
        await here.goes_on()


@told
async def test_a_task_gets_what_its_annotations_name() -> None:
    async with desk(tasks=(TYPED,)) as here:
        kinds, wrong, missing, wrapped = await here.run(
            job("typed_tasks.kinds", "2026-01-02T03:04:05Z", {"x": 1}, ids=[1, 1]),
            job("typed_tasks.kinds", "2026-01-02T03:04:05Z", {"x": "1"}),
            job("typed_tasks.kinds", "2026-01-02T03:04:05Z"),
            job("typed_tasks.with_a_handle", 7),
        )
        assert kinds.data == b'"datetime Point set"'
        assert wrapped.data == msgspec.json.encode("('handle', 7)")
        assert wrong.error is not None and wrong.final
        assert wrong.error.message == "args[1].x: Expected `int`, got `str`"
        assert missing.error is not None and missing.final and missing.error.type == "TypeError"
        assert missing.error.message.startswith("kwargs.point: is missing: kinds(when, point, ids=")
        # and results are what the annotation names, or as they are
        turned, text, day = await here.run(
            job("typed_tasks.turned", {"name": "s", "points": [{"x": 1, "y": 2}]}),
            job("typed_tasks.wrongly_annotated", "text"),
            job("typed_tasks.returned", "date"),
        )
        assert turned.data == b'{"name":"s","points":[{"x":2,"y":1}],"tags":[]}'
        assert text.data == b'"text"'
        assert day.error is not None and 'result["a"]' in day.error.message and day.final
        # and a TypeError of the task itself is like any other error
        own = await here.run_one(job("typed_tasks.raises_a_type_error", 1))
        assert own.error is not None and own.error.type == "TypeError" and not own.final
        assert "number + " in own.error.traceback


@told
async def test_code_of_another_python_is_not_loaded() -> None:
    own = pickle.dumps((echo, (1, 2), {}))
    crash = b"\x80\x04cos\nabort\n)R."  # what another Python's bytecode may do
    given = {
        "same": payload_of(PickledBy(PYTHON, BYTECODE, "3.1"), own),
        "old": own,  # of version 0.1, which did not say
        "other": payload_of(PickledBy("3.9"), crash),
        "bytecode": payload_of(PickledBy(PYTHON, 1), crash),
        "module": payload_of(PickledBy(PYTHON), b"\x80\x04cno_such_module\nname\n."),
        "arguments": payload_of(PickledBy(PYTHON), pickle.dumps((sleep, (1, 2, 3), {}))),
        "raises": payload_of(PickledBy(PYTHON), pickle.dumps((sleep, ("x",), {}))),
    }
    jobs = {name: job("__main__.f") for name in given}
    for name, each in jobs.items():
        each.content, each.payload = "pickle", given[name]
    async with desk(allow_code=True) as here:
        await here.run(*jobs.values())
        ends = {name: await here.end_of(each) for name, each in jobs.items()}
        assert ends["same"].data == ends["old"].data == b"[1,2]"
        for name, words in {
            "other": f"was pickled by Python 3.9, and this is {PYTHON}",
            "bytecode": "bytecode 1",
            "module": "ModuleNotFoundError: No module named 'no_such_module'",
        }.items():
            error = ends[name].error
            assert error is not None and error.type == "CodeNotLoaded" and words in error.message
            assert ends[name].final and ends[name].outcome is Outcome.RAISED
        arguments, raises = ends["arguments"], ends["raises"]
        assert arguments.error is not None and arguments.error.type == "TypeError" and arguments.final
        assert raises.error is not None and not raises.final
        await here.goes_on()


@told
async def test_code_and_shell_run_only_where_they_are_allowed() -> None:
    sent = job("python.code")
    sent.content, sent.payload = "pickle", pickle.dumps((echo, (1, 2), {}))
    command = job("jobsvc.shell", "echo hi")
    async with desk() as here:
        for end in await here.run(sent, command):
            assert end.outcome is Outcome.RAISED
            assert end.error is not None and end.error.type == "PermissionError" and end.final
    async with desk(allow_code=True, allow_shell=True) as here:
        first, second = await here.run(sent, command)
        assert (first.data, second.data) == (b"[1,2]", b"0")
        assert here.said(command) == "hi\n"


@told
async def test_async_tasks_share_a_loop_that_is_kept() -> None:
    async with desk() as here:
        slept, one, _, other = await here.run(
            job("sleep_async", 0.01), job("loop_id"), job("leave_a_coroutine"), job("loop_id")
        )
        assert slept.data == b'"slept"'
        assert one.data == other.data
        await here.goes_on()  # and what a task left on the loop says nothing more


@told
async def test_a_task_that_forks_and_comes_back_twice_ends_once() -> None:
    async with desk() as here:
        end = await here.run_one(job("fork_and_return"))
        assert end.data == b'"parent"'
        await here.goes_on()


@told
async def test_a_task_that_closes_our_pipes_ends_itself_and_nothing_else() -> None:
    async with desk() as here:
        end = await here.run_one(job("close_everything"))
        assert end.outcome is Outcome.CRASHED
        await here.goes_on()


# --- killing --------------------------------------------------------------------------------------


@told
async def test_children_that_ignore_sigterm_die_with_their_job(place: Place) -> None:
    async with desk() as here:
        stubborn = job("ignore_term_with_children", place.text)
        here.submit(stubborn)
        pids = await published_pids(place)
        asked = time.monotonic()
        assert here.runner.kill(stubborn.key, Outcome.CANCELLED)
        end = await here.end_of(stubborn)
        assert end.outcome is Outcome.CANCELLED
        assert not any(map(is_alive, pids)), "an end is reported when nothing of the job is left"
        assert time.monotonic() - asked < 5
        await here.goes_on()


@told
async def test_a_daemon_that_left_the_tree_and_the_session_is_found(place: Place) -> None:
    async with desk() as here:
        parent = job("leave_a_daemon", place.text, timeout=60)
        here.submit(parent)
        pids = await published_pids(place)
        assert all(map(is_alive, pids))
        here.runner.kill(parent.key, Outcome.CANCELLED)
        await here.end_of(parent)
        assert not any(map(is_alive, pids))


@told
async def test_a_task_that_holds_the_lock_in_c_is_timed_out() -> None:
    async with desk() as here:
        began = time.monotonic()
        end = await here.run_one(job("hold_the_lock", timeout=0.3))
        assert end.outcome is Outcome.TIMED_OUT
        assert time.monotonic() - began < 5
        await here.goes_on()


@told
async def test_a_killed_task_may_clean_up_in_its_grace(place: Place) -> None:
    async with desk(kill_grace_seconds=10) as here:
        tidy = job("clean_up", place.text)
        here.submit(tidy)
        await here.until_running(tidy)
        while not here.said(tidy):
            await here.listen()
        here.runner.kill(tidy.key, Outcome.CANCELLED)
        end = await here.end_of(tidy)
        assert (end.outcome, place.read()) == (Outcome.CANCELLED, "cleaned")


@pytest.mark.parametrize(
    ("task", "outcome"), [("turn_into_another", Outcome.CANCELLED), ("finish_in_grace", Outcome.SUCCEEDED)]
)
def test_what_a_task_makes_of_its_kill(task: str, outcome: Outcome, place: Place) -> None:
    """Another error is still the kill; a result is a result."""

    async def story() -> None:
        async with desk(kill_grace_seconds=10) as here:
            killed = job(task, place.text)
            here.submit(killed)
            await until(place.exists)
            here.runner.kill(killed.key, Outcome.CANCELLED)
            assert (await here.end_of(killed)).outcome is outcome
            await here.goes_on()

    asyncio.run(story())


@told
async def test_an_async_task_can_be_cancelled() -> None:
    async with desk() as here:
        asleep = job("sleep_async", 600)
        here.submit(asleep)
        await here.until_running(asleep)
        assert here.runner.kill(asleep.key, Outcome.CANCELLED)
        assert (await here.end_of(asleep)).outcome is Outcome.CANCELLED
        await here.goes_on()


@told
async def test_the_next_job_starts_soon_after_a_kill_and_after_a_crash() -> None:
    async with desk() as here:
        await here.goes_on()
        for bad in (job("jobsvc.sleep", 60, timeout=0.1), job("leave", 1)):
            ended, after = await here.run(bad, job("jobsvc.echo", 1))
            assert after.started_at - ended.ended_at < 5, "seconds on a busy machine; a tenth on a free one"


def test_job_and_children_die_with_their_worker(place: Place) -> None:
    """SIGKILL of the worker while the job holds the interpreter's lock and has a child."""
    code = f"""if True:
        import asyncio, msgspec
        from jobsvc.job_frames import ReadyJob
        from jobsvc.job_runner import ProcessRunner
        from jobsvc.settings import Settings
        async def main():
            runner = ProcessRunner(Settings(tasks=({NASTY!r},)))
            await runner.start()
            payload = msgspec.json.encode({{"args": [{place.text!r}]}})
            runner.submit([ReadyJob(b"1" * 16, 1, "nasty_tasks.pids_of", "json", payload)])
            await runner.next_events()
        asyncio.run(main())"""
    worker = subprocess.Popen([sys.executable, "-c", code])

    async def story() -> None:
        pids = await published_pids(place)
        assert all(map(is_alive, pids))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        await until(lambda: not any(map(is_alive, pids)), seconds=10)

    asyncio.run(story())


# --- output ---------------------------------------------------------------------------------------


@told
async def test_output_belongs_to_the_job_that_made_it() -> None:
    async with desk() as here:
        talkers = [
            (job("say", "one", "two"), "one two\n"),
            (job("say_in_c", "from c"), "from c!"),
            (job("say_in_grandchild", "deep"), "deep\ndeep\n"),
            (job("say_without_newline", "unfinished"), "unfinished"),
        ]
        jobs: list[ReadyJob] = []
        expected: dict[JobKey, str] = {}
        for _ in range(5):
            for talker, text in talkers:
                again = job("jobsvc.echo")
                again.task, again.payload = talker.task, talker.payload
                jobs += [again, *(job("jobsvc.echo", n) for n in range(30))]
                expected[again.key] = text
        await here.run(*jobs)
        assert {key: text.decode() for key, text in here.output.items()} == expected


@told
async def test_fifty_megabytes_keep_head_and_tail() -> None:
    async with desk(log_bytes_max=MIB) as here:
        loud = job("print_megabytes", 50)
        end = await here.run_one(loud)
        said = here.said(loud)
        assert end.outcome is Outcome.SUCCEEDED
        assert said.startswith("first line\n") and said.endswith("last line\n")
        left_out = 50 * MIB + 21 - MIB
        assert f"... {left_out} bytes left out ..." in said
        assert len(said) < MIB + 100
        await here.goes_on()


@pytest.mark.parametrize("how", ["fd", "object", "replaced", "redirected"])
def test_a_task_that_closes_stdout_silences_itself_alone(how: str) -> None:
    async def story() -> None:
        async with desk() as here:
            closing, next_one = job("close_stdout", how), job("say", "heard")
            ends = await here.run(closing, next_one)
            assert [end.outcome for end in ends] == [Outcome.SUCCEEDED] * 2
            assert (here.said(closing), here.said(next_one)) == ("before\n", "heard\n")

    asyncio.run(story())


@told
async def test_a_long_job_is_heard_while_it_runs(place: Place) -> None:
    async with desk() as here:
        silent, slow = job("jobsvc.echo", 1), job("print_slowly", place.text)
        here.submit(silent, slow)
        while not here.said(slow):
            await here.listen()
        assert here.said(slow) == "early\n"
        assert is_running(here.runner, slow)
        place.touch()
        await here.end_of(slow)
        assert (here.said(slow), here.chunks[slow.key]) == ("early\nlate\n", 2)


@told
async def test_a_finished_job_is_not_kept_waiting_by_a_long_one() -> None:
    async with desk() as here:
        short, long = job("jobsvc.echo", 1), job("jobsvc.sleep", 60)
        here.submit(short, long)
        await here.end_of(short)
        assert len(here.ends) == 1
        await here.until_running(long)


# --- the job's process ----------------------------------------------------------------------------


def test_the_process_says_what_it_runs_and_knows_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBSVC_TOKEN", "secret")
    monkeypatch.setenv("OTHER", "seen")

    async def story() -> None:
        async with desk() as here:
            title, token, other = await here.run(
                job("my_title"), job("environment", "JOBSVC_TOKEN"), job("environment", "OTHER")
            )
            assert title.data.startswith(b'"jobsvc job nasty_tasks.my_title 00000000-0000-')
            assert (token.data, other.data) == (b"null", b'"seen"')

    asyncio.run(story())


# --- processes that cannot work -------------------------------------------------------------------


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    """What is written here ails the module of tasks; the file gone, it can be imported."""
    monkeypatch.setenv("FRAGILE", str(tmp_path / "how"))
    return Place(tmp_path / "how")


FRAGILE_TASKS = ("tests.unit.fragile_tasks",)
given_back = pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "fragile_tasks.py, line 19: ConnectionError: no database"),
        ("exit", "its job process left with exit code 7 while it loaded the tasks"),
        ("slow", "its job process is still loading the tasks"),
    ],
)


@given_back
def test_what_a_process_cannot_import_costs_no_job_and_heals(
    how: str, words: str, fragile: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with desk(tasks=FRAGILE_TASKS) as here:
            # given a process that works, and then a module that cannot be imported any more
            assert (await here.run_one(job("fragile_tasks.work", 1))).data == b"1"
            fragile.path.write_text(how)
            if how == "slow":
                monkeypatch.setattr(job_runner, "SLOW_START_SECONDS", 0.3)
            before = time.time()
            bad, *behind = job("fragile_tasks.leave", 3), *(job("fragile_tasks.work", n) for n in range(9))
            # when the process dies
            ends = await here.run(bad, *behind)
            # then its job is to blame, and the others go where they can run
            assert [end.outcome for end in ends] == [Outcome.CRASHED] + [Outcome.RELEASED] * 9
            assert all(end.never_ran for end in ends[1:])
            held_back = await here.until_held_back(words)
            assert before <= held_back.since <= time.time()
            assert (await here.run_one(job("jobsvc.echo", 1))).outcome is Outcome.RELEASED
            # and as soon as the module is good again, it works
            fragile.path.unlink()
            await here.until_able()
            assert (await here.run_one(job("fragile_tasks.work", 2))).data == b"2"

    asyncio.run(story())


@told
async def test_a_module_that_fails_holds_back_all_that_the_process_would_run() -> None:
    """Half of the tasks are not the service's; whoever has all of them is to run its jobs."""
    async with desk(tasks=("tests.unit.fails_on_import", NASTY)) as here:
        missing, fine = await here.run(job("fails_on_import.anything"), job("say", "fine"))
        assert (missing.outcome, fine.outcome) == (Outcome.RELEASED, Outcome.RELEASED)
        assert "\n" not in (await here.until_held_back("there_is_no_such_module")).why


@told
async def test_a_process_that_cannot_start_is_told_with_its_last_words() -> None:
    async with desk(tasks=("tests.unit.dies_on_import",)) as here:
        end = await here.run_one(job("jobsvc.echo", 1))
        assert end.outcome is Outcome.RELEASED
        assert "cannot go on" in (await here.until_held_back("exit code 7")).why


@told
async def test_where_there_is_nothing_to_make_a_process_of_jobs_are_given_back() -> None:
    async with desk() as here:
        await here.goes_on()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(1)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 3, hard))
        try:
            bad, behind = await here.run(job("leave", 1), job("jobsvc.echo", 1))
            assert (bad.outcome, behind.outcome) == (Outcome.CRASHED, Outcome.RELEASED)
            await here.until_held_back("Too many open files")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await here.until_able()
        await here.goes_on()


def test_the_pause_before_the_next_process_grows_to_a_minute_and_since_stays() -> None:
    hold = HoldBack()
    pauses = []
    for number in range(12):
        hold.failed(f"reason\n  {number}", 1000.0 + number)
        pauses.append(hold.pause_seconds)
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0] and pauses[-1] == 60.0
    assert hold.told == HeldBack("reason 11", 1000.0)
    assert hold.ends() and not hold.ends()
    assert (hold.told, hold.pause_seconds) == (None, 0.0)


def test_every_way_out_has_a_name() -> None:
    assert crash_error(7).message.count("exit code 7") == 1
    assert crash_error(-signal.SIGBUS).signal == "SIGBUS"
    assert crash_error(-signal.SIGRTMIN - 1).signal == f"signal {signal.SIGRTMIN + 1}"


def test_results_are_looked_for_before_what_was_sent_ahead_runs_out() -> None:
    def pause(sent: int, *seconds: float) -> float:
        return job_runner._results_pause(sent, [EndFrame(1, 0.0, 0.0, each, False) for each in seconds])

    # nothing is behind the job that runs: at once, or nearly
    assert pause(1, 0.5) == pause(0, 0.5) == pause(0) == job_runner.RESULTS_PAUSE_SECONDS
    # quick jobs: long before they are through
    assert pause(256, 0.00001, 0.00002) < 256 * 0.00003 / 2
    # slow ones: not often, but never so late that anybody would notice
    assert pause(100, 0.005) == pause(2, 10.0) == job_runner.RESULTS_PAUSE_SECONDS_MAX
