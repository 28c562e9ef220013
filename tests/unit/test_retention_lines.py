"""Who is old: a look at the ages costs what it finds, however many are kept for longer."""

from __future__ import annotations

import random

import pytest

from jobsvc import queue_snapshot, retention_lines
from jobsvc.commands import Retry
from jobsvc.completion_feed import CompletionFeed
from jobsvc.jobs import Job, Outcome

from .queue_world import World, restored


def ended(world: World, count: int, **options: object) -> list[bytes]:
    ids = world.enqueue(count, **options)  # type: ignore[arg-type]
    world.lease("w1", count)
    world.settle([world.finished(job, Outcome.SUCCEEDED) for job in ids])
    return ids


def test_a_look_passes_no_job_that_is_kept_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    whole = CompletionFeed.job_at

    def counted(self: CompletionFeed, place: int) -> Job | None:
        looks.append(place)
        return whole(self, place)

    # given many jobs of long retentions, and some of a short one between them
    world = World(retention_seconds=1_000.0)
    short = []
    for _ in range(20):
        ended(world, 100, retention_seconds=1e6)
        ended(world, 50)
        short += ended(world.after(1.0), 1, retention_seconds=100.0)
    for number in range(200):
        ended(world, 1, retention_seconds=1e5 + number)
    held = len(world.state.jobs)
    # when nothing is old, a look costs next to nothing
    monkeypatch.setattr(CompletionFeed, "job_at", counted)
    world.retire()
    assert len(looks) < 10 and len(world.state.jobs) == held
    # and when some are, it costs about as much as those
    looks.clear()
    world.after(90.0).retire()
    assert [job for job in short if job not in world.state.jobs] == short[: held - len(world.state.jobs)]
    assert 0 < held - len(world.state.jobs) < 20 and len(looks) < 100
    queue_snapshot.check_invariants(world.state)


@pytest.mark.parametrize("seed", range(10))
def test_it_is_what_a_loop_over_all_jobs_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_lines, "LINGER_MIN", 2)
    chance = random.Random(seed)
    world = World(retention_seconds=30.0, retained_jobs_max=chance.choice([25, 10**6]))
    due: dict[bytes, float] = {}
    failed: list[bytes] = []
    for step in range(400):
        own = chance.choice([None, 5.0, 60.0, 1e9, float(chance.randrange(1, 90))])
        outcome = chance.choice([Outcome.SUCCEEDED, Outcome.RAISED])
        [job] = world.enqueue(priority=step, max_attempts=1, retention_seconds=own)
        world.run(job, outcome)
        due[job] = world.state.log_time + (30.0 if own is None else own)
        failed += [job] if outcome is Outcome.RAISED else []
        if failed and chance.random() < 0.2:
            # one is put back, and ends again
            again = chance.choice(failed)
            if again in due:
                world.do(Retry([again]))
                world.run(again, Outcome.RAISED)
                own = world.job(again).options.retention_seconds
                due.pop(again)
                due[again] = world.state.log_time + (30.0 if own is None else own)
        world.after(chance.random() * 3)
        if chance.random() < 0.3:
            beyond = max(0, len(due) - world.limits.retained_jobs_max)
            gone = {*list(due)[:beyond], *(each for each, at in due.items() if at <= world.state.log_time)}
            world.retire()
            due = {each: at for each, at in due.items() if each not in gone}
            assert set(world.state.jobs) == set(due)
            queue_snapshot.check_invariants(world.state)
            if chance.random() < 0.1:
                world.state = restored(world.state)
    assert len(world.state.retention) < 20 * len(due) + 50


def test_who_is_put_back_again_and_again_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_lines, "LINGER_MIN", 20)
    # given a job that is kept for ever in front of one that is put back
    world = World()
    ended(world, 1, max_attempts=1, retention_seconds=1e12)
    [again] = world.enqueue(max_attempts=1, retention_seconds=1e12)
    world.run(again, Outcome.RAISED)
    for _ in range(500):
        ended(world, 1)
        world.do(Retry([again]))
        world.run(again, Outcome.RAISED)
    assert len(world.state.retention._lines[1e12]._ends) < 120
    queue_snapshot.check_invariants(world.state)
