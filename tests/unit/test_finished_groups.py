"""Finished jobs in groups: lean, and to everybody the jobs that they were."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from random import Random

import pytest

from jobsvc import (
    columns,
    completion_feed,
    decisions,
    finished_groups,
    job_views,
    queue_snapshot,
    recently_finished,
)
from jobsvc import commands as c
from jobsvc.events import AttemptsEnded, Change
from jobsvc.jobs import HASH_TASK, BlobRef, Finished, Job, Outcome, Result, State
from jobsvc.queue_state import apply
from jobsvc.transitions import IllegalTransition

from .queue_world import World, restored

BYTES_MAX = 450


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"LAG": 0, "SOME": 8, "AT_ONCE_MIN": 6, "GROUP_MIN": 4, "GROUP_MAX": 8, "OPEN_MIN": 2}
    for name, number in sizes.items():
        monkeypatch.setattr(recently_finished, name, number)


def finish(world: World, count: int, **options: object) -> list[bytes]:
    ids = world.enqueue(count, payload=b'{"args":["%s"]}' % (b"x" * 188), **options)  # type: ignore[arg-type]
    world.lease("w1", count)
    now = world.state.log_time
    world.settle(
        [
            Finished(
                job, 1, Outcome.SUCCEEDED, now + n / 1e3, now + n / 1e3 + 1e-4, Result("json", b"%d" % n)
            )
            for n, job in enumerate(ids)
        ]
    )
    return ids


def entries(world: World) -> list[Job | finished_groups.FinishedGroup]:
    return [each for shard in world.state.jobs._shards for each in shard.values()]


def grouped(world: World) -> int:
    return sum(isinstance(each, finished_groups.FinishedGroup) for each in entries(world))


def test_a_finished_job_takes_little_memory() -> None:
    world = World()
    finish(world.after(0.1), 4_000)
    world.log.clear()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(20):
            finish(world.after(0.1), 1_000)
            world.log.clear()
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / 20_000 <= BYTES_MAX
    queue_snapshot.check_invariants(world.state)


def test_a_state_that_was_restored_is_as_lean() -> None:
    world = World()
    for _ in range(10):
        finish(world.after(0.1), 1_000)
    other = World()
    other.state = restored(world.state)
    assert grouped(other) > 7_000 and grouped(world) > 7_000
    assert queue_snapshot.fingerprint(other.state) == queue_snapshot.fingerprint(world.state)


@pytest.mark.usefixtures("small")
def test_a_job_in_a_group_is_told_as_it_was() -> None:
    # given jobs that finish in another order than they came, at several times and workers
    lean, plain = World(), World()
    for world in (lean, plain):
        with pytest.MonkeyPatch.context() as patch:
            if world is plain:
                for name in ("AT_ONCE_MIN", "OPEN_MIN", "LAG"):
                    patch.setattr(recently_finished, name, 10**6)
            ids = world.enqueue(40, payload=b"payload")
            for worker, some in (("w1", 10), ("w2", 20), ("w1", 10)):
                leased = world.after(1.0).lease(worker, some)
                world.settle([world.finished(job, Outcome.SUCCEEDED) for job in reversed(leased)], worker)
    assert grouped(lean) == 40 and grouped(plain) == 0
    # then every answer is the same
    for world in (lean, plain):
        world.check()
    assert job_views.get_jobs(lean.state, c.GetJobs(ids)) == job_views.get_jobs(plain.state, c.GetJobs(ids))
    for query in (c.ListJobs(), c.ListJobs(State.SUCCEEDED, limit=7), c.ListJobs(State.FAILED)):
        assert job_views.list_jobs(lean.state, query) == job_views.list_jobs(plain.state, query)
    feed = [job_views.read_feed(world.state, c.ReadFeed(7, limit=20)) for world in (lean, plain)]
    assert feed[0] == feed[1] and len(feed[0].entries) == 20
    for job in ids:
        assert job_views.get_payload(lean.state, c.GetPayload(job)).payload == b"payload"  # type: ignore[union-attr]
    # and commands find them ended
    assert lean.do(c.Cancel(ids)) == plain.do(c.Cancel(ids))
    assert lean.do(c.Retry(ids)) == plain.do(c.Retry(ids))
    assert lean.do(c.Enqueue([], [])) == plain.do(c.Enqueue([], []))


@pytest.mark.usefixtures("small")
def test_what_is_not_plain_stays_an_object() -> None:
    world = World()
    finish(world, 8, task=HASH_TASK)
    for job in world.enqueue(8, payload=BlobRef("payloads/a", 0, 1)):
        world.run(job)
    for job in world.enqueue(8, max_attempts=1):
        world.run(job, Outcome.RAISED)
    for job in world.enqueue(8, backoff_base_seconds=0.0):
        world.run(job, Outcome.RAISED)
        world.run(job)
    assert grouped(world) == 0
    world.check()
    # and hash jobs join when they were pulled
    assert len(world.do(c.Pull(HASH_TASK, 8)).jobs) == 8
    assert grouped(world) == 8
    world.check()


def test_a_job_that_is_pulled_at_once_is_in_one_group_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in (("LAG", 0), ("SOME", 8), ("GROUP_MIN", 8), ("GROUP_MAX", 8)):
        monkeypatch.setattr(recently_finished, name, number)
    world = World()
    finish(world, 8, task=HASH_TASK)
    world.do(c.Pull(HASH_TASK, 8))
    assert grouped(world) == 8
    world.check()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(12))
def test_each_page_of_the_feed_is_as_if_there_were_no_groups(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # given jobs that end one by one, by the handful and many at once; some fail, are revived, are retired
    monkeypatch.setattr(job_views, "SCAN_MAX", 11)
    monkeypatch.setattr(completion_feed, "_BLOCK", 5)
    pages: list[list[c.FeedPage]] = []
    for grouped_at_all in (True, False):
        chance, world = Random(seed), World()
        with pytest.MonkeyPatch.context() as patch:
            if not grouped_at_all:
                for name in ("AT_ONCE_MIN", "OPEN_MIN", "LAG"):
                    patch.setattr(recently_finished, name, 10**6)
            for _ in range(12):
                live(world.after(1.0), chance)
        assert (grouped(world) > 0) is grouped_at_all
        queries = [*itertools.product(range(world.state.feed.newest + 1), (1, 2, 7, 100))]
        found = [job_views.read_feed(world.state, c.ReadFeed(at, limit=limit)) for at, limit in queries]
        sizes = [len(page.entries) for page in found]
        assert all(size <= min(limit, 11) for size, (_, limit) in zip(sizes, queries, strict=True))
        pages.append(found)
    # then whoever reads gets the same pages from any place
    assert pages[0] == pages[1] and len(pages[0]) > 200


def live(world: World, chance: Random) -> None:
    """Some jobs end, and some that had ended leave."""
    count = chance.choice((1, 2, 3, 10, 20))
    world.enqueue(count, max_attempts=1, queue=chance.choice("ab"))
    leased = world.lease("w1", 100)
    chance.shuffle(leased)
    outcomes = chance.choices((Outcome.SUCCEEDED, Outcome.RAISED), (12, 1), k=count)
    ends = zip(leased, outcomes, strict=True)
    world.settle([world.finished(job, end, Result("json", b"%d" % job[-1])) for job, end in ends], "w1")
    failed = [job.id for job in world.state.feed if job.state is State.FAILED]
    if failed and chance.random() < 0.3:
        again = chance.choice(failed)
        world.do(c.Retry([again]))
        world.run(again)
    kept = [*world.state.feed]
    gone = chance.sample(kept, len(kept) // chance.choice((3, 8)))
    if gone:
        event, _ = decisions.retired(world.state, gone)
        world.record([event])
    world.check()


@pytest.mark.usefixtures("small")
def test_groups_are_retired_row_by_row() -> None:
    world = World(retained_jobs_max=100)
    ids = [job for _ in range(10) for job in finish(world.after(0.1), 10)]
    for keep in (99, 73, 50, 8, 1, 0):
        world.limits = world.limits._replace(retained_jobs_max=keep)
        world.retire()
        world.check()
        assert list(world.state.jobs) == ids[100 - keep :]
        assert [job.id for job in world.state.feed] == ids[100 - keep :]
    assert not world.state.counts and not world.state.options and not any(world.state.jobs._shards)


@pytest.mark.usefixtures("small")
def test_jobs_that_are_retired_before_they_are_grouped_leave_nothing() -> None:
    world = World(retained_jobs_max=0)
    for number in range(50):
        finish(world, 3, batch=f"b{number}")
        world.retire()
    assert not world.state.options and not any(world.state.jobs._shards)
    world.check()


def test_a_group_that_is_far_apart_in_time_and_place_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recently_finished, "OPEN_MIN", 2)
    monkeypatch.setattr(columns, "PALETTE_MAX", 1)
    world = World()
    [first] = world.enqueue()
    world.state.next_seq += 1 << 40
    [second] = world.after(1e7).enqueue()
    world.run(first)
    world.run(second)
    assert grouped(world) == 2 and len({*map(id, entries(world))}) == 1
    seqs = [world.job(job).seq for job in (first, second)]
    assert seqs == [1, 2 + (1 << 40)]
    assert [world.job(job).created_at for job in (first, second)] == [1e6, 1.1e7]
    assert list(itertools.chain(decisions.retire(world.state, world.limits._replace(retained_jobs_max=0))))


@pytest.mark.usefixtures("small")
def test_what_ends_together_is_a_group_at_once_in_any_order() -> None:
    world = World()
    ids = world.enqueue(20, payload=b"payload")
    world.lease("w1", 20)
    order = [ids[n] for n in (3, 1, 2, 0, *range(19, 3, -1))]
    world.settle([world.finished(job, Outcome.SUCCEEDED, Result("json", job)) for job in order])
    assert grouped(world) == 20
    assert [job.id for job in world.state.feed] == order
    assert [world.job(job).details.result for job in ids] == [Result("json", job) for job in ids]  # type: ignore[union-attr]
    world.check()


@pytest.mark.usefixtures("small")
def test_what_ends_beside_it_in_another_way_is_as_ever() -> None:
    # given reports of one call: a failure among them, and jobs of two kinds
    world = World()
    ids = [*world.enqueue(8), *world.enqueue(8, batch="other"), *world.enqueue(2, max_attempts=1)]
    world.lease("w1", 18)
    outcomes = [Outcome.SUCCEEDED] * 16 + [Outcome.RAISED, Outcome.SUCCEEDED]
    some = [world.finished(job, outcome) for job, outcome in zip(ids, outcomes, strict=True)]
    # when they are settled
    assert world.settle([*some, some[0]]) == [(ids[0], 1)]
    # then each is where it belongs
    assert grouped(world) == 17
    assert [world.job(job).state for job in ids[15:]] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    assert [job.id for job in world.state.feed] == ids
    world.check()


@pytest.mark.usefixtures("small")
def test_a_report_that_names_a_job_twice_is_no_legal_event() -> None:
    world = World()
    ids = world.enqueue(8)
    world.lease("w1", 8)
    ends = [world.finished(job, Outcome.SUCCEEDED) for job in [*ids[:7], ids[0]]]
    event = AttemptsEnded("w1", "node", ends, [Change.SUCCEED] * 8, [None] * 8)
    with pytest.raises(IllegalTransition):
        apply(world.state, event, world.state.log_time)


@pytest.mark.parametrize("together", [1, 7, 31, 500])
@pytest.mark.parametrize("retention", [None, 600.0])
def test_jobs_that_end_one_by_one_take_as_little(together: int, retention: float | None) -> None:
    world = World()
    for _ in range(4_000 // together):
        finish(world.after(0.1), together, retention_seconds=retention)
    world.log.clear()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(8_000 // together):
            finish(world.after(0.1), together, retention_seconds=retention)
        world.log.clear()
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / 8_000 <= BYTES_MAX
    queue_snapshot.check_invariants(world.state)


@pytest.mark.usefixtures("small")
def test_a_job_of_an_open_group_is_told_as_it_was() -> None:
    # given jobs that end one by one: some of them fill a group, one waits in an open one
    world = World()
    ids = world.enqueue(9, payload=b"payload")
    world.lease("w1", 9)
    for number, job in enumerate(ids):
        world.after(1.0).report(job)
        assert grouped(world) == number + 1
        world.check()
    # then the order, the feed and the table have each as it ended
    assert [job.id for job in world.state.order if isinstance(job, Job)] == ids
    for number, job in enumerate(ids):
        details = world.job(job).details
        assert details is not None and details.finish_seq == number + 1
        assert world.state.feed.job_at(number + 1) == world.job(job)
        assert job_views.get_payload(world.state, c.GetPayload(job)).payload == b"payload"  # type: ignore[union-attr]
    page = job_views.list_jobs(world.state, c.ListJobs(State.SUCCEEDED))
    assert [view.id for view in page.jobs] == ids[::-1]


@pytest.mark.usefixtures("small")
def test_an_open_group_whose_jobs_retire_leaves_nothing() -> None:
    world = World(retained_jobs_max=0)
    for _ in range(3):
        for job in world.enqueue(3):
            world.run(job)
        world.retire()
        world.check()
    assert not world.state.recent._open and not any(world.state.jobs._shards) and not world.state.options
