"""The queue against a model that is too simple to be wrong: lists, loops, and no indexes.

After every step the two agree about every job, about who is next, about the feed and about what was
refused; and the log, replayed from its beginning or onto a snapshot, gives the same state again. Two jobs
that come together are already frozen here, and a replay that freezes nothing gives the same state, too.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from jobsvc import (
    columns,
    completion_feed,
    decisions,
    job_views,
    queue_snapshot,
    queue_state,
    ready_lanes,
    recently_finished,
    segments,
)
from jobsvc import commands as c
from jobsvc.errors import Refusal
from jobsvc.jobs import HASH_TASK, BlobRef, Finished, Job, JobOptions, NewJob, Outcome, Result, State

from .queue_world import World, job_id, replayed, restored

MAX_JOBS = 12
RETENTION_SECONDS = 60.0
RETAINED_MAX = 5
KEY_SECONDS = 30.0
WORKERS = ("w1", "w2", "w3")
QUEUES = ("a", "b", "c", "d", "e")
Token = tuple[bytes, int]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough for a handful of jobs to be some segments, which get into each other's way."""
    monkeypatch.setattr(segments, "FREEZE_MIN", 2)
    monkeypatch.setattr(segments, "SEGMENT_JOBS_MAX", 3)
    for name, number in (
        ("LAG", 0),
        ("SOME", 2),
        ("AT_ONCE_MIN", 2),
        ("GROUP_MIN", 2),
        ("GROUP_MAX", 3),
        ("OPEN_MIN", 1),
        ("TOGETHER_MIN", 2),
    ):
        monkeypatch.setattr(recently_finished, name, number)
    monkeypatch.setattr(segments, "OVERLAP_MAX", 0)
    monkeypatch.setattr(columns, "PALETTE_MAX", 2)
    for name in ("SORTED_LANES_MAX", "VOID_MIN"):
        monkeypatch.setattr(ready_lanes, name, 1)


@dataclasses.dataclass
class ModelJob:
    """A job as one would explain it."""

    id: bytes
    options: JobOptions
    age: int  # place in the order of acceptance
    pack: str | None
    run_at: float | None
    state: str
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    worker: str | None = None
    cancel: bool = False
    place: int | None = None  # in the feed
    finished_at: float = 0.0
    pulled: bool = False


@dataclasses.dataclass
class Reader:
    """Who follows the feed by the rules, as one would explain it."""

    place: int = 0
    seen: set[int] = dataclasses.field(default_factory=set)
    told: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # that these are told no more

    def knows_of(self, place: int) -> bool:
        return place in self.seen or any(first <= place <= last for first, last in self.told)


class Model:
    """The whole queue in plain lists."""

    def __init__(self) -> None:
        self.jobs: list[ModelJob] = []
        self.accepted = 0
        self.gone: set[bytes] = set()
        self.paused: set[str] = set()
        self.finished = 0
        self.moved: set[int] = set()  # places whose job was put back
        self.keys: dict[str, tuple[bytes, list[bytes], float]] = {}

    def find(self, job: bytes) -> ModelJob | None:
        return next((each for each in self.jobs if each.id == job), None)

    def those(self, state: str) -> list[ModelJob]:
        return [job for job in self.jobs if job.state == state]

    def next(self, count: int) -> list[bytes]:
        ready = [job for job in self.those("queued") if job.options.queue not in self.paused]
        ready.sort(key=lambda job: (-job.options.priority, job.age))
        return [job.id for job in ready[:count]]

    def end(self, job: ModelJob, state: str, now: float) -> None:
        self.finished += 1
        job.state, job.place, job.finished_at = state, self.finished, now
        job.worker, job.cancel, job.run_at = None, False, None

    def attempt_ended(self, job: ModelJob, outcome: Outcome, now: float, final: bool = False) -> bool:
        """Returns True if the job waits for a backoff, whose length is not the model's to know."""
        cancel = job.cancel
        job.worker, job.cancel = None, False
        spent = outcome in (Outcome.RAISED, Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.LOST)
        crashed = outcome in (Outcome.CRASHED, Outcome.LOST)
        job.failures += spent
        job.crashes += crashed
        if outcome is Outcome.SUCCEEDED:
            self.end(job, "succeeded", now)
        elif cancel or outcome is Outcome.CANCELLED:
            self.end(job, "cancelled", now)
        elif outcome is Outcome.RELEASED:
            job.state = "queued"
        elif (
            final
            or job.failures >= job.options.max_attempts
            or (crashed and job.crashes >= job.options.max_crashes)
        ):
            self.end(job, "failed", now)
        elif outcome is Outcome.LOST:
            job.state = "queued"
        else:
            job.state = "scheduled"
            return True
        return False

    def to_retire(self, now: float) -> set[bytes]:
        ended = [job for job in self.jobs if job.place is not None]
        ended.sort(key=lambda job: job.place or 0)
        excess = {job.id for job in ended[: max(0, len(ended) - RETAINED_MAX)]}

        def lasts(job: ModelJob) -> float:
            own = job.options.retention_seconds
            return RETENTION_SECONDS if own is None else own

        return excess | {job.id for job in ended if job.finished_at + lasts(job) <= now}


class QueueMachine(RuleBasedStateMachine):
    """Commands, reports and time in any order, to the queue and to the model."""

    forgets_who_moved = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            max_jobs=MAX_JOBS,
            idempotency_seconds=KEY_SECONDS,
            retention_seconds=RETENTION_SECONDS,
            retained_jobs_max=RETAINED_MAX,
        )
        self.model = Model()
        self.reported: list[tuple[str, Finished]] = []
        self.number = 0
        self.snapshot: tuple[int, bytes] | None = None
        self.readers = [Reader(), Reader()]

    @property
    def now(self) -> float:
        return self.world.state.log_time

    # --- what callers ask ---

    @rule(
        count=st.integers(1, 4),
        queue=st.sampled_from(QUEUES),
        priority=st.integers(0, 2),
        delay=st.sampled_from([None, None, 0.0, 3.0]),
        max_attempts=st.integers(1, 3),
        max_crashes=st.integers(1, 2),
        retention=st.sampled_from([None, 5.0, 200.0]),
        task=st.sampled_from([HASH_TASK, "demo.task"]),
        packed=st.booleans(),
        key=st.sampled_from([None, None, "k1", "k2"]),
        request=st.sampled_from([b"one", b"two"]),
    )
    def enqueue(
        self,
        count: int,
        queue: str,
        priority: int,
        delay: float | None,
        max_attempts: int,
        max_crashes: int,
        retention: float | None,
        task: str,
        packed: bool,
        key: str | None,
        request: bytes,
    ) -> None:
        options = JobOptions(
            task,
            queue,
            priority=priority,
            max_attempts=max_attempts,
            max_crashes=max_crashes,
            retention_seconds=retention,
        )
        self.number += 1
        pack = f"payloads/{self.number // 2}" if packed else None
        payload = BlobRef(pack, 0, 9) if pack else b"x"
        run_at = None if delay is None else self.now + delay
        self.send(
            [job_id(1_000 + self.number * 10 + n) for n in range(count)],
            options,
            payload,
            run_at,
            key,
            request,
        )

    @rule(count=st.integers(2, 4), first=st.integers(0, 80), step=st.sampled_from([1, 25]))
    def enqueue_under_chosen_ids(self, count: int, first: int, step: int) -> None:
        """Such as callers choose: far apart, among others, used before."""
        ids = [job_id(first + step * n) for n in range(count)]
        self.send(ids, JobOptions("demo.task", "a", max_attempts=2), b"y", None, None, b"")

    def send(
        self,
        ids: list[bytes],
        options: JobOptions,
        payload: bytes | BlobRef,
        run_at: float | None,
        key: str | None,
        request: bytes,
    ) -> None:
        command = c.Enqueue([options], [NewJob(each, 0, payload, run_at) for each in ids], key, request)
        known = self.model.keys.get(key) if key else None
        answer = self.world.do(command)
        if known is not None and known[2] > self.now:
            if known[0] != request:
                assert isinstance(answer, Refusal) and answer.code == "key_reused"
            else:
                assert answer == c.Accepted(known[1], created=False)
            return
        repeated = sum(self.model.find(each) is not None or each in self.model.gone for each in ids)
        if repeated == len(ids):
            assert answer == c.Accepted(ids, created=True)
            if key is not None:
                self.model.keys[key] = (request, ids, self.now + KEY_SECONDS)
            return
        if repeated:
            assert isinstance(answer, Refusal) and answer.code == "invalid"
            return
        if len(self.model.jobs) + len(ids) > MAX_JOBS:
            assert isinstance(answer, Refusal) and answer.code == "too_many_jobs"
            return
        assert answer == c.Accepted(ids, created=True)
        for each in ids:
            self.model.accepted += 1
            state = "scheduled" if run_at is not None and run_at > self.now else "queued"
            pack = payload.key if isinstance(payload, BlobRef) else None
            job = ModelJob(each, options, self.model.accepted, pack, run_at, state)
            self.model.jobs.append(job)
        if key is not None:
            self.model.keys[key] = (request, ids, self.now + KEY_SECONDS)
        assert self.world.do(command) == answer, "sent again, it was answered otherwise"

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self.any_job(data)
        if job is None:
            return
        [item] = self.world.do(c.Cancel([job.id])).items
        if job.state in ("queued", "scheduled"):
            self.model.end(job, "cancelled", self.now)
        elif job.state == "running":
            job.cancel = True
        assert isinstance(item, Refusal) == (job.state in ("succeeded", "failed"))

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = self.any_job(data)
        if job is None:
            return
        [item] = self.world.do(c.Retry([job.id])).items
        assert isinstance(item, Refusal) == (job.state not in ("failed", "cancelled"))
        if not isinstance(item, Refusal):
            assert job.place is not None
            self.model.moved.add(job.place)
            place, job.place = job.place, None
            job.state, job.failures, job.crashes = "queued", 0, 0
            self.whoever_reads_on_from(place - 1)

    @rule(queue=st.sampled_from(QUEUES), paused=st.booleans())
    def pause(self, queue: str, paused: bool) -> None:
        self.world.do(c.PatchQueue(queue, paused))
        (self.model.paused.add if paused else self.model.paused.discard)(queue)

    @rule(count=st.integers(1, 3))
    def pull(self, count: int) -> None:
        waiting = [
            job for job in self.model.those("succeeded") if job.options.task == HASH_TASK and not job.pulled
        ]
        waiting.sort(key=lambda job: -(job.place or 0))
        pulled = self.world.do(c.Pull(HASH_TASK, count))
        assert [each.id for each in pulled.jobs] == [job.id for job in waiting[:count]]
        for job in waiting[:count]:
            job.pulled = True

    @rule(who=st.integers(0, 1), limit=st.sampled_from([0, 1, 2, 99]), store=st.sampled_from(["", "s"]))
    def read_on(self, who: int, limit: int, store: str) -> None:
        """A reader takes what a page says, and goes on after it."""
        reader = self.readers[who]
        page = job_views.read_feed(self.world.state, c.ReadFeed(reader.place, limit, store), "s")
        assert page.reset is None and reader.place <= page.next <= self.model.finished
        kept = {job.place: job.id for job in self.model.jobs if job.place is not None}
        assert all(kept[entry.seq] == entry.id for entry in page.entries)
        for first, last in page.holes:
            assert reader.place < first <= last <= page.next and not kept.keys() & range(first, last + 1)
            lost = set(range(first, last + 1)) - self.model.moved
            assert lost or self.forgets_who_moved, "told of a loss that is none"
        reader.told += page.holes
        reader.seen |= {entry.seq for entry in page.entries}
        reader.place = page.next

    def whoever_reads_on_from(self, place: int) -> None:
        """Sees every completion, or is told, or the job was put back."""
        page = job_views.read_feed(self.world.state, c.ReadFeed(place, 99))
        told = {each for first, last in page.holes for each in range(first, last + 1)}
        passed = set(range(place + 1, page.next + 1))
        assert page.next == self.model.finished
        assert passed <= told | self.model.moved | {entry.seq for entry in page.entries}

    @rule(beyond=st.integers(1, 60), limit=st.sampled_from([0, 2, 99]))
    def read_from_nowhere(self, beyond: int, limit: int) -> None:
        """A place that this feed never gave, or that is of another one: all that is kept, and word of it."""
        wrong = c.ReadFeed(self.model.finished + beyond, limit, "s"), c.ReadFeed(beyond, limit, "other")
        for query, reset in zip(wrong, (c.FEED_AHEAD, c.FEED_OTHER_STORE), strict=True):
            page = job_views.read_feed(self.world.state, query, "s")
            begin = job_views.read_feed(self.world.state, c.ReadFeed(0, limit), "s")
            assert page.reset == reset and (page.entries, page.next) == (begin.entries, begin.next)

    # --- what workers do ---

    @rule(worker=st.sampled_from(WORKERS), count=st.integers(1, 3))
    def lease(self, worker: str, count: int) -> None:
        expected = self.model.next(count)
        assert self.world.lease(worker, count) == expected, "another order of leasing"
        for each in expected:
            job = self.model.find(each)
            assert job is not None
            job.state, job.worker = "running", worker
            job.attempt += 1

    @rule(data=st.data(), outcome=st.sampled_from(Outcome), final=st.booleans())
    def report(self, data: st.DataObject, outcome: Outcome, final: bool) -> None:
        running = self.model.those("running")
        if not running:
            return
        job = data.draw(st.sampled_from(running), "job")
        assert job.worker is not None
        worker = job.worker
        result = Result("json", b"1") if outcome is Outcome.SUCCEEDED else None
        finished = Finished(job.id, job.attempt, outcome, self.now - 1.0, self.now, result, final=final)
        self.reported.append((worker, finished))
        assert self.world.settle([finished], worker) == [], "a good report was refused"
        self.note_end(job, outcome, final)

    @rule(data=st.data(), other=st.sampled_from(WORKERS), twice=st.booleans())
    def report_again(self, data: st.DataObject, other: str, twice: bool) -> None:
        """A notice that comes late, double, or from somebody else, is refused."""
        if not self.reported:
            return
        worker, finished = data.draw(st.sampled_from(self.reported), "report")
        length = len(self.world.log)
        stale = self.world.settle([finished] * (1 + twice), data.draw(st.sampled_from([worker, other])))
        assert stale == [(finished.job_id, finished.attempt)] * (1 + twice)
        assert len(self.world.log) == length

    @rule(data=st.data())
    def report_of_another_attempt(self, data: st.DataObject) -> None:
        """The worker holds the job, but not under this number."""
        running = self.model.those("running")
        if not running:
            return
        job = data.draw(st.sampled_from(running), "job")
        attempt = data.draw(st.sampled_from([job.attempt - 1, job.attempt + 1]))
        finished = Finished(job.id, attempt, Outcome.SUCCEEDED, self.now, self.now, Result("json", b"0"))
        assert job.worker is not None
        assert self.world.settle([finished], job.worker) == [(job.id, attempt)]

    @rule(worker=st.sampled_from(WORKERS), data=st.data())
    def lose(self, worker: str, data: st.DataObject) -> None:
        held = sorted((job for job in self.model.jobs if job.worker == worker), key=lambda job: job.age)
        running = data.draw(st.sampled_from([None, *held]), "running") if held else None
        self.world.lose(worker, running.id if running else None)
        for job in held:
            self.reported.append(
                (worker, Finished(job.id, job.attempt, Outcome.SUCCEEDED, self.now, self.now))
            )
            self.note_end(job, Outcome.LOST if job is running else Outcome.RELEASED)

    def note_end(self, job: ModelJob, outcome: Outcome, final: bool = False) -> None:
        if self.model.attempt_ended(job, outcome, self.now, final):
            details = self.world.job(job.id).details
            assert details is not None and details.run_at is not None
            assert self.now <= details.run_at < self.now + 2.0 ** (job.failures - 1)
            job.run_at = details.run_at

    # --- what time brings ---

    @rule(seconds=st.sampled_from([0.5, 2.0, 10.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.after(seconds)
        due = [
            job for job in self.model.those("scheduled") if job.run_at is not None and job.run_at <= self.now
        ]
        assert set(self.world.promote()) == {job.id for job in due}
        for job in due:
            job.state, job.run_at = "queued", None

    @rule()
    def retire(self) -> None:
        expected = self.model.to_retire(self.now)
        packs = {job.pack for job in self.model.jobs if job.pack}
        free = self.world.retire()
        self.model.jobs = [job for job in self.model.jobs if job.id not in expected]
        self.model.gone |= expected
        assert set(free) == packs - {job.pack for job in self.model.jobs}, "payload objects"
        assert len(free) == len(set(free))
        for place in range(self.model.finished + 1):
            self.whoever_reads_on_from(place)

    @rule()
    def grow_old(self) -> None:
        """All that has ended passes its retention: by chance alone, that comes about too rarely."""
        self.time_passes(250.0)
        self.retire()

    # --- what machines do ---

    @rule()
    def crash(self) -> None:
        """All memory is gone; the log is not."""
        self.go_on_with(replayed(self.world.log))

    @rule()
    def take_snapshot(self) -> None:
        self.snapshot = len(self.world.log), b"".join(queue_snapshot.parts(self.world.state))

    @rule()
    def recover(self) -> None:
        """All memory is gone; a snapshot and the log after it are not."""
        if self.snapshot is not None:
            self.go_on_with(self.from_snapshot())

    def from_snapshot(self) -> queue_state.QueueState:
        assert self.snapshot is not None
        length, body = self.snapshot
        *_, state = queue_snapshot.restore(body)
        return replayed(self.world.log[length:], state)

    def go_on_with(self, state: queue_state.QueueState) -> None:
        state.log_time = self.world.state.log_time
        self.world.state = state

    # --- what always holds ---

    @invariant()
    def jobs_agree(self) -> None:
        assert set(self.world.state.jobs) == {job.id for job in self.model.jobs}
        for job in self.model.jobs:
            assert seen(self.world.job(job.id)) == expected_of(job)
        assert set(self.world.state.retired) == self.model.gone

    @invariant()
    def feed_agrees(self) -> None:
        state = self.world.state
        feed = [(job.details.finish_seq, job.id) for job in state.feed if job.details is not None]
        assert feed == sorted((job.place, job.id) for job in self.model.jobs if job.place is not None)
        assert [job.id for job in state.feed.since(state.feed.first)] == [each for _, each in feed]
        assert state.feed.newest == self.model.finished

    @invariant()
    def readers_have_seen_all_or_been_told(self) -> None:
        for reader in self.readers:
            for place in range(1, reader.place + 1):
                assert reader.knows_of(place) or place in self.model.moved, (
                    f"place {place}, and no word of it"
                )

    @invariant()
    def every_copy_agrees(self) -> None:
        state = self.world.state
        mine = queue_snapshot.fingerprint(state)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segments, "FREEZE_MIN", 99)
            for name in ("LAG", "AT_ONCE_MIN", "OPEN_MIN"):
                patch.setattr(recently_finished, name, 9_999)
            copies = [replayed(self.world.log)]
        copies += [replayed(self.world.log), restored(state)]
        if self.snapshot is not None:
            copies.append(self.from_snapshot())
        expected = self.model.next(99)
        for copy in [state, *copies]:
            copy.log_time = state.log_time
            queue_snapshot.check_invariants(copy)
            assert queue_snapshot.fingerprint(copy) == mine, "a copy has another state"
        assert what_is_told(copies[0]) == what_is_told(state), "freezing shows"
        for copy in copies:  # the state itself is not thawed for this: see `look_ahead`
            leased = decisions.lease(copy, "w1", "default", 99)
            assert (leased.ids if leased else []) == expected, "a copy would lease otherwise"

    @rule()
    def look_ahead(self) -> None:
        """Whoever asks for all that wait sees them, in order, however they were kept."""
        leased = decisions.lease(self.world.state, "w1", "default", 99)
        assert (leased.ids if leased else []) == self.model.next(99)

    def any_job(self, data: st.DataObject) -> ModelJob | None:
        return data.draw(st.sampled_from(self.model.jobs), "job") if self.model.jobs else None


def what_is_told(state: queue_state.QueueState) -> list[Any]:
    """All but cursors: they depend on the retired jobs that linger in a queue's order."""
    some = [c.Selection(), c.Selection(state=State.QUEUED, queue="a"), c.Selection(state=State.CANCELLED)]
    told: list[Any] = [job_views.get_queues(state, {}, {})]
    for each in some:
        told.append(job_views.list_jobs(state, c.ListJobs(each.state, each.queue, limit=2)).jobs)
        older = c.ListJobs(each.state, each.queue, before=state.next_seq * 2 // 3, limit=99)
        told.append(job_views.list_jobs(state, older).jobs)
        counted = job_views.count_matching(state, c.CountMatching("cancel", each))
        assert isinstance(counted, c.Matched)
        told.append((counted.count, counted.ids))
    return told


def seen(job: Job) -> tuple[Any, ...]:
    details = job.details
    lease = details.lease if details is not None else None
    return (
        job.state.value,
        job.attempt,
        job.failures,
        job.crashes,
        lease.worker if lease else None,
        bool(lease and lease.cancel_requested),
        details.finish_seq if details is not None else None,
        bool(details and details.pulled),
    )


def expected_of(job: ModelJob) -> tuple[Any, ...]:
    spent = job.attempt, job.failures, job.crashes
    return job.state, *spent, job.worker, job.cancel, job.place, job.pulled


def run_machine(
    examples: int, *, first_seed: int | None = None, seed_phases: tuple[Phase, ...] = tuple(Phase)
) -> None:
    """The same examples each time; with a seed, those of the seed."""

    def machine() -> QueueMachine:
        return QueueMachine()

    run_state_machine_as_test(
        machine if first_seed is None else seed(first_seed)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=first_seed is None,
            phases=seed_phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.lives(150, 150)
def test_the_queue_is_the_model(seeds: range) -> None:
    run_machine(len(seeds), first_seed=seeds.start)


def test_readers_are_told_also_where_the_queue_forgets_who_was_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(completion_feed, "REVIVED_RANGES_MAX", 1)
    monkeypatch.setattr(QueueMachine, "forgets_who_moved", True)
    run_machine(50)


def test_its_jobs_are_often_frozen() -> None:
    found = []
    whole = segments.JobTable.freeze

    def counted(self: segments.JobTable, ids: list[bytes], *rest: Any) -> segments.Segment | None:
        found.append(whole(self, ids, *rest))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments.JobTable, "freeze", counted)
        run_machine(20)
    frozen = sum(each is not None for each in found)
    assert frozen > 100 and len(found) - frozen > 100, "the model hardly freezes"


# --- ablations: with a piece taken out, the machine must find it -----------------------------------


def must_be_found(examples: int = 600) -> None:
    """Which examples are tried depends on each constant of the package: Hypothesis reads them."""
    with pytest.raises(Exception):  # noqa: B017 - whatever way it shows
        run_machine(examples, seed_phases=(Phase.generate,))


def test_it_finds_a_settlement_that_does_not_look_at_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decisions.settle

    def careless(state: Any, worker: str, node: str, finished: list[Finished]) -> decisions.Settlement:
        held = state.leases.get(worker, {})
        for each in finished:
            if each.job_id in held:
                each.attempt = held[each.job_id].attempt
        return whole(state, worker, node, finished)

    monkeypatch.setattr(decisions, "settle", careless)
    must_be_found()


def test_it_finds_leases_that_stay_when_the_attempt_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = queue_state._APPLIERS[queue_state.AttemptsEnded]

    def forgetful(state: queue_state.QueueState, event: queue_state.AttemptsEnded) -> None:
        held = dict(state.leases.get(event.worker, {}))
        whole(state, event)
        state.leases[event.worker] = held

    monkeypatch.setitem(queue_state._APPLIERS, queue_state.AttemptsEnded, forgetful)
    must_be_found()


def test_it_finds_an_order_that_ignores_what_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_the_end(self: ready_lanes.Lane, job: Job) -> None:
        self._line(job.options.priority).fresh.append(job)

    monkeypatch.setattr(ready_lanes.Lane, "add_returned", to_the_end)
    must_be_found()


def test_it_finds_lanes_whose_place_is_not_set_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that comes back, or is more urgent than all, is before the place that its lane has."""
    whole = ready_lanes.Lanes.fill

    def deaf(self: ready_lanes.Lanes, lane: ready_lanes.Lane, place: ready_lanes.Place) -> None:
        whole(self, lane, max(place, lane.place) if lane.place_number else place)

    monkeypatch.setattr(ready_lanes.Lanes, "fill", deaf)
    must_be_found()


def test_it_finds_a_paused_queue_that_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_lanes.Lanes, "pause", lambda self, queue: None)
    must_be_found()


def test_it_finds_lanes_that_are_borrowed_and_not_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(self: ready_lanes.LeaseOrder, count: int) -> list[Job]:
        whole, self._heap = self._heap, list(self._heap)
        try:
            return merged(self, count)
        finally:
            self._heap = self._heap[:1] if len(whole) > 2 else whole

    merged = ready_lanes.LeaseOrder._merged
    monkeypatch.setattr(ready_lanes.LeaseOrder, "_merged", greedy)
    must_be_found()


def test_it_finds_a_snapshot_that_forgets_who_was_revived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_feed.CompletionFeed, "restore", feed_without_the_revived)
    must_be_found()


def feed_without_the_revived(self: Any, jobs: Any, revived: Any, next_place: int) -> None:
    for place, job in jobs:
        self._put(place, job)
    self.next_place = next_place


def test_it_finds_a_feed_that_says_nothing_of_retired_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = completion_feed.CompletionFeed.retire_many

    def silent(self: completion_feed.CompletionFeed, places: list[int]) -> None:
        whole(self, places)
        for place in places:
            self.revived.add(place)

    monkeypatch.setattr(completion_feed.CompletionFeed, "retire_many", silent)
    must_be_found()


def test_it_finds_a_page_that_steps_over_what_it_has_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = completion_feed.CompletionFeed.after

    def hasty(self: completion_feed.CompletionFeed, place: int, count_max: int, looks_max: int) -> Any:
        return whole(self, place, count_max, looks_max)[0], self.newest

    monkeypatch.setattr(completion_feed.CompletionFeed, "after", hasty)
    must_be_found()


def test_it_finds_segments_that_overlap_as_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments.JobTable, "_leaves_ids_findable", lambda *_: True)
    must_be_found()


def test_it_finds_a_lookup_that_misses_what_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        segments.JobTable, "count_of", lambda self, ids: sum(map(self._jobs.__contains__, ids))
    )
    must_be_found()


def test_it_finds_a_cancel_that_is_forgotten_when_the_attempt_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decisions._after

    def deaf(state: Any, job: Job, outcome: Outcome) -> Any:
        lease = state.lease_of(job)
        asked, lease.cancel_requested = lease.cancel_requested, False
        try:
            return whole(state, job, outcome)
        finally:
            lease.cancel_requested = asked

    monkeypatch.setattr(decisions, "_after", deaf)
    must_be_found()
