"""The order of acceptance: whatever leaves, what stays is in order, found, and costs about what it is."""

from __future__ import annotations

from random import Random

import pytest

from jobsvc.acceptance_order import AcceptanceOrder
from jobsvc.jobs import Job, JobOptions, NewJob
from jobsvc.segments import JobTable

from .queue_world import job_id

OPTIONS = JobOptions("t")


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_sorted_list(seed: int) -> None:
    chance = Random(seed)
    table = JobTable()
    order = AcceptanceOrder(table)
    held: dict[int, bytes] = {}
    seq = 1
    for _ in range(200):
        if chance.random() < 0.5:
            count = chance.choice([1, 3, 40, 700])
            new = [NewJob(job_id(seq + n), 0, b"{}") for n in range(count)]
            segment = table.freeze_new(new, OPTIONS, seq, 0.0)
            if segment is not None:
                order.append(segment)
            else:
                for n, each in enumerate(new):
                    job = Job(each.id, OPTIONS, b"{}", seq + n, 0.0)
                    table.add([job])
                    order.extend([job])
            held |= {seq + n: each.id for n, each in enumerate(new)}
            seq += count
        for each in chance.sample(sorted(held), len(held) // chance.choice([2, 10, 100])):
            job = table[held.pop(each)]
            table.pop(job.id)
            order.retire_many([job.seq])
        # then it has those that are held, forwards and backwards, from any place on
        assert [job.seq for job in each_of(order)] == sorted(held)
        before = chance.randrange(seq + 10)
        newest = [
            job.seq
            for entry in order.newest_first(before)
            for job in ([entry] if isinstance(entry, Job) else reversed(entry.between(entry.seq, before)))
        ]
        assert newest == [each for each in sorted(held, reverse=True) if each < before]
        assert order.oldest_seq == min(held, default=None)
        # and it is not much longer than what it has
        assert len(order) <= 4 * len(held) + 1_100


def each_of(order: AcceptanceOrder) -> list[Job]:
    return [
        job
        for entry in order
        for job in ([entry] if isinstance(entry, Job) else entry.between(entry.seq, entry.stop))
    ]


def test_a_few_that_stay_do_not_keep_the_places_of_the_others() -> None:
    order = AcceptanceOrder(JobTable())
    jobs = [Job(job_id(seq), OPTIONS, b"", seq, 0.0) for seq in range(1, 50_001)]
    for job in jobs:
        order.extend([job])
    for job in jobs:
        if job.seq % 1_000:
            order.retire_many([job.seq])
    assert [job.seq for job in each_of(order)] == list(range(1_000, 50_001, 1_000))
    assert len(order) <= 50 * 4 + 1_100
