"""The queue's state as bytes and back: what a snapshot holds, and what it does not.

A snapshot is a sequence of length-prefixed msgpack parts: the `Header`, then the remembered keys, a slice
at a time, then the jobs in order of acceptance, `JOBS_PER_PART` at a time. Indexes (lanes, heaps, leases,
counts) are not stored: they follow from the jobs, and `restore` builds them as `apply` would have. `parts`
is a generator, so that whoever encodes a million jobs can do something else between two parts; the state
must not change meanwhile.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from itertools import chain, count, repeat
from operator import itemgetter

import msgspec

from .jobs import HASH_TASK, TERMINAL, BlobRef, Details, Job, JobOptions, State, encode
from .pack_references import PackReferences
from .queue_state import QueueState, forget_if_unused, lane_of
from .remembered_keys import KeptKey, RememberedKeys
from .segments import Segment, jobs_of, neighbours
from .unpulled_jobs import awaits_pull

JOBS_PER_PART = 2_000
FORMAT = 2
_KNOWN_FORMATS = (1, FORMAT)  # 1: its keys are in the header


class Header(msgspec.Struct, array_like=True):
    format: int
    log_time: float
    epoch: int
    next_seq: int
    feed_first: int
    feed_length: int
    options: list[JobOptions]
    paused: dict[str, bool]
    queues: list[str]
    keys: dict[str, KeptKey]
    retired: list[bytes]
    jobs: int
    automatic_keys: dict[str, KeptKey] = {}
    feed_revived: list[tuple[int, int]] = []  # version 0.1 has none: all its holes count as retired jobs
    jump: tuple[float, float, float] = (0.0, 0.0, 0.0)
    parts_of_keys: int = 0
    parts_of_automatic_keys: int = 0


class JobRow(msgspec.Struct, array_like=True, gc=False):
    id: bytes
    option: int
    payload: bytes | BlobRef
    seq: int
    created_at: float
    state: State = State.QUEUED
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    details: Details | None = None


_rows = msgspec.msgpack.Decoder(list[JobRow])
_keys = msgspec.msgpack.Decoder(dict[str, KeptKey])
_header = msgspec.msgpack.Decoder(Header)


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def parts(state: QueueState) -> Iterator[bytes]:
    """The snapshot of a state, in pieces to be joined. Each takes a few milliseconds."""
    options = list(state.options)
    index = {each: number for number, each in enumerate(options)}
    slices: tuple[list[dict[str, KeptKey]], ...] = [], []
    for table, some in zip((state.keys, state.automatic_keys), slices, strict=True):
        for each in table.slices():
            some.append(each)
            yield b""  # nothing to write yet, but time for others
    yield _framed(
        encode(
            Header(
                FORMAT,
                state.log_time,
                state.epoch,
                state.next_seq,
                state.feed.first,
                state.feed.next_place - state.feed.first,
                options,
                state.paused,
                list(state.counts),
                {},
                list(state.retired_order),
                len(state.jobs),
                {},
                list(state.feed.revived),
                (state.jumped_at, state.jump_seconds, state.ages_count_from),
                *map(len, slices),
            )
        )
    )
    for each in chain(*slices):
        yield _framed(encode(each))
    rows: list[JobRow] = []
    for entry in state.order:
        if isinstance(entry, Segment):
            rows += [_row(job, index) for job in entry.between(entry.seq, entry.stop)]
        else:
            rows.append(_row(entry, index))
        while len(rows) >= JOBS_PER_PART:
            yield _framed(encode(rows[:JOBS_PER_PART]))
            del rows[:JOBS_PER_PART]
    if rows:
        yield _framed(encode(rows))


def _row(job: Job, index: dict[JobOptions, int]) -> JobRow:
    return JobRow(
        job.id,
        index[job.options],
        job.payload,
        job.seq,
        job.created_at,
        job.state,
        job.attempt,
        job.failures,
        job.crashes,
        job.details,
    )


def restore(body: bytes) -> Iterator[QueueState]:
    """Rebuild the state. Yields it after each part, so that the caller can breathe; the last is whole."""
    view = memoryview(body)
    offset = 0
    state = QueueState()
    header: Header | None = None
    keys: Iterator[RememberedKeys] = iter(())  # of each part of them, the table that it belongs to
    while offset < len(view):
        length = int.from_bytes(view[offset : offset + 4], "big")
        part = view[offset + 4 : offset + 4 + length]
        if header is None:
            header = _header.decode(part)
            _restore_header(state, header)
            yield from (state for _ in state.keys.restore(header.keys))
            yield from (state for _ in state.automatic_keys.restore(header.automatic_keys))
            keys = chain(
                repeat(state.keys, header.parts_of_keys),
                repeat(state.automatic_keys, header.parts_of_automatic_keys),
            )
        elif (table := next(keys, None)) is not None:
            yield from (state for _ in table.restore(_keys.decode(part)))
        else:
            _restore_jobs(state, header.options, _rows.decode(part))
        offset += 4 + length
        yield state
    if header is not None:
        _restore_feed(state, header)
    for _ in _restore_orders(state):
        yield state
    yield state


def _restore_header(state: QueueState, header: Header) -> None:
    if header.format not in _KNOWN_FORMATS:
        raise ValueError(f"snapshot format {header.format} is not known")
    state.log_time = header.log_time
    state.jumped_at, state.jump_seconds, state.ages_count_from = header.jump
    state.epoch = header.epoch
    state.next_seq = header.next_seq
    state.paused.update((queue, True) for queue, paused in header.paused.items() if paused)
    for queue in header.queues:
        state.counts.know(queue)
    state.retired_order.extend(header.retired)
    state.retired = dict.fromkeys(header.retired)
    for each in header.options:
        state.options.intern(each)


def _restore_jobs(state: QueueState, options: list[JobOptions], rows: list[JobRow]) -> None:
    places = count()

    def key(row: JobRow) -> tuple[int, float, bool, int]:
        fresh = row.details is None and row.attempt == 0 and row.state is State.QUEUED
        return row.option, row.created_at, fresh, row.seq - next(places)

    for group in neighbours(rows, key):
        if not _restore_segment(state, options, group):
            _restore_each(state, options, group)


def _restore_segment(state: QueueState, options: list[JobOptions], rows: list[JobRow]) -> bool:
    """Keep rows as a segment if they suit: whoever recovers with a deep backlog is to be lean, too."""
    first = rows[0]
    if first.details is not None or first.attempt or first.state is not State.QUEUED:
        return False
    chosen = options[first.option]
    ids, payloads = [row.id for row in rows], [row.payload for row in rows]
    segment = state.jobs.freeze(ids, payloads, chosen, first.seq, first.created_at)
    if segment is None:
        return False
    state.order.append(segment)
    state.options.use(chosen, segment.size)
    state.counts.add(chosen.queue, State.QUEUED, segment.size)
    lane_of(state, chosen).add_new(segment)
    return True


def _restore_each(state: QueueState, options: list[JobOptions], rows: list[JobRow]) -> None:
    for row in rows:
        chosen = options[row.option]
        job = Job(
            row.id,
            chosen,
            row.payload,
            row.seq,
            row.created_at,
            row.state,
            row.attempt,
            row.failures,
            row.crashes,
            row.details,
        )
        state.jobs.add([job])
        state.order.extend([job])
        state.options.use(chosen, 1)
        state.counts.add(chosen.queue, job.state, 1)
        if job.details is not None or type(job.payload) is BlobRef:
            state.packs.add_all_of(job)
        _index(state, job)


def _index(state: QueueState, job: Job) -> None:
    """Put a job where a job of its state is found."""
    details = job.details
    if job.state is State.QUEUED:
        lane_of(state, job.options).add_new(job)  # rows come by seq: even what once came back is in order
        return
    assert details is not None
    if job.state is State.SCHEDULED:
        assert details.run_at is not None
        heapq.heappush(state.due, (details.run_at, job.seq, job))
    elif job.state is State.RUNNING:
        assert details.lease is not None
        state.leases.setdefault(details.lease.worker, {})[job.id] = job


def _restore_feed(state: QueueState, header: Header) -> None:
    places: list[tuple[int, Job]] = []
    for job in state.order:
        if isinstance(job, Segment) or job.state not in TERMINAL:
            continue
        assert job.details is not None and job.details.finish_seq is not None
        places.append((job.details.finish_seq, job))
    places.sort(key=itemgetter(0))
    state.feed.restore(places, header.feed_revived, header.feed_first + header.feed_length)


def _restore_orders(state: QueueState) -> Iterator[None]:
    """What is ordered by completion, not by acceptance; and what version 0.1 remembered for ever."""
    for queue in list(state.counts):
        forget_if_unused(state, queue)
    for number, job in enumerate(state.feed, 1):
        if number % JOBS_PER_PART == 0:
            yield
        assert job.details is not None and job.details.finished_at is not None
        assert job.details.finish_seq is not None
        if job.state is State.FAILED:
            state.failures.add(job)
        own = job.options.retention_seconds
        state.retention.restore(own, job.details.finish_seq, job.details.finished_at)
        if job.options.task == HASH_TASK and awaits_pull(job):
            state.unpulled.add(job)
        elif job.state is State.SUCCEEDED:
            state.recent.add([job])


def fingerprint(state: QueueState) -> bytes:
    """Two states that would decide alike have the same fingerprint: for tests and the checker."""
    digest = hashlib.sha256()
    for part in parts(state):
        digest.update(part)
    return digest.digest()


def check_invariants(state: QueueState) -> None:
    """Raise AssertionError if a collection disagrees with the jobs. O(jobs): for tests and simulation."""
    counts = {queue: dict.fromkeys(State, 0) for queue in state.counts}
    totals = dict.fromkeys(State, 0)
    packs = PackReferences()
    uses: dict[JobOptions, int] = {}
    all_jobs = [job for job in map(state.jobs.peek, state.jobs) if job is not None]
    assert len(all_jobs) == len(state.jobs), "an id in the table is not found"
    for job in all_jobs:
        counts[job.options.queue][job.state] += 1
        totals[job.state] += 1
        uses[job.options] = uses.get(job.options, 0) + 1
        packs.add_all_of(job)
        if state.jobs.holds(job):
            _check_job(state, job)
        elif job.state in TERMINAL:
            place = state.jobs.place_of(job.id)
            assert place and state.feed.job_at(place) == job, f"{job.id.hex()}: not as it is in the feed"
    for segment in state.jobs.segments:
        _check_segment(state, segment)
    assert counts == state.counts and totals == state.counts.totals, "counts disagree"
    assert len(state.feed) == sum(job.state in TERMINAL for job in all_jobs), "the feed holds others"
    _check_queues(state)
    assert packs == state.packs, "packs disagree"
    kept = Counter(job.options.retention_seconds for job in all_jobs if job.state in TERMINAL)
    assert state.retention.held() == kept, "the lines of retention disagree"
    failed = {job.id for job in all_jobs if job.state is State.FAILED}
    grouped = [job_id for group in state.failures.all() for job_id in group]
    assert len(grouped) == len(failed) and set(grouped) == failed, "failure groups disagree"
    assert uses == {each: use.jobs for each, use in state.options.items()}, "interned options disagree"
    in_order = list(jobs_of(state.order))
    seqs = [job.seq for job in in_order]
    assert seqs == sorted(set(seqs)), "order is not by seq"
    assert {job.id for job in in_order} == state.jobs.keys(), "order and jobs disagree"
    leased = {job_id for held in state.leases.values() for job_id in held}
    running = {job.id for job in all_jobs if job.state is State.RUNNING}
    assert leased == running, "leases and running jobs disagree"


def _check_queues(state: QueueState) -> None:
    for queue, counts in state.counts.items():
        assert queue in state.paused or any(counts.values()), f"{queue}: empty, and not forgotten"
    assert all(state.paused.values()) and state.paused.keys() <= state.counts.keys(), "paused disagree"
    for (queue, pool), lane in state.lanes.items():
        listed = any(each is lane for each in state.lanes.ready(pool))
        live = lane.oldest() is not None
        assert live <= lane.filled, f"{queue}: queued jobs, and the lane is not filled"
        assert listed == (lane.filled and queue not in state.paused), f"{queue}: not listed as it should be"
    firsts = [first.seq for lane in state.lanes.values() if (first := lane.oldest()) is not None]
    oldest = state.lanes.oldest()
    assert (None if oldest is None else oldest[0].seq) == min(firsts, default=None), "not the oldest"


def _check_segment(state: QueueState, segment: Segment) -> None:
    name = segment.first.hex()
    line = state.lanes[segment.options.queue, segment.options.pool].lines[segment.options.priority]
    assert segment.jobs is None, f"{name}: thawed, and in the table"
    aside = [each for heap in line.aside.values() for _, _, each in heap]
    assert any(each is segment for each in (*line.behind, *aside)), f"{name}: frozen, and in no lane"
    counted = any(each is segment for each in (*line.segments, *aside))
    assert counted, f"{name}: frozen, and its jobs are not counted"
    assert any(each is segment for each in state.order), f"{name}: frozen, and not in order"


def _check_job(state: QueueState, job: Job) -> None:
    details = job.details
    name = job.id.hex()
    assert job.failures <= max(job.options.max_attempts, 0), f"{name}: spent more than max_attempts"
    if job.state is State.QUEUED:
        lane = state.lanes[job.options.queue, job.options.pool]
        line = lane.lines[job.options.priority]
        waiting = [*line.fresh, *jobs_of(line.behind), *(each[2] for each in line.returned)]
        waiting += jobs_of(each for heap in line.aside.values() for _, _, each in heap)
        found = any(each is job for each in waiting)
        assert found, f"{name}: queued, and in no lane"
    elif job.state is State.SCHEDULED:
        assert details is not None and details.run_at is not None, f"{name}: scheduled without a time"
        assert any(entry[2] is job and entry[0] == details.run_at for entry in state.due), f"{name}: not due"
    elif job.state in TERMINAL:
        assert details is not None and details.finish_seq is not None, f"{name}: terminal without a place"
        assert state.feed.job_at(details.finish_seq) is job, f"{name}: not in the feed"
    if job.state is not State.RUNNING:
        assert details is None or details.lease is None, f"{name}: a lease without running"
