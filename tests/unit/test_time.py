"""Log time in a pair of managers whose clocks are wrong, step, and are set right again."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from jobsvc import commands as c
from jobsvc.jobs import JobOptions, NewJob, Outcome, State, id_bytes
from jobsvc.manager import Manager
from jobsvc.queue_snapshot import fingerprint

from . import http_world
from .manager_world import START, Pair, done, run, until
from .queue_world import job_id

HOUR = 3600.0
DAY = 24 * HOUR
ERRORS = [2.0, -2.0, HOUR, -HOUR, 9 * DAY, -9 * DAY]


def now() -> float:
    return asyncio.get_running_loop().time()


def log_time(manager: Manager) -> float:
    assert manager.leader is not None
    return manager.leader.commits.now()


def set_clocks(pair: Pair, seconds: float) -> None:
    for name in ("manager-a", "manager-b"):
        pair.clock_errors[name] = seconds


async def enqueue_later(pair: Pair, manager: Manager, number: int, seconds: float) -> bytes:
    job = job_id(number)
    command = c.Enqueue([JobOptions("demo.task")], [NewJob(job, 0, b"{}")], delays=[(0, seconds)])
    [answer] = await pair.ask(manager, command)
    assert isinstance(answer, c.Accepted), answer
    return job


async def seconds_until_queued(manager: Manager, job: bytes) -> float:
    began = now()
    await until(lambda: manager.state.jobs[job].state is State.QUEUED, 3 * DAY)
    return now() - began


async def end_all(pair: Pair) -> None:
    for name in list(pair.managers):
        pair.kill(name)
    await asyncio.sleep(1.0)


async def finish(pair: Pair, manager: Manager, *numbers: int, **options: Any) -> list[bytes]:
    ids = await pair.enqueue(manager, *numbers, **options)
    orders = await pair.report(manager, can_take=100)
    await pair.report(manager, finished=[done(grant) for grant in orders.grants])
    return ids


# --- while somebody counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS)
def test_across_a_takeover_log_time_goes_on_whatever_the_other_clock_says(error: float) -> None:
    async def story(pair: Pair) -> None:
        # given a standby with a clock of its own
        pair.clock_errors["manager-b"] = error
        a, b = await pair.leader_and_standby()
        await asyncio.sleep(20.0)
        before, at = log_time(a), now()
        # when it takes over
        pair.kill("manager-a")
        b.suspect_leader()
        await until(lambda: b.role == "leader")
        # then it goes on at a bounded speed, towards its clock
        for _ in range(50):
            await asyncio.sleep(0.3)
            passed = now() - at
            assert 0.4 * passed <= log_time(b) - before <= 2.0 * passed + 0.01
        times = [record.log_time for record in await pair.records()]
        assert times == sorted(times) and times[-1] - before < 2 * (now() - at) + 1
        # and the state says nothing of a jump
        assert b.state.jump_seconds == 0.0

    run(story)


@pytest.mark.parametrize("step", ERRORS)
def test_a_clock_that_is_set_while_it_leads_makes_nothing_early_or_late(step: float) -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await asyncio.sleep(5.0)
        # when the leader's clock is set, then delays and backoffs last as long as they say
        pair.clock_errors["manager-a"] = step
        await asyncio.sleep(2.0)
        job = await enqueue_later(pair, a, 1, 30.0)
        assert await seconds_until_queued(a, job) == pytest.approx(30.0, abs=0.1)
        [grant] = (await pair.report(a, can_take=1)).grants
        await pair.report(a, finished=[done(grant, Outcome.RAISED)])
        assert await seconds_until_queued(a, job) <= 1.1  # the first backoff is up to a second

    run(story)


def test_two_clocks_that_step_as_they_like_and_takeovers() -> None:
    async def story(pair: Pair) -> None:
        random = Random(7)
        leader, standby = await pair.leader_and_standby()
        last, at = log_time(leader), now()
        for round_number in range(40):
            for name in ("manager-a", "manager-b"):
                if random.random() < 0.5:
                    pair.clock_errors[name] = random.choice([0.0, 0.5, *ERRORS])
            await asyncio.sleep(random.choice([0.2, 3.0, 20.0]))
            job = await enqueue_later(pair, leader, round_number + 1, 2.0)
            assert await seconds_until_queued(leader, job) == pytest.approx(2.0, abs=0.1)
            if random.random() < 0.4:
                pair.kill(leader.name)
                standby.suspect_leader()
                await until(lambda each=standby: each.role == "leader")  # type: ignore[misc]
                leader, standby = standby, pair.start(leader.name)
                await until(lambda each=standby: each.role == "standby")  # type: ignore[misc]
                await asyncio.sleep(1.0)
            passed = now() - at
            assert 0.4 * passed <= log_time(leader) - last <= 2.0 * passed + 0.1
            last, at = log_time(leader), now()
        assert leader.state.jump_seconds == 0.0

    run(story)


# --- after a rest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [HOUR, 9 * DAY])
def test_a_clock_that_was_ahead_once_makes_no_delay_shorter_or_longer(ahead: float) -> None:
    async def story(pair: Pair) -> None:
        # given a service that was started once with a clock that was ahead
        first = pair.start("manager-a")
        await until(lambda: first.role == "leader")
        await asyncio.sleep(5.0)
        await end_all(pair)
        set_clocks(pair, ahead)
        wrong = pair.start("manager-a")
        await until(lambda: wrong.role == "leader")
        assert wrong.state.jump_seconds == pytest.approx(ahead, abs=10.0)
        await asyncio.sleep(12.0)
        await end_all(pair)
        # when the clock is right again
        set_clocks(pair, 0.0)
        leader, _ = await pair.leader_and_standby()
        # then log time stays ahead, and slows down, and 30 seconds are 30 seconds
        job = await enqueue_later(pair, leader, 1, 30.0)
        assert await seconds_until_queued(leader, job) == pytest.approx(30.0, abs=0.1)
        # also for a time that is said as a time
        command = c.Enqueue([JobOptions("demo.task")], [NewJob(job_id(2), 0, b"{}", START + now() + 30.0)])
        await pair.ask(leader, command)
        assert await seconds_until_queued(leader, job_id(2)) == pytest.approx(30.0, abs=0.1)

    run(story)


def test_results_of_a_minute_ago_outlive_a_clock_that_was_days_ahead_once() -> None:
    async def story(pair: Pair) -> None:
        # given results, and a start with a clock that is days ahead, longer than their retention
        first = pair.start("manager-a")
        await until(lambda: first.role == "leader")
        ids = await finish(pair, first, 1, 2, 3) + await finish(pair, first, 4, retention_seconds=4 * HOUR)
        await end_all(pair)
        set_clocks(pair, 9 * DAY)
        wrong = pair.start("manager-a")
        await until(lambda: wrong.role == "leader")
        ids += await finish(pair, wrong, 5)
        await asyncio.sleep(60.0)
        assert all(job in wrong.state.jobs for job in ids)
        await end_all(pair)
        # when the clock is right again, then they stay for as long as they should
        set_clocks(pair, 0.0)
        leader, standby = await pair.leader_and_standby()
        await asyncio.sleep(3 * HOUR)
        assert all(job in leader.state.jobs for job in ids)
        await asyncio.sleep(HOUR + 60.0)
        assert [job in leader.state.jobs for job in ids] == [True, True, True, False, True]
        await asyncio.sleep(2 * HOUR)
        assert [job in leader.state.jobs for job in ids] == [False, False, False, False, True]
        # and what ends now is kept, and let go, as ever
        [brief] = await finish(pair, leader, 6, retention_seconds=60.0)
        await asyncio.sleep(30.0)
        assert brief in leader.state.jobs
        await asyncio.sleep(200.0)
        assert brief not in leader.state.jobs
        await asyncio.sleep(1.0)
        standby.state.log_time = leader.state.log_time  # which runs ahead of the last record
        assert fingerprint(leader.state) == fingerprint(standby.state)

    run(story, idle_record_seconds=60.0, retention_seconds=6 * HOUR)


def test_after_a_true_rest_of_days_old_results_go_when_an_hour_has_passed() -> None:
    async def story(pair: Pair) -> None:
        first = pair.start("manager-a")
        await until(lambda: first.role == "leader")
        [job] = await finish(pair, first, 1)
        await end_all(pair)
        await asyncio.sleep(8 * DAY)
        second = pair.start("manager-b")
        await until(lambda: second.role == "leader")
        await asyncio.sleep(HOUR - 60.0)
        assert job in second.state.jobs
        await asyncio.sleep(120.0)
        assert job not in second.state.jobs

    run(story, idle_record_seconds=60.0)


def test_a_jump_survives_snapshots_and_takeovers() -> None:
    async def story(pair: Pair) -> None:
        first = pair.start("manager-a")
        await until(lambda: first.role == "leader")
        [job] = await finish(pair, first, 1)
        await end_all(pair)
        set_clocks(pair, 9 * DAY)
        a, b = await pair.leader_and_standby()
        for number in range(2, 60):
            await pair.enqueue(a, number)
        await until(lambda: any(key.startswith("snapshots/") for key in pair.store_keys()))
        # when another one takes over, and one begins anew with the snapshot
        pair.kill("manager-a")
        b.suspect_leader()
        await until(lambda: b.role == "leader")
        again = pair.start("manager-a")
        await until(lambda: again.role == "standby")
        await asyncio.sleep(60.0)
        # then all of them mind the jump
        for each in (b, again):
            assert each.state.jump_seconds == pytest.approx(9 * DAY, abs=10.0)
            assert job in each.state.jobs

    run(story, snapshot_records=20)


# --- a replica's clock --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS)
def test_a_delay_counts_from_the_leaders_time_not_from_a_replicas(error: float) -> None:
    async def story(replica: http_world.Replica) -> None:
        replica.clock_error = error
        one = await replica.enqueue(delay_seconds=30)
        document = {"task": "jobsvc.echo", "delay_seconds": 30}
        answer = await replica.http.post("/v1/jobs:batch", json=[{"task": "jobsvc.echo"}, document])
        _, other = answer.json()["ids"]
        raw = await replica.http.post(
            "/v1/jobs?task=jobsvc.echo&delay_seconds=30",
            content=b"x",
            headers={"Content-Type": "application/octet-stream"},
        )
        ids = [id_bytes(each) for each in (one, other, raw.json()["id"])]
        jobs = replica.leader.state.jobs
        began = now()
        await until(lambda: all(jobs[job].state is State.QUEUED for job in ids), 100.0)
        assert now() - began == pytest.approx(30.0, abs=0.2)

    http_world.run(story)
