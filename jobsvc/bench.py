"""What a service does in two minutes: the figures of `jobsvc bench`, measured from where it is called.

The work is a no-op (`jobsvc.echo`) with an argument of 200 bytes, so that the figures are those of the
service and not of jobs. They depend on the client too: one Python process makes as many requests as its core
can. Jobs of a measurement are in the queue `bench`, and expire a minute after they have ended.

S3's price is that of Standard in us-east-1 as once read from AWS's list: look yours up. Requests are those of
the managers; jobs with arguments and results of 8 KiB or less need no others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from .client import Client

TASK = "jobsvc.echo"
OPTIONS: dict[str, Any] = {"queue": "bench", "retention_seconds": 60.0}
BATCH_JOBS = 1_000
BATCH_CALLERS = 4
ARGUMENT_BYTES = 200
DRAIN_SECONDS = 600.0
DOLLARS_PER_WRITE = 0.005 / 1_000  # PUT, LIST
DOLLARS_PER_READ = 0.0004 / 1_000  # GET; DELETE is free

Connect = Callable[[], Client]
Say = Callable[[str], None]


class Figure(msgspec.Struct, frozen=True):
    """One number, its unit, and how it was measured."""

    name: str
    value: float
    unit: str
    how: str


def measure(connect: Connect, jobs: int, callers: int, seconds: float, say: Say) -> list[Figure]:
    """All figures, one after the other; each caller has a client of its own. Raises what clients raise."""
    with connect() as client:
        say("idle latency")
        figures = latency(client, seconds)
        say(f"single jobs by {callers} callers")
        figures += singles(connect, callers, seconds)
        _drain(client)
        say(f"{jobs:,} jobs in batches")
        return figures + batches(connect, client, jobs)


def latency(client: Client, seconds: float) -> list[Figure]:
    """One job after the other, from the request to its result in hand. The first ones do not count."""
    deadline = time.monotonic() + seconds
    spent: list[float] = []
    while time.monotonic() < deadline or len(spent) < 5:
        began = time.perf_counter()
        client.enqueue(TASK, "x" * ARGUMENT_BYTES, **OPTIONS).result(timeout=DRAIN_SECONDS)
        spent.append((time.perf_counter() - began) * 1000)
    spent = spent[2:]
    how = f"{len(spent)} jobs, one after the other, idle service"
    return [
        Figure("latency p50", statistics.median(spent), "ms", how),
        Figure("latency p99", sorted(spent)[int(0.99 * len(spent))], "ms", how),
    ]


def singles(connect: Connect, callers: int, seconds: float) -> list[Figure]:
    """Durable enqueues of one job each, by many callers at once."""
    deadline = time.monotonic() + seconds

    def call(_: int) -> int:
        with connect() as mine:
            count = 0
            while time.monotonic() < deadline:
                mine.enqueue(TASK, "x" * ARGUMENT_BYTES, **OPTIONS)
                count += 1
            return count

    began = time.monotonic()
    with ThreadPoolExecutor(callers) as pool:
        count = sum(pool.map(call, range(callers)))
    return [Figure("single jobs", count / (time.monotonic() - began), "jobs/s", f"{callers} callers")]


def batches(connect: Connect, client: Client, jobs: int) -> list[Figure]:
    """Enqueue in batches, then wait for the end of all; and what the store was asked for it."""
    sizes = [min(BATCH_JOBS, jobs - first) for first in range(0, jobs, BATCH_JOBS)]
    before, began = _requests(client), time.monotonic()

    def call(size: int) -> None:
        with connect() as mine:
            mine.enqueue_many([{"task": TASK, "args": ["x" * ARGUMENT_BYTES], **OPTIONS}] * size)

    with ThreadPoolExecutor(BATCH_CALLERS) as pool:
        list(pool.map(call, sizes))
    enqueued = time.monotonic() - began
    _drain(client)
    drained = time.monotonic() - began
    how = f"{jobs:,} jobs in batches of {BATCH_JOBS:,}"
    return [
        Figure("batch enqueue", jobs / enqueued, "jobs/s", how),
        Figure("end to end", jobs / drained, "jobs/s", f"{how}, until the last has ended"),
        *_cost(before, _requests(client), jobs),
    ]


def _cost(before: dict[str, int], after: dict[str, int], jobs: int) -> Iterator[Figure]:
    made = {kind: after.get(kind, 0) - before.get(kind, 0) for kind in after}
    writes = made.get("put", 0) + made.get("list", 0)
    dollars = writes * DOLLARS_PER_WRITE + made.get("get", 0) * DOLLARS_PER_READ
    yield Figure("PUTs for 1,000 jobs", 1_000 * made.get("put", 0) / jobs, "PUTs", "of the managers")
    yield Figure("S3 requests for 1,000,000 jobs", 1_000_000 * dollars / jobs, "$", "at S3 Standard's price")


def _requests(client: Client) -> dict[str, int]:
    """Requests to the store by kind, of both managers."""
    total: dict[str, int] = {}
    for manager in client.status()["managers"]:
        for kind, count in manager["store_requests"].items():
            total[kind] = total.get(kind, 0) + count
    return total


def _drain(client: Client) -> None:
    """Until nothing of the measurement waits or runs."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        found = [each["counts"] for each in client.queues() if each["name"] == OPTIONS["queue"]]
        counts: dict[str, int] = found[0] if found else {}
        if not any(counts.get(state, 0) for state in ("scheduled", "queued", "running")):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"jobs are left after {DRAIN_SECONDS:g} s: {counts}")
        time.sleep(0.05)
