"""The client's core, driven by a table of what the service does: when is sent what, and when given up."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from jobsvc.client_core import (
    ANSWER_SECONDS,
    FAILOVER_SECONDS,
    LONG_POLL_SECONDS,
    MARGIN_SECONDS,
    Answer,
    Request,
    Route,
    Send,
    Talks,
    Wait,
    checked_seconds,
)
from jobsvc.errors import InvalidRequest, Refused, Unavailable, WaitTimedOut

from .talk_world import BUSY, World, json

HOUR_SECONDS = 3_600.0
STATUS = Request("GET", "/v1/status")


def job_that_ends_at(at: float) -> Callable[[World, Send], tuple[float, Answer]]:
    """The service on a job: answers when it has ended, or after the wait that was asked for."""

    def serve(world: World, step: Send) -> tuple[float, Answer]:
        asked = float(step.request.headers["Prefer"].removeprefix("wait="))
        seconds = min(asked, max(0.0, at - world.now)) + 0.01
        state = "succeeded" if world.now + seconds >= at else "running"
        if step.request.path.endswith("/result"):
            return seconds, json(7) if state == "succeeded" else json({"state": state}, 202)
        return seconds, json({"id": "j", "state": state})

    return serve


@pytest.mark.parametrize("timeout", [None, math.inf, 3 * HOUR_SECONDS])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 75.0, 2 * HOUR_SECONDS])
def test_a_job_is_waited_for_however_long_it_takes(seconds: float, timeout: float | None) -> None:
    world = World(job_that_ends_at(seconds))
    assert world.run(world.talks.job_end("/j", Wait(timeout, 0.0), 0.0))["state"] == "succeeded"
    assert seconds <= world.now <= seconds + 0.02 + 0.01 * len(world.sent)
    assert len(world.sent) <= 1 + seconds / LONG_POLL_SECONDS


@pytest.mark.parametrize("timeout", [0, 0.0004, 0.5, 15, 20, 60, 79, 2 * HOUR_SECONDS, -3])
def test_a_wait_ends_with_its_time_on_a_quiet_service(timeout: float) -> None:
    for path, talk in (("/j", "job_end"), ("/j/result", "job_result")):
        world = World(job_that_ends_at(1e9))
        wait = Wait(timeout, 0.0)
        arguments = (path, wait, 0.0) if talk == "job_end" else ("j", path, wait, 0.0)
        with pytest.raises(WaitTimedOut, match=f"after {max(0, timeout):g} s"):
            world.run(getattr(world.talks, talk)(*arguments))
        assert max(0.0, timeout) <= world.now <= max(0.0, timeout) + 0.05
        assert world.sent, "it has looked once"


@pytest.mark.parametrize("wait_seconds", [0.0, 20.0])
@pytest.mark.parametrize("deadline_seconds", [0.0, 5.0, 60.0])
def test_nobody_there_is_unavailable_after_the_deadline(deadline_seconds: float, wait_seconds: float) -> None:
    world = World(lambda *_: (0.001, None), deadline_seconds=deadline_seconds)
    with pytest.raises(Unavailable, match="http://a: silence"):
        world.run(world.talks.exchange(STATUS._replace(wait_seconds=wait_seconds), 0.0))
    assert world.now <= deadline_seconds + 0.1


def test_a_service_that_is_silent_has_the_wait_that_it_was_asked_for_on_top_once() -> None:
    world = World(lambda *_: (1e9, None))
    with pytest.raises(Unavailable):
        world.run(world.talks.exchange(STATUS._replace(wait_seconds=20.0), 0.0))
    assert 60.0 < world.now <= 60.0 + 20.0 + 0.2


def test_without_a_deadline_it_is_sent_until_it_is_answered() -> None:
    day = 24 * HOUR_SECONDS
    world = World(lambda w, _: (0.001, json({}) if w.now > day else BUSY), deadline_seconds=None)
    world.run(world.talks.exchange(STATUS, 0.0))
    assert day < world.now < day + 5


@pytest.mark.parametrize("timeout", [0.0, 3.0, 20.0, 600.0])
def test_a_caller_whose_time_is_over_is_told_so_though_nobody_answers(timeout: float) -> None:
    world = World(lambda *_: (1e9, None), deadline_seconds=HOUR_SECONDS)
    with pytest.raises(WaitTimedOut, match="nobody has answered in time"):
        world.run(world.talks.job_end("/j", Wait(timeout, 0.0), 0.0))
    # a failover may take longer than a short time
    assert world.now <= max(timeout + MARGIN_SECONDS, FAILOVER_SECONDS) + 0.2


@pytest.mark.parametrize("outage", [0.5, 5.0, 9.0])
@pytest.mark.parametrize("timeout", [0.0, 1.0, 20.0, None])
def test_a_failover_is_a_pause_whatever_the_timeout(outage: float, timeout: float | None) -> None:
    healthy = job_that_ends_at(0.0)
    world = World(lambda w, step: (0.001, BUSY) if w.now < outage else healthy(w, step))
    assert world.run(world.talks.job_result("j", "/j/result", Wait(timeout, 0.0), 0.0)).status_code == 200


def test_what_is_sent_again_late_asks_for_no_more_wait_than_is_left() -> None:
    # given a wait of 20 s whose connection breaks after 12
    def serve(world: World, step: Send) -> tuple[float, Answer | None]:
        return (12.0, None) if world.now == 0 else job_that_ends_at(1e9)(world, step)

    world = World(serve)
    with pytest.raises(WaitTimedOut):
        world.run(world.talks.job_end("/j", Wait(20.0, 0.0), 0.0))
    assert world.now == pytest.approx(20.0, abs=0.1)
    poll = Request("GET", "/c", params={"after": 7, "wait": 20.0}, wait_seconds=20.0)
    again = World(lambda w, _: (12.0, None) if w.now == 0 else (0.1, json({})))
    again.run(again.talks.exchange(poll, 0.0, Wait(20.0, 0.0)))
    asked = again.sent[1][1].request.params
    assert asked is not None and asked["after"] == 7 and asked["wait"] <= 8.0


def test_an_answer_has_all_the_time_that_the_service_was_asked_to_wait() -> None:
    for wait_seconds in (0.0, 20.0, 60.0):
        for deadline in (0.0, 5.0, 60.0, None):
            request = STATUS._replace(wait_seconds=wait_seconds)
            world = World(lambda *_: (0.0, json({})), deadline_seconds=deadline)
            world.run(world.talks.exchange(request, 0.0))
            timeout = world.sent[0][1].timeout_seconds
            assert wait_seconds < timeout <= wait_seconds + ANSWER_SECONDS


def test_a_result_that_is_there_may_take_as_long_as_any_request() -> None:
    healthy = job_that_ends_at(0.0)
    world = World(lambda w, step: (0.001, BUSY) if w.now < 40 else healthy(w, step))
    talk = world.talks.job_result("j", "/j/result", Wait(0.0, 0.0), 0.0, has_ended=True)
    assert world.run(talk).status_code == 200


def test_all_addresses_are_tried_before_a_pause() -> None:
    def serve(world: World, step: Send) -> tuple[float, Answer | None]:
        return (0.0, json({}) if step.url == "http://c" else None)

    world = World(serve, urls=["http://a", "http://b", "http://c"])
    for _ in range(3):
        world.run(world.talks.exchange(STATUS, world.now))
    assert [step.url[-1] for _, step in world.sent] == ["a", "b", "c", "c", "c"]
    assert world.now == 0.0


def test_what_cannot_be_mended_is_raised_at_once() -> None:
    for status, code, error in ((404, "unknown_job", Refused), (400, "invalid", InvalidRequest)):
        answer = json({"code": code, "detail": "no", "retryable": False}, status)
        world = World(lambda *_, answer=answer: (0.0, answer))
        with pytest.raises(error):
            world.run(world.talks.exchange(STATUS, 0.0))
        assert len(world.sent) == 1


@pytest.mark.parametrize("bad", ["5", True, math.nan, [1], object()])
def test_a_time_that_is_none_is_refused_by_its_name(bad: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Wait(bad, 0.0)
    assert caught.value.field == "timeout"
    with pytest.raises(InvalidRequest) as caught:
        Talks(Route(["http://a"]), bad, Random(1))
    assert caught.value.field == "deadline_seconds"


def test_times_may_be_said_in_python() -> None:
    assert checked_seconds("timeout", datetime.timedelta(minutes=2)) == 120.0
    assert checked_seconds("timeout", -1) == 0.0
    assert checked_seconds("timeout", math.inf) == math.inf
    assert checked_seconds("timeout", None) is None
    assert checked_seconds("timeout", 10**400) == math.inf and checked_seconds("timeout", -(10**400)) == 0.0
