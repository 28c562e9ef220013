"""A deep backlog is kept frozen: lean, found by id, and nobody can tell."""

from __future__ import annotations

import random
import sys
import tracemalloc
from typing import Any

import pytest
import uuid_utils

from jobsvc import commands as c
from jobsvc import decisions, job_views, queue_snapshot, segments
from jobsvc.errors import Refusal
from jobsvc.jobs import BlobRef, Job, JobOptions, NewJob, Outcome, State
from jobsvc.segments import FREEZE_MIN, OVERLAP_MAX, SEGMENT_JOBS_MAX, JobTable

from .queue_world import START, World, job_id, replayed, restored

OPTIONS = JobOptions("demo.task")


def frozen(world: World) -> int:
    """How many jobs are in frozen segments."""
    return sum(segment.size for segment in world.state.jobs.segments)


def enqueue(world: World, ids: list[int], **rest: Any) -> Any:
    new = [NewJob(job_id(each), 0, b"%d" % each, rest.get("run_at")) for each in ids]
    return world.do(c.Enqueue([OPTIONS], new))


# --- what is frozen ---------------------------------------------------------------------------------


def test_what_comes_together_is_frozen_in_short_segments() -> None:
    world = World()
    world.enqueue(2 * SEGMENT_JOBS_MAX + FREEZE_MIN)
    assert frozen(world) == len(world.state.jobs) == 2 * SEGMENT_JOBS_MAX + FREEZE_MIN
    assert len(world.state.order) == 3
    # a rest that is too short is objects as ever
    world.enqueue(SEGMENT_JOBS_MAX + FREEZE_MIN - 1)
    assert frozen(world) == len(world.state.jobs) - (FREEZE_MIN - 1)
    world.check()


@pytest.mark.parametrize(
    "unfit",
    [
        {"payload": BlobRef("payloads/a", 0, 9)},
        {"payload": b"x" * (segments.SEGMENT_BYTES_MAX // FREEZE_MIN + 1)},
        {"run_at": START + 1.0},
    ],
    ids=["packed", "large", "scheduled"],
)
def test_jobs_that_are_more_than_an_id_and_a_payload_are_not(unfit: dict[str, Any]) -> None:
    world = World()
    world.enqueue(FREEZE_MIN, **unfit)
    assert frozen(world) == 0 and len(world.state.jobs) == FREEZE_MIN
    world.check()


def test_a_time_that_has_come_is_no_reason_to_wait() -> None:
    world = World()
    world.enqueue(FREEZE_MIN, run_at=START)
    assert frozen(world) == FREEZE_MIN and world.state.total(State.QUEUED) == FREEZE_MIN


@pytest.mark.parametrize(
    "ids",
    [
        list(range(FREEZE_MIN, 0, -1)),  # in another order than that of their making
        [*range(1, FREEZE_MIN), 1 << 127],  # made hours apart
    ],
    ids=["descending", "far apart"],
)
def test_ids_that_no_clock_has_made_are_not_frozen_and_work(ids: list[int]) -> None:
    world = World()
    enqueue(world, ids)
    assert frozen(world) == 0
    assert world.lease("w1", 99) == [job_id(each) for each in ids]
    world.check()


def test_neighbours_with_other_options_are_other_segments() -> None:
    world = World()
    a, b = JobOptions("a"), JobOptions("b", "other", priority=3)
    new = [NewJob(job_id(n), n // 40, b"{}") for n in range(80)]
    world.do(c.Enqueue([a, b, JobOptions("unused", "nobody")], new))
    assert [segment.options for segment in world.state.jobs.segments] == [a, b]
    assert set(world.state.options) == {a, b} and world.state.counts["nobody"][State.QUEUED] == 0
    # and options that alternate are objects
    world.do(c.Enqueue([a, b], [NewJob(job_id(100 + n), n % 2, b"{}") for n in range(80)]))
    assert frozen(world) == 80
    world.check()


# --- finding by id ----------------------------------------------------------------------------------


def test_a_batch_that_comes_again_is_recognised() -> None:
    world = World()
    ids = list(range(10, 10 + 2 * FREEZE_MIN))
    first = enqueue(world, ids)
    assert enqueue(world, ids) == first and len(world.state.jobs) == len(ids)
    # in part, or with one that is there already, it is refused
    for again in (ids[3:4] + [9_000], [*range(500, 500 + FREEZE_MIN), ids[-1]]):
        refusal = enqueue(world, again)
        assert isinstance(refusal, Refusal) and refusal.code == "invalid"
    assert frozen(world) == len(world.state.jobs) == len(ids), "looking thawed something"
    world.check()


def test_an_id_between_two_others_is_unknown() -> None:
    world = World()
    enqueue(world, list(range(0, 4 * FREEZE_MIN, 2)))
    for stranger in (job_id(7), job_id(4 * FREEZE_MIN), job_id(4 * FREEZE_MIN - 1), b"", b"\xff" * 20):
        assert stranger not in world.state.jobs and world.state.jobs.peek(stranger) is None
        with pytest.raises(KeyError):
            world.state.jobs[stranger]
    enqueue(world, [7])
    assert world.job(job_id(7)).payload == b"7" and world.job(job_id(8)).payload == b"8"
    assert frozen(world) == 2 * FREEZE_MIN
    world.check()


def test_segments_overlap_up_to_a_bound_and_every_id_is_found() -> None:
    world = World()
    many = OVERLAP_MAX + 3
    # given replicas that made ids at the same time, each every so many milliseconds
    for replica in range(many):
        enqueue(world, [replica + many * n for n in range(FREEZE_MIN)])
    assert len(world.state.jobs.segments) == OVERLAP_MAX + 1  # the two last ones are objects
    for number in range(many * FREEZE_MIN):
        assert world.job(job_id(number)).payload == b"%d" % number
    assert isinstance(enqueue(world, [0]), c.Accepted) and len(world.state.jobs) == many * FREEZE_MIN
    world.check()


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_the_table_is_a_dictionary(overlap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # given segments of all widths, wherever they may lie
    monkeypatch.setattr(segments, "FREEZE_MIN", 2)
    monkeypatch.setattr(segments, "OVERLAP_MAX", overlap)
    for seed in range(40):
        chance = random.Random(seed)
        monkeypatch.setattr(segments, "_FINDS_PER_SET", chance.choice([1, 32]))
        table, known, taken = JobTable(), dict[bytes, bytes](), 0
        for seq in range(0, 300, 10):
            begin, step = chance.randrange(300), chance.choice([1, 2, 30])
            ids = [job_id(begin + step * n) for n in range(chance.randrange(2, 10))]
            if table.count_of(ids) != sum(each in known for each in ids):
                raise AssertionError(f"seed {seed}: counts what is not there, or not what is")
            if not known.keys().isdisjoint(ids):
                continue
            if table.freeze(ids, list(ids), OPTIONS, seq, 0.0) is not None:
                known |= {each: each for each in ids}
                taken += 1
            if chance.random() < 0.2 and known:
                asked = chance.choice(list(known))
                assert table[asked].payload == asked, f"seed {seed}"  # thaws
                assert table.holds(table[asked])
            for number in chance.sample(range(600), 50):
                found = table.peek(job_id(number))
                expected = known.get(job_id(number))
                assert (found.payload if found else None) == expected, f"seed {seed}"
        assert len(table) == len(known) and set(table) == set(known) and taken > 2


def test_the_table_is_never_built_anew_as_a_whole() -> None:
    # given a table that grows to 200,000 jobs, a thousand at a time
    table, before = JobTable(), 0
    for first in range(0, 200_000, 1_000):
        table.add([Job(uuid_utils.uuid7().bytes, OPTIONS, b"", first + each, 0.0) for each in range(1_000)])
        whole = sum(map(sys.getsizeof, table._shards))
        # then no step builds more than a few of its parts
        assert whole - before < whole / 3 or whole < 1_000_000
        before = whole
    assert max(map(sys.getsizeof, table._shards)) < whole / 5


# --- thawing ----------------------------------------------------------------------------------------


def test_a_lease_thaws_the_segment_whose_turn_it_is() -> None:
    world = World()
    ids = world.enqueue(100) + world.enqueue(100)
    world.enqueue(1)
    assert world.lease("w1", 3) == ids[:3]
    assert frozen(world) == 100
    assert world.lease("w1", 150) == ids[3:153]
    assert frozen(world) == 0
    world.check()
    # and a standby, which only hears what was leased, has the same
    follower = replayed(world.log)
    assert not follower.jobs.segments and queue_snapshot.fingerprint(follower) == queue_snapshot.fingerprint(
        world.state
    )


def test_one_in_the_middle_is_cancelled_and_the_others_keep_their_turn() -> None:
    world = World()
    ids = world.enqueue(100) + world.enqueue(100) + world.enqueue(100)
    assert world.do(c.Cancel([ids[150]])).items == [State.CANCELLED]
    assert frozen(world) == 200
    assert world.is_in(ids[150]) is State.CANCELLED and world.is_in(ids[149]) is State.QUEUED
    world.check()
    world.do(c.Retry([ids[150]]))
    assert world.lease("w1", 300) == ids
    world.check()


def test_cancelling_from_the_newest_leaves_no_pile_behind() -> None:
    # given three segments and single jobs after them
    world = World()
    ids = world.enqueue(3 * SEGMENT_JOBS_MAX)
    ids += [world.enqueue()[0] for _ in range(5)]
    line = world.state.lanes["default", "default"].lines[0]
    # when they are cancelled as a selection is, newest first
    for stop in range(len(ids), 100, -100):
        world.do(c.Cancel(ids[max(100, stop - 100) : stop]))
        # then those that are gone are not looked at again, all of them with the last one
        assert len(line) <= max(100, stop - 100) + SEGMENT_JOBS_MAX
        assert len(line.segments) == sum(isinstance(each, segments.Segment) for each in line.behind)
    world.check()
    # and what is left, and what comes back, runs in its order
    world.do(c.Retry(ids[-2:]))
    assert world.lease("w1", 200) == [*ids[:100], *ids[-2:]]
    world.check()


def test_what_comes_back_goes_before_what_is_frozen() -> None:
    world = World()
    ids = world.enqueue(40) + world.enqueue(40)
    world.lease("w1", 2)
    world.report(ids[1], Outcome.RELEASED)
    [high] = world.enqueue(priority=1)
    assert world.lease("w2", 50) == [high, ids[1], *ids[2:50]]
    world.check()


def test_a_whole_backlog_runs_and_retires() -> None:
    world = World(retained_jobs_max=10)
    ids = [each for _ in range(5) for each in world.enqueue(200)]
    for _ in range(25):
        for job in world.lease("w1", 40):
            world.report(job)
        world.retire()
    assert list(world.state.jobs) == ids[-10:]
    assert len(world.state.order) <= 20 and not any(
        isinstance(e, segments.Segment) for e in world.state.order
    )
    world.check()


# --- reading ----------------------------------------------------------------------------------------


def test_reading_thaws_nothing() -> None:
    world = World()
    ids = world.enqueue(100, payload=b"first") + world.enqueue(100, payload=b"second")
    state = world.state
    [view] = job_views.get_jobs(state, c.GetJobs([ids[130]], True)).items
    assert isinstance(view, c.JobView) and view.seq == 131 and view.state is State.QUEUED
    assert view.waiting is not None and view.waiting.endswith("behind about 130 others")
    payload = job_views.get_payload(state, c.GetPayload(ids[7]))
    assert isinstance(payload, c.Payload) and payload.payload == b"first"
    page = job_views.list_jobs(state, c.ListJobs(limit=30))
    assert [each.id for each in page.jobs] == ids[:-31:-1]
    page = job_views.list_jobs(state, c.ListJobs(before=page.before, limit=130, state=State.QUEUED))
    assert [each.id for each in page.jobs] == ids[-31:-161:-1] and page.before == 41
    assert job_views.list_jobs(state, c.ListJobs(queue="other")).before is None
    refusal = world.do(c.Retry([ids[5]])).items[0]
    assert isinstance(refusal, Refusal) and refusal.code == "wrong_state"
    assert job_views.get_queues(state, {}, {}).queues[0].oldest_queued_at == START
    world.check()
    assert frozen(world) == 200


def test_a_filter_counts_segments_as_a_whole() -> None:
    world = World()
    ids = [each for _ in range(50) for each in world.enqueue(1_000)]
    world.enqueue(100, queue="other")
    counted = job_views.count_matching(world.state, c.CountMatching("cancel", c.Selection(queue="default")))
    assert isinstance(counted, c.Matched)
    assert (counted.count, counted.before, counted.ids) == (
        50_000,
        None,
        ids[: -decisions.IDS_SHOWN - 1 : -1],
    )
    # nothing that is frozen can be retried
    counted = job_views.count_matching(world.state, c.CountMatching("retry", c.Selection()))
    assert isinstance(counted, c.Matched) and (counted.count, counted.before) == (0, None)
    # from a cursor in the middle of a segment, only what is older counts
    counted = job_views.count_matching(world.state, c.CountMatching("cancel", c.Selection(), 1_501))
    assert isinstance(counted, c.Matched) and counted.count == 1_500
    assert frozen(world) == 50_100


def test_all_that_match_are_cancelled_in_slices() -> None:
    world = World()
    ids = world.enqueue(500) + world.enqueue(500, queue="other")
    before, changed = None, 0
    while True:
        command = c.ChangeMatching("cancel", c.Selection(queue="default"), before, limit=180)
        matched = world.do(command)
        changed, before = changed + matched.count, matched.before
        if before is None:
            break
    assert changed == 500 and {world.is_in(each) for each in ids[:500]} == {State.CANCELLED}
    assert world.lease("w1", 999) == ids[500:]
    world.check()


# --- snapshots and memory ---------------------------------------------------------------------------


def test_a_snapshot_thaws_nothing_and_freezes_again() -> None:
    world = World()
    ids = world.enqueue(100) + world.after(1.0).enqueue(FREEZE_MIN - 1) + world.after(1.0).enqueue(3_000)
    world.do(c.Cancel([ids[50]]))
    before = queue_snapshot.fingerprint(world.state)
    assert frozen(world) == 3_000
    again = restored(world.state)
    assert frozen(world) == 3_000
    # the cancelled one parts its neighbours, and both halves are frozen again
    assert [segment.size for segment in again.jobs.segments][:2] == [50, 49]
    assert sum(segment.size for segment in again.jobs.segments) == 3_099
    queue_snapshot.check_invariants(again)
    assert queue_snapshot.fingerprint(again) == before
    leased = decisions.lease(again, "w1", "default", 9_999)
    assert leased is not None and leased.ids == [each for each in ids if each != ids[50]]


def test_parts_have_the_same_bytes_whatever_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.enqueue(5_000)
    lean = list(queue_snapshot.parts(world.state))
    monkeypatch.setattr(segments, "FREEZE_MIN", 10**9)
    plain = replayed(world.log)
    assert not plain.jobs.segments and list(queue_snapshot.parts(plain)) == lean
    assert len(lean) == 1 + 3 and max(map(len, lean)) < 2_000 * 60


@pytest.mark.parametrize("how", ["enqueued", "read back"])
def test_a_queued_job_costs_little_more_than_its_payload_and_id(how: str) -> None:
    world = World()
    number, payload = 50_000, b"x" * 213
    tracemalloc.start()
    try:
        for _ in range(number // 1_000):
            world.enqueue(1_000, payload=payload)
        world.log.clear()
        state = world.state
        if how == "read back":
            body = b"".join(queue_snapshot.parts(state))
            del world, state
            before = tracemalloc.get_traced_memory()[0]
            *_, state = queue_snapshot.restore(body)
            used = tracemalloc.get_traced_memory()[0] - before
        else:
            used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(state.jobs) == number
    assert used / number < 213 + 16 + 4 + 5, "bytes for a queued job"
