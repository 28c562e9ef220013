"""Which queued job is next: priority first, then the oldest acceptance, whatever way it came."""

from __future__ import annotations

import random
import time

import pytest

from jobsvc import decisions, ready_lanes
from jobsvc.commands import Cancel, PatchQueue
from jobsvc.jobs import Job, JobOptions, Outcome, State
from jobsvc.queue_state import apply
from jobsvc.ready_lanes import Lane, Lanes
from jobsvc.segments import JobTable

from .queue_world import World, job_id


def a_job(seq: int, priority: int = 0, queue: str = "default") -> Job:
    return Job(job_id(seq), JobOptions("t", queue, priority=priority), b"", seq, 0.0)


def test_higher_priorities_go_first_and_then_the_oldest() -> None:
    world = World()
    [low] = world.enqueue(priority=-1)
    normal = world.enqueue(2)
    [high] = world.enqueue(priority=5)
    assert world.lease("w1", 2) == [high, normal[0]]
    assert world.lease("w1", 9) == [normal[1], low]
    world.check()


def test_what_comes_back_keeps_its_place() -> None:
    # given five jobs, of which three were out and come back in another order
    world = World()
    ids = world.enqueue(5)
    assert world.lease("w1", 3) == ids[:3]
    for job in (ids[2], ids[0], ids[1]):
        world.report(job, Outcome.RELEASED)
    # then all five are leased in the order of acceptance, also in small steps
    assert world.lease("w2", 1) == ids[:1]
    assert world.lease("w2", 3) == ids[1:4]
    assert world.lease("w2", 3) == ids[4:]
    world.check()


def test_a_retried_job_goes_before_younger_ones() -> None:
    world = World()
    [old] = world.enqueue()
    world.run(old, Outcome.RAISED)
    young = world.enqueue(2)
    assert world.lease() == young[:1]  # the old one waits for its backoff
    world.after(2.0).promote()
    assert world.lease("w1", 9) == [old, young[1]]
    world.check()


def test_several_queues_of_a_pool_are_one_order() -> None:
    world = World()
    [a1] = world.enqueue(queue="a")
    [b1] = world.enqueue(queue="b")
    [a2] = world.enqueue(queue="a")
    [b2] = world.enqueue(queue="b", priority=1)
    [elsewhere] = world.enqueue(queue="a", pool="gpu", priority=9)
    assert world.lease("w1", 3) == [b2, a1, b1]
    assert world.lease("w1", 9) == [a2]
    assert world.lease("w2", 9, pool="gpu") == [elsewhere]
    assert world.lease("w3", 9, pool="none") == [] and world.lease("w3", 0) == []
    world.check()


def test_deciding_changes_nothing() -> None:
    lane = Lane("default", "default", JobTable())
    for seq in range(1, 6):
        lane.add_new(a_job(seq))
    for seq in (10, 7):
        lane.add_returned(a_job(seq))
    first = [job.seq for job in lane.heads(4)]
    assert first == [job.seq for job in lane.heads(4)] == [1, 2, 3, 4]
    assert [job.seq for job in lane.heads(99)] == [1, 2, 3, 4, 5, 7, 10]
    oldest = lane.oldest()
    assert oldest is not None and oldest.seq == 1


def test_dead_entries_are_passed_over_wherever_they_are() -> None:
    world = World()
    ids = world.enqueue(6)
    world.do(Cancel([ids[0], ids[2], ids[5]]))
    assert world.lease("w1", 9) == [ids[1], ids[3], ids[4]]
    world.check()


@pytest.mark.parametrize("sorted_max", [0, 16])
def test_against_sorting(sorted_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_lanes, "SORTED_LANES_MAX", sorted_max)
    # given lanes with jobs of all kinds, some of them dead, some with two entries
    for seed in range(200):
        chance = random.Random(seed)
        table = Lanes(JobTable(), ())
        lanes = [table[queue, "default"] for queue in "abcdefg"[: chance.randrange(2, 8)]]
        jobs = []
        for seq in range(1, chance.randrange(2, 30)):
            lane = chance.choice(lanes)
            job = a_job(seq, chance.randrange(3), lane.queue)
            kind = chance.random()
            if kind < 0.6:
                lane.add_new(job)
            if kind > 0.4:
                lane.add_returned(job)
            if kind > 0.9:
                lane.add_returned(job)
            if chance.random() < 0.3:
                job.state = State.CANCELLED
            else:
                jobs.append(job)
        # then any number of heads is the beginning of the sorted list
        jobs.sort(key=lambda job: (-job.options.priority, job.seq))
        for count in (1, 2, 5, 50):
            assert table.next_jobs("default", count) == jobs[:count], f"seed {seed}"
            assert table.count_ready("default", count) == len(jobs[:count]), f"seed {seed}"
            mine = [job for job in jobs if job.options.queue == "a"]
            assert lanes[0].heads(count) == mine[:count], f"seed {seed}"
        oldest = lanes[0].oldest()
        expected = min((job.seq for job in jobs if job.options.queue == "a"), default=None)
        assert (oldest.seq if oldest else None) == expected


def cost_of_a_lease(queues: int, count: int, **options: object) -> float:
    """Seconds of this thread for one lease of so many jobs, when so many queues have jobs."""
    world = World()
    for number in range(queues):
        world.enqueue(10_000 // queues, queue=f"q{number}", **options)  # type: ignore[arg-type]
    spent = []
    for _ in range(40):
        began = time.thread_time()
        assert decisions.has_ready(world.state, "default")
        leased = decisions.lease(world.state, "w1", "default", count)
        assert leased is not None and len(leased.ids) == count
        apply(world.state, leased, world.state.log_time)
        assert world.state.lanes.count_ready("default", 5) == 5
        spent.append(time.thread_time() - began)
    return sorted(spent)[len(spent) // 2]


def test_a_lease_does_not_look_at_every_queue() -> None:
    one, many = cost_of_a_lease(1, 1), cost_of_a_lease(10_000, 1)
    assert many < 10 * one  # it was more than a thousand times
    assert cost_of_a_lease(10_000, 100) < 50 * cost_of_a_lease(1, 100)


def test_places_that_are_void_do_not_pile_up() -> None:
    # given a queue that is never served, because others go first, and whose jobs come and are cancelled
    world = World()
    world.enqueue(queue="urgent", priority=9)
    for _ in range(1_000):
        [job] = world.enqueue(queue="other")
        assert decisions.has_ready(world.state, "default")
        world.do(PatchQueue("other", True))
        world.do(PatchQueue("other", False))
        world.do(Cancel([job]))
    order = world.state.lanes._ready["default"]
    assert len(order._heap) <= 2 * len(order.lanes) + ready_lanes.VOID_MIN
    world.check()
