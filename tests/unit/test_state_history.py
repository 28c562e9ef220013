"""How the service went, as rings of samples."""

from __future__ import annotations

from jobsvc import commands as c
from jobsvc.events import EpochBegan
from jobsvc.jobs import Outcome
from jobsvc.state_history import StateHistory

from .queue_world import World


def sampled(world: World, history: StateHistory, seconds: int, **fields: int) -> None:
    """A second after the other."""
    for _ in range(seconds):
        world.after(1.0)
        history.sample(world.state, world.state.log_time, **fields)


def test_a_point_every_few_seconds_and_the_finest_ring_that_reaches_back() -> None:
    world, history = World(), StateHistory()
    sampled(world, history, 601)
    assert history.read(600).step_seconds == 5.0
    assert len(history.read(60).points) == 13
    assert history.read(80_000).step_seconds == 60.0
    assert [point.at for point in history.read(80_000).points] == sorted(
        point.at for point in history.read(80_000).points
    )
    assert history.read(1e9).step_seconds == 300.0


def test_rings_are_bounded() -> None:
    world, history = World(), StateHistory()
    sampled(world, history, 5_000)
    assert len(history.read(3_600).points) <= 721


def test_rates_are_of_the_last_minute() -> None:
    world, history = World(), StateHistory()
    assert history.rates() == (0.0, 0.0, 0.0)
    history.sample(world.state, world.state.log_time)
    for job in world.enqueue(60):
        world.run(job)
    sampled(world, history, 60, failed=30)
    enqueued, finished, failed = history.rates()
    assert (round(enqueued, 2), round(finished, 2), round(failed, 2)) == (1.0, 1.0, 0.5)
    sampled(world, history, 120, failed=30)
    assert history.rates() == (0.0, 0.0, 0.0)


def test_what_one_look_tells() -> None:
    world, history = World(), StateHistory()
    world.enqueue(queue="mail")
    began = world.state.log_time
    world.after(10.0).enqueue(3, queue="images")
    world.do(c.PatchQueue("images", True))
    pulse = history.pulse(world.state)
    assert (pulse.oldest_queued_at, pulse.oldest_queue) == (began, "mail")
    assert (pulse.paused, pulse.paused_queued) == (["images"], 3)
    [job] = world.lease()
    world.report(job, Outcome.RAISED)
    assert history.pulse(world.state).failure_groups == 0, "it will be tried again"


def test_takeovers_are_remembered_by_who_saw_them() -> None:
    world, history = World(), StateHistory()
    world.record([EpochBegan(4, "manager-a")])
    sampled(world, history, 2)
    assert history.read(60).takeovers == []
    world.record([EpochBegan(5, "manager-b")])
    sampled(world, history, 2)
    assert [takeover.epoch for takeover in history.read(60).takeovers] == [5]
