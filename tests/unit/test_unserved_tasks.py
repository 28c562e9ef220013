"""Jobs whose task is gone are counted beside the commit path, and told where an operator looks."""

from __future__ import annotations

import contextlib

import pytest

from jobsvc import unserved_tasks
from jobsvc.client_tables import status_rows
from jobsvc.jobs import Outcome
from jobsvc.selections import SCAN_MAX
from jobsvc.unserved_tasks import UnservedTasks

from . import http_world
from .manager_world import until
from .queue_world import World


def looked(unserved: UnservedTasks, patch: pytest.MonkeyPatch) -> list[float]:
    """Have one look; returns the pauses within it."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if seconds == unserved_tasks.LOOK_SECONDS:
            raise StopAsyncIteration

    patch.setattr(unserved_tasks.asyncio, "sleep", pause)
    with contextlib.suppress(RuntimeError, StopAsyncIteration):
        unserved.run().send(None)
    return pauses


def test_only_what_waits_for_a_task_that_is_gone_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # given jobs of two tasks: one that has ended, one that runs, many that are frozen, one that comes later
    world = World()
    unserved = UnservedTasks(world.state)
    world.enqueue(2, task="old.resize")
    ended, _ = world.lease(count=2)
    world.settle([world.finished(ended, Outcome.SUCCEEDED)])
    world.enqueue(40, task="old.resize")
    world.enqueue(1, task="old.crop", run_at=world.state.log_time + 60)
    world.enqueue(5, task="new.resize")
    world.enqueue(3, task="a function", content="pickle")
    # before the service's code is known nothing is said
    looked(unserved, monkeypatch)
    assert unserved.waiting == {}
    # when it is, then those that wait are counted
    unserved.known = frozenset({"new.resize"})
    looked(unserved, monkeypatch)
    assert unserved.waiting == {"old.crop": 1, "old.resize": 40}
    unserved.known = frozenset({"new.resize", "old.crop"})
    looked(unserved, monkeypatch)
    assert unserved.waiting == {"old.resize": 40}


def test_a_deep_backlog_is_counted_a_slice_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # given more jobs than one slice looks at, each for itself
    world = World()
    for _ in range(SCAN_MAX // 2 + 10):
        world.enqueue(1, task="old.resize")
        world.enqueue(1, task="new.resize")
    unserved = UnservedTasks(world.state)
    # then nothing is done while no task is gone
    unserved.known = frozenset({"new.resize", "old.resize"})
    assert looked(unserved, monkeypatch) == [unserved_tasks.LOOK_SECONDS]
    # and when one is, others have their turn in between
    unserved.known = frozenset({"new.resize"})
    pauses = looked(unserved, monkeypatch)
    assert unserved.waiting == {"old.resize": SCAN_MAX // 2 + 10}
    assert pauses == [unserved_tasks.SLICE_PAUSE_SECONDS, unserved_tasks.LOOK_SECONDS]


def test_it_is_told_by_the_status_the_page_and_the_command_line() -> None:
    async def story(replica: http_world.Replica) -> None:
        for _ in range(2):
            await replica.enqueue()
        await replica.enqueue(delay_seconds=600)
        status = (await replica.http.get("/v1/status")).json()
        assert status["unserved"] == []
        # when the service's code has their task no more
        replica.leader.leader.reads.unserved.known = frozenset({"jobsvc.sleep"})
        await until(lambda: replica.leader.leader.reads.unserved.waiting)
        # then it is said how many wait, and what to do
        status = (await replica.http.get("/v1/status")).json()
        [words] = status["unserved"]
        assert "3 jobs wait for task 'jobsvc.echo'" in words and "jobsvc cancel --task jobsvc.echo" in words
        assert ("tasks", words) in list(status_rows(status))
        assert (await replica.http.get("/v1/events")).json()["warnings"] == [words]
        # and when it is back, no more
        replica.leader.leader.reads.unserved.known = frozenset({"jobsvc.echo"})
        await until(lambda: not replica.leader.leader.reads.unserved.waiting)
        assert (await replica.http.get("/v1/status")).json()["unserved"] == []

    http_world.run(story)
