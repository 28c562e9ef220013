"""Frozen segments: a deep backlog without an object for each of its jobs.

A queued job that nobody has touched is its id, its payload and its place in a batch. As objects that is
some 500 bytes; of jobs that came together, a `Segment` keeps the same in three: all ids, all payloads, and
where each payload ends. `JobTable` owns the jobs of a queue, those that are objects and those in segments.

Representation is not state
---------------------------
A segment is frozen, all of its jobs QUEUED as they were enqueued, or thawed, a list of ordinary `Job`s. It is
thawed, as a whole and once, when one of its jobs is to change or its turn has come, so every rule of the
queue knows ordinary jobs alone. Who only reads gets copies (`peek`, `between`). Nothing that a queue decides,
writes or tells depends on what is frozen; leader, standby and replay may differ in it, and so a decision
may thaw although it changes nothing.

Thawing leaves a segment where it is, in the queue's order and in its lane: both hold jobs and segments,
which are alike in `seq` and `created_at`, and look into the segment when they come to it. So it costs the
same wherever the segment lies, and no list is spliced.

Finding an id
-------------
Ids of one batch are made within milliseconds and grow with time (UUIDv7), so a segment has them in ascending
order, within a narrow interval; what comes otherwise is not frozen. The table keeps frozen segments sorted
by first id, and lets one in only if every segment still ends before the one `OVERLAP_MAX + 1` places
further begins. (Two replicas that make ids at the same time overlap; many do not.) Whichever segment holds
an id is then among the last `OVERLAP_MAX + 1` that begin at or before it: were it further to the left,
one that begins after its end would begin at or before the id. To take a segment out moves others closer
together, never apart, so the rule stays true. Membership is exact whatever ids callers choose: the rule
decides what is frozen, never what is found.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate, chain, groupby, repeat
from operator import lt
from typing import Any, TypeVar, cast

import msgspec

from .finished_groups import FinishedGroup
from .jobs import BlobRef, Job, JobOptions, NewJob

FREEZE_MIN = 32  # fewer neighbours are jobs as ever
SEGMENT_JOBS_MAX = 1_024  # thawed in about half a millisecond
SEGMENT_BYTES_MAX = 4 * 1024 * 1024  # of payloads; above it an object for each job is no matter
OVERLAP_MAX = 8
SPAN_MS_MAX = 5_000  # of a segment's ids: a wider one would keep all others out that fall into it
ID_BYTES = 16
_TIME_BYTES = 6  # an id begins with its milliseconds
_SHARDS = 16  # of the table
# of each value of an id's last byte: the first has 8 values, the next 9, and so on
_SHARD_NUMBERS = [min(each, _SHARDS - 1) for each in range(_SHARDS + 1) for _ in range(8 + each % _SHARDS)]
_FINDS_PER_SET = 32  # a set of a segment's ids costs as much as so many of them looked up

New = TypeVar("New")


class Segment(msgspec.Struct, gc=False, eq=False):
    """Jobs that came together: neighbours in `seq`, of one time, with the same options."""

    seq: int  # of the first
    created_at: float
    options: JobOptions
    size: int
    first: bytes  # the smallest id, and the greatest
    last: bytes
    ids: bytes
    payloads: bytes
    ends: array[int]
    jobs: list[Job] | None = None  # once thawed

    @property
    def stop(self) -> int:
        return self.seq + self.size

    def between(self, seq: int, stop: int) -> list[Job]:
        """Its jobs with seq <= job.seq < stop; copies as long as it is frozen."""
        begin, end = max(seq - self.seq, 0), min(stop - self.seq, self.size)
        return self._built(begin, end) if self.jobs is None else self.jobs[begin:end]

    def each_id(self) -> list[bytes]:
        """The ids of a frozen segment, in order."""
        return [self.ids[at : at + ID_BYTES] for at in range(0, len(self.ids), ID_BYTES)]

    def place_of(self, job_id: bytes) -> int | None:
        """Where this id is in a frozen segment."""
        ids = self.ids
        place = bisect_left(range(self.size), job_id, key=lambda n: ids[n * ID_BYTES : (n + 1) * ID_BYTES])
        return place if ids[place * ID_BYTES : (place + 1) * ID_BYTES] == job_id else None

    def _built(self, begin: int, end: int) -> list[Job]:
        ids, payloads = self.ids, self.payloads
        ends = self.ends[begin:end].tolist()
        starts = [self.ends[begin - 1] if begin else 0, *ends]
        return list(
            map(
                Job,
                [ids[at : at + ID_BYTES] for at in range(begin * ID_BYTES, end * ID_BYTES, ID_BYTES)],
                repeat(self.options),
                [payloads[start:stop] for start, stop in zip(starts, ends, strict=False)],
                range(self.seq + begin, self.seq + end),
                repeat(self.created_at),
            )
        )

    def thaw(self) -> list[Job]:
        self.jobs = self._built(0, self.size)
        self.ids = self.payloads = b""
        self.ends = array("I")
        return self.jobs


def seq_of(entry: Job | Segment) -> int:
    return entry.seq


def neighbours(new: list[New], key: Callable[[New], Any]) -> Iterator[list[New]]:
    """All of them in order, in lists that may become segments: of one key, and short enough."""
    if len(new) < FREEZE_MIN:
        if new:
            yield new
        return
    for _, group in groupby(new, key):
        alike = list(group)
        for begin in range(0, len(alike), SEGMENT_JOBS_MAX):
            yield alike[begin : begin + SEGMENT_JOBS_MAX]


def jobs_of(order: Iterable[Job | Segment]) -> Iterator[Job]:
    """Every job of an order; copies of those that are frozen."""
    for entry in order:
        if isinstance(entry, Segment):
            yield from entry.between(entry.seq, entry.stop)
        else:
            yield entry


class JobTable(Mapping[bytes, Job]):
    """All jobs by id. Subscripts and `get` give the job itself, and thaw it; `peek` may give a copy.

    A dict that grows past a bound is built anew, which with a million entries stops everything for 40 to 130
    ms. So there are several, of different shares of all ids: each is built anew at another time.
    """

    def __init__(self) -> None:
        self._shards: list[dict[bytes, Job | FinishedGroup]] = [{} for _ in range(_SHARDS)]
        self._shard_of = [self._shards[number] for number in _SHARD_NUMBERS]  # by the last byte of an id
        self.segments: list[Segment] = []  # frozen, by first id
        self._firsts: list[bytes] = []
        self._greatest = b""  # no id in a segment is greater
        self._frozen = 0

    def _shard(self, job_id: bytes) -> dict[bytes, Job | FinishedGroup]:
        return self._shard_of[job_id[-1]] if job_id else self._shards[0]  # callers may ask for anything

    def __len__(self) -> int:
        return sum(map(len, self._shards)) + self._frozen

    def __iter__(self) -> Iterator[bytes]:
        frozen = [each for segment in self.segments for each in segment.each_id()]
        return iter([*chain(*self._shards), *frozen])  # a list: looking one up may thaw

    def __contains__(self, job_id: object) -> bool:
        if not isinstance(job_id, bytes):
            return False
        return job_id in self._shard(job_id) or self._find(job_id) is not None

    def __getitem__(self, job_id: bytes) -> Job:
        job = self._shard(job_id).get(job_id)
        if job is not None:
            return job.job_of(job_id) if type(job) is FinishedGroup else cast("Job", job)
        found = self._find(job_id)
        if found is None:
            raise KeyError(job_id)
        segment, place = found
        return self.thawed(segment)[place]

    def peek(self, job_id: bytes) -> Job | None:
        """The job, for whoever only reads: nothing is thawed for it."""
        job = self._shard(job_id).get(job_id)
        if job is not None:
            return job.job_of(job_id) if type(job) is FinishedGroup else cast("Job", job)
        found = self._find(job_id)
        if found is None:
            return None
        segment, place = found
        return segment.between(segment.seq + place, segment.seq + place + 1)[0]

    def of(self, ids: list[bytes]) -> list[Job]:
        """The jobs themselves, which have not ended; KeyError if one is missing."""
        try:
            shard_of = self._shard_of
            return cast("list[Job]", [shard_of[job_id[-1]][job_id] for job_id in ids])
        except KeyError:
            return [self[job_id] for job_id in ids]

    def count_of(self, ids: list[bytes]) -> int:
        """How many of these are here."""
        shard_of = self._shard_of
        known = sum([job_id in shard_of[job_id[-1]] for job_id in ids])
        low = min(ids)
        if not self.segments or low > self._greatest:
            return known  # the rule for new ids; those of several replicas overlap
        begin = max(0, bisect_right(self._firsts, low) - OVERLAP_MAX - 1)
        near = self.segments[begin : bisect_right(self._firsts, max(ids))]
        near = [segment for segment in near if segment.last >= low]
        if len(near) * _FINDS_PER_SET > len(ids):
            return known + sum(self._find(job_id) is not None for job_id in ids)
        return known + sum(sum(map(set(segment.each_id()).__contains__, ids)) for segment in near)

    def holds(self, job: Job) -> bool:
        """Whether this very object is in the table: one that was retired is not, and no copy."""
        return self._shard_of[job.id[-1]].get(job.id) is job

    def place_of(self, job_id: bytes) -> int | None:
        """The place in the feed of a job that has ended."""
        job = self._shard(job_id).get(job_id)
        if type(job) is FinishedGroup:
            return job.place(job.index_of(job_id))
        return job.details.finish_seq if isinstance(job, Job) and job.details is not None else None

    # --- changing ---

    def add(self, jobs: list[Job]) -> None:
        """New ones, each an object."""
        shard_of = self._shard_of
        for job in jobs:
            shard_of[job.id[-1]][job.id] = job

    def pop(self, ids: list[bytes]) -> Iterator[tuple[Job | FinishedGroup, list[bytes]]]:
        """Take out jobs that have ended, which are in no frozen segment: each, or its group with some."""
        begin, shard_of = 0, self._shard_of
        for _, same in groupby([shard_of[job_id[-1]].pop(job_id) for job_id in ids], id):
            entries = [*same]
            yield entries[0], ids[begin : begin + len(entries)]
            begin += len(entries)

    def keep_one_in_group(self, job_id: bytes, group: FinishedGroup) -> None:
        self._shard_of[job_id[-1]][job_id] = group

    def keep_in_group(self, ids: list[bytes], group: FinishedGroup) -> None:
        """These jobs are kept in a group from now on."""
        shard_of = self._shard_of
        for job_id in ids:
            shard_of[job_id[-1]][job_id] = group

    def freeze_new(
        self, new: list[NewJob], options: JobOptions, seq: int, created_at: float
    ) -> Segment | None:
        """Take jobs that are enqueued with these options, if all of them wait for nothing but a worker."""
        if len(new) < FREEZE_MIN or any(job.run_at is not None and job.run_at > created_at for job in new):
            return None
        return self.freeze([job.id for job in new], [job.payload for job in new], options, seq, created_at)

    def freeze(
        self,
        ids: list[bytes],
        payloads: list[bytes | BlobRef],
        options: JobOptions,
        seq: int,
        created_at: float,
    ) -> Segment | None:
        """Take new jobs that wait for a worker as one segment, or take nothing if they do not suit."""
        if len(ids) < FREEZE_MIN or set(map(type, payloads)) != {bytes} or set(map(len, ids)) != {ID_BYTES}:
            return None
        bodies = cast("list[bytes]", payloads)
        ends = list(accumulate(map(len, bodies)))
        first, last = ids[0], ids[-1]
        if ends[-1] > SEGMENT_BYTES_MAX or not all(map(lt, ids, ids[1:])) or _span(first, last) > SPAN_MS_MAX:
            return None
        place = bisect_left(self._firsts, first)
        if not self._leaves_ids_findable(place, first, last):
            return None
        segment = Segment(
            *(seq, created_at, options, len(ids), first, last),
            ids=b"".join(ids),
            payloads=b"".join(bodies),
            ends=array("I", ends),
        )
        self.segments.insert(place, segment)
        self._firsts.insert(place, first)
        self._greatest = max(self._greatest, last)
        self._frozen += segment.size
        return segment

    def _leaves_ids_findable(self, place: int, first: bytes, last: bytes) -> bool:
        """Whether each segment still ends before the one `OVERLAP_MAX + 1` places further begins."""
        reach = OVERLAP_MAX + 1
        before = self.segments[max(0, place - reach) : place]
        after = self.segments[place : place + reach]
        lasts = [*(each.last for each in before), last]
        firsts = [*(each.first for each in before), first, *(each.first for each in after)]
        return all(map(lt, lasts, firsts[reach:]))

    def thawed(self, segment: Segment) -> list[Job]:
        """The segment's jobs as objects, from now on found by id."""
        if segment.jobs is not None:
            return segment.jobs
        place = bisect_left(self._firsts, segment.first)
        del self.segments[place], self._firsts[place]
        self._frozen -= segment.size
        if not self.segments:
            self._greatest = b""
        jobs = segment.thaw()
        self.add(jobs)
        return jobs

    def _find(self, job_id: bytes) -> tuple[Segment, int] | None:
        """The frozen segment that holds this id, and where."""
        if job_id > self._greatest:
            return None
        stop = bisect_right(self._firsts, job_id)
        for segment in self.segments[max(0, stop - OVERLAP_MAX - 1) : stop]:
            if job_id <= segment.last:
                place = segment.place_of(job_id)
                if place is not None:
                    return segment, place
        return None


def _span(first: bytes, last: bytes) -> int:
    """Milliseconds between two ids."""
    return int.from_bytes(last[:_TIME_BYTES], "big") - int.from_bytes(first[:_TIME_BYTES], "big")
