"""A set of jobs as the client's core reads it: what is asked next, what an answer means, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobsvc.client_core import LONG_POLL_SECONDS, Answer, Send, Wait
from jobsvc.client_feed import Ends, FeedItem, FeedPage
from jobsvc.errors import Unavailable, WaitTimedOut

from .talk_world import BUSY, World, json

Serve = Callable[[World, Send], tuple[float, Answer | None]]


class Waiter:
    """Whoever waits for a set: the loop of `JobSet`, without threads."""

    def __init__(self, ids: list[str], serve: Serve) -> None:
        self.world = World(serve)
        self.told: list[str] = []
        self.ends = Ends(ids, 0, 0.0, lambda entry: self.told.append(entry.id))

    def read(self, wait: Wait | None = None) -> bool:
        talk = self.ends.read(self.world.talks, self.world.now, wait)
        return self.ends.take(self.world.run(talk))

    def wait(self, timeout: float | None) -> None:
        wait = Wait(timeout, self.world.now)
        while self.ends.open:
            if self.read(wait) and self.ends.open:
                wait.check(self.world.now, "some have not ended")

    def asked(self, what: str) -> list[float]:
        return [at for at, step in self.world.sent if step.request.path.startswith(what)]


def page(ended: list[str], next_place: int, **more: Any) -> Answer:
    items = [
        FeedItem(next_place - len(ended) + n, job_id, "succeeded", "t") for n, job_id in enumerate(ended)
    ]
    return json(FeedPage(items, next_place, newest=more.pop("newest", next_place), **more))


def ends_at(times: dict[str, float], limit: int = 5_000) -> Serve:
    """A service whose jobs end at these times; each place of its feed is one of them."""
    order = sorted(times, key=times.__getitem__)

    def serve(world: World, step: Send) -> tuple[float, Answer]:
        params = step.request.params or {}
        after, wait = int(params["after"]), float(params["wait"])
        next_end = times[order[after]] if after < len(order) else 1e9
        seconds = min(wait, max(0.0, next_end - world.now)) + 0.001
        newest = sum(at <= world.now + seconds for at in times.values())
        here = order[after : min(newest, after + limit)]
        return seconds, page(here, after + len(here), newest=newest)

    return serve


@pytest.mark.parametrize("seconds", [0.0, 75.0, 7_200.0])
def test_a_set_is_waited_for_however_long_it_takes(seconds: float) -> None:
    waiter = Waiter(["a", "b"], ends_at({"a": 0.0, "other": 1.0, "b": seconds}))
    waiter.wait(None)
    assert waiter.told == ["a", "b"] and waiter.ends.counts() == {"open": 0, "succeeded": 2}
    assert waiter.world.now <= seconds + 0.2
    assert len(waiter.world.sent) <= 5 + seconds / LONG_POLL_SECONDS


@pytest.mark.parametrize("timeout", [0, 0.0004, 0.5, 20, 79, 7_200])
def test_a_wait_ends_with_its_time_whether_others_end_or_none(timeout: float) -> None:
    for others in ({}, {f"other-{n}": n * 7.0 for n in range(2_000)}):
        waiter = Waiter(["a"], ends_at(others))
        with pytest.raises(WaitTimedOut, match=f"after {timeout:g} s"):
            waiter.wait(timeout)
        assert timeout <= waiter.world.now <= timeout + 0.05
        assert waiter.world.sent, "it has looked once"


def test_a_set_of_none_asks_nobody() -> None:
    waiter = Waiter([], lambda *_: (0.0, None))
    waiter.wait(0.0)
    assert waiter.world.sent == [] and waiter.ends.counts() == {"open": 0}


def test_many_jobs_are_read_by_the_handful_and_the_last_ones_at_once() -> None:
    # given 400 jobs, of which one ends each half millisecond
    ids = [f"job-{number}" for number in range(400)]
    waiter = Waiter(ids, ends_at({job_id: n * 0.0005 for n, job_id in enumerate(ids)}))
    # when somebody waits for all of them
    waiter.wait(None)
    # then most of them came in few pages, and nobody slept when the last had ended
    assert len(waiter.world.sent) < 60
    assert waiter.world.now <= 400 * 0.0005 + 0.01


def test_what_has_ended_is_read_page_by_page_without_a_pause() -> None:
    ids = [f"job-{number}" for number in range(50)]
    waiter = Waiter(ids, ends_at(dict.fromkeys(ids, 0.0), limit=10))
    waiter.wait(0.0)
    assert len(waiter.world.sent) == 5 and waiter.told == ids


def test_a_set_that_misses_something_again_and_again_does_not_ask_for_all_each_time() -> None:
    # given 1,000 running jobs, on a service where others' jobs are retired before they are told
    ids = [f"job-{number:04}" for number in range(1_000)]
    gone: set[str] = set()

    def serve(world: World, step: Send) -> tuple[float, Answer]:
        job_id = step.request.path.removeprefix("/v1/jobs/")
        if step.request.path == "/v1/completions":
            return 0.0, page([], 9, truncated=True, holes=[(1, 9)])
        if job_id in gone:
            return 0.0, json({"code": "expired_job", "detail": "long ago"}, 410)
        return 0.0, json({"id": job_id, "state": "running", "task": "t", "error": None, "result": None})

    waiter = Waiter(ids, serve)
    # when it is looked at all the time, then all were asked for once
    for _ in range(20):
        assert waiter.read() and waiter.ends.counts() == {"open": 1_000}
    assert len(waiter.asked("/v1/jobs/")) == 1_000
    # and what has expired since is told a while later
    gone.add(ids[0])
    waiter.world.now += 2.0
    assert waiter.read() and waiter.ends.counts() == {"open": 999, "expired": 1}


def test_looks_by_id_are_given_up_with_the_wait_that_they_are_part_of() -> None:
    # given a feed that has forgotten, and a service that then has no leader
    def serve(world: World, step: Send) -> tuple[float, Answer]:
        return (0.0, page([], 9, truncated=True)) if step.request.params else (0.001, BUSY)

    waiter = Waiter(["a"], serve)
    with pytest.raises(WaitTimedOut):
        waiter.wait(20.0)
    assert waiter.world.now <= 24.0
    # and a look that is part of none, with the client's deadline
    with pytest.raises(Unavailable):
        waiter.ends = Ends(["a"], 0, 0.0, lambda _: None)
        waiter.read()
    assert waiter.world.now <= 24.0 + 63.0


def test_of_two_readers_of_the_same_page_the_first_one_counts() -> None:
    waiter = Waiter(["a", "b"], ends_at({"a": 0.0}))
    ends, world = waiter.ends, waiter.world
    first, second = (world.run(ends.read(world.talks, world.now)) for _ in range(2))
    assert ends.take(first) and not ends.take(second)
    assert waiter.told == ["a"] and ends.after == 1


def test_jobs_that_are_put_back_end_again() -> None:
    waiter = Waiter(["a", "b"], ends_at({}))
    ends = waiter.ends
    ends.add([FeedItem(1, "a", "failed", "t"), FeedItem(2, "b", "succeeded", "t")])
    assert ends.reopen() == ["a"] and ends.order == [None, "b"]
    assert ends.counts() == {"open": 1, "succeeded": 1}
    ends.add([FeedItem(3, "a", "cancelled", "t")])
    assert ends.order == [None, "b", "a"] and ends.counts() == {"open": 0, "succeeded": 1, "cancelled": 1}


def test_what_was_left_half_changed_is_made_whole() -> None:
    for step in range(3):
        waiter = Waiter(["a", "b"], ends_at({}))
        ends = waiter.ends
        ends.ended["a"] = FeedItem(1, "a", "succeeded", "t")
        if step > 0:
            ends.states["succeeded"] += 1
        if step > 1:
            ends.order.append("a")
        ends.mend()
        assert (ends.order, ends.open) == (["a"], {"b"}) and ends.counts() == {"open": 1, "succeeded": 1}
