"""A snapshot is the state: whoever restores it decides as the leader would have."""

from __future__ import annotations

import pytest

from jobsvc import decisions, queue_snapshot
from jobsvc.commands import Cancel, Enqueue, PatchQueue, Pull, Retry
from jobsvc.errors import Refusal
from jobsvc.jobs import HASH_TASK, BlobRef, JobOptions, NewJob, Outcome, encode
from jobsvc.queue_snapshot import check_invariants, fingerprint
from jobsvc.queue_state import apply

from .queue_world import HOUR, World, job_id, replayed, restored


def a_lived_in_world() -> World:
    """Jobs in every state, on every way there is."""
    world = World(retained_jobs_max=6)
    ids = world.enqueue(12, task=HASH_TASK, payload=BlobRef("payloads/a", 0, 9))
    world.enqueue(3, priority=2, queue="q", retention_seconds=50.0)
    world.enqueue(2, run_at=world.state.log_time + HOUR, batch="b", labels=(("a", "1"),))
    leased = world.lease("w1", 9)
    for number, outcome in enumerate([*Outcome, Outcome.SUCCEEDED]):
        world.after(0.5).report(leased[number], outcome)
    world.do(Cancel([leased[8], ids[10]], "k", b"f"))
    world.do(Retry([ids[10]]))
    world.do(PatchQueue("paused", True))
    world.do(Pull(HASH_TASK, 1, "~k", b"f"))
    world.lease("w2", 2)
    world.do(Enqueue([JobOptions("t")], [NewJob(job_id(500), 0, b"x")], "key", b"f"))
    return world


def test_restoring_gives_the_same_state_and_the_same_decisions() -> None:
    world = a_lived_in_world()
    world.check()
    other = restored(world.state)
    # when both go on, then they go on alike: leases, pulls, promotions, retirement, refusals
    for step in range(40):
        for state in (world.state, other):
            state.log_time += 200.0
        mine, theirs = (
            [
                decisions.promote_due(state),
                decisions.lease(state, f"w{step}", "default", 1 + step % 3),
                decisions.lose_worker(state, f"w{step - 2}", None),
                decisions.decide(state, Pull(HASH_TASK, 1), world.limits).events,
            ]
            for state in (world.state, other)
        )
        assert encode(mine) == encode(theirs)
        for event in (mine[0], mine[1], *mine[2], *mine[3]):
            if event is not None:
                world.record([event])
                apply(other, event, world.state.log_time)
        retired = [[job.id for job in decisions.retire(s, world.limits)] for s in (world.state, other)]
        assert sorted(retired[0]) == sorted(retired[1])
        assert fingerprint(world.state) == fingerprint(other)
        check_invariants(other)


def test_a_tail_on_a_snapshot_is_the_whole_log() -> None:
    world = a_lived_in_world()
    for cut in range(0, len(world.log), 3):
        state = restored(replayed(world.log[:cut]))
        assert fingerprint(replayed(world.log[cut:], state)) == fingerprint(replayed(world.log))


def test_parts_are_small_and_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_snapshot, "JOBS_PER_PART", 4)
    world = World()
    world.enqueue(9)
    assert len(list(queue_snapshot.parts(world.state))) == 1 + 3
    world.check()
    # and an empty one is a header alone
    assert fingerprint(restored(World().state)) == fingerprint(World().state)


def test_retired_jobs_that_linger_are_not_written() -> None:
    world = World(retained_jobs_max=0)
    ids = world.enqueue(5)
    world.run(ids[0])
    world.retire()
    assert len(world.state.order) == 5
    assert [job.id for job in restored(world.state).order] == ids[1:]
    # and what was retired is still known as such
    answer = decisions.missing(restored(world.state), ids[0])
    assert isinstance(answer, Refusal) and answer.code == "expired_job"


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_snapshot, "FORMAT", 999)
    body = b"".join(queue_snapshot.parts(World().state))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="999"):
        list(queue_snapshot.restore(body))


def test_fingerprints_tell_states_apart() -> None:
    first, second = World(), World()
    for world in (first, second):
        world.enqueue(2)
    assert fingerprint(first.state) == fingerprint(second.state)
    second.lease()
    assert fingerprint(first.state) != fingerprint(second.state)
