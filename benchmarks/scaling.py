"""How one leader scales: `python -m benchmarks.scaling [--queued N…] [--workers N…] [--huge] [--json FILE]`.

Figures are JSON lines; `--report FILE` makes a table of them, `--picture FILE` a drawing, both also of an
earlier run's lines (`--from FILE`). What is measured, and on what clock, is said in `scaling_world`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from jobsvc import queue_snapshot
from jobsvc.directory_store import DirectoryObjectStore
from jobsvc.snapshots import write_snapshot

from .machine import cpu
from .scaling_report import Figures, picture, report
from .scaling_world import BATCH_JOBS, Collections, CpuLoop, PlayedWorker, World, resident_bytes, run

QUEUED = (1_000, 10_000, 100_000, 1_000_000)
QUEUED_HUGE = 10_000_000
WORKERS = (1, 10, 100, 1_000)
NOOP_SECONDS = 0.000_075  # what a W1 job takes its worker
NAP_SECONDS = 0.1
DRAINED_MAX = 100_000
DRAIN_WORKERS = 10
WARM_SECONDS = {NOOP_SECONDS: 1.0, NAP_SECONDS: 2.0}
LOOK_SECONDS = 1.5
BACKLOG = {NOOP_SECONDS: 400_000, NAP_SECONDS: 60_000}
COMMITS_QUEUED = (1_000, 10_000, 100_000)
RAY_CALLS = 20_000


# --- against queued jobs ------------------------------------------------------------------------------


def against_queued(jobs: int) -> Figures:
    """Enqueue, drain a part, snapshot, recover."""

    async def story(loop: CpuLoop) -> Figures:
        world = World()
        leading = await world.lead(DRAIN_WORKERS)
        figures: Figures = {"kind": "queued", "queued": jobs}
        with Collections() as pauses:
            await asyncio.sleep(0)  # the collection before the start is none of the leader's
            rss, spent = resident_bytes(), loop.leader_seconds
            loop.longest_seconds = 0.0
            await world.enqueue(jobs, loop)
            figures["enqueue_us"] = (loop.leader_seconds - spent) / jobs * 1e6
            figures["bytes_per_job"] = (resident_bytes() - rss) / jobs
            figures["enqueue_stall_ms"] = loop.longest_seconds * 1e3
            loop.longest_seconds = 0.0
            figures |= await _drain(world, loop, min(jobs, DRAINED_MAX))
            figures["drain_stall_ms"] = loop.longest_seconds * 1e3
            figures["gc_ms"] = pauses.longest_seconds * 1e3
        figures |= await _snapshot_and_recover(world, leading)
        return figures

    return run(story)


async def _drain(world: World, loop: CpuLoop, jobs: int) -> Figures:
    workers = [PlayedWorker(world, loop, f"w{n}", NOOP_SECONDS, 0.0) for n in range(DRAIN_WORKERS)]
    spent, began = loop.leader_seconds, loop.time()
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    while sum(worker.finished for worker in workers) < jobs:  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(0.002)
    finished = sum(worker.finished for worker in workers)
    for task in tasks:
        task.cancel()
    return {
        "finish_us": (loop.leader_seconds - spent) / finished * 1e6,
        "drain_jobs_s": finished / (loop.time() - began),
    }


async def _snapshot_and_recover(world: World, leading: asyncio.Task[None]) -> Figures:
    await asyncio.sleep(1.0)  # what was in the air is in the log
    leader, reader = world.manager.leader, world.manager._reader
    assert leader is not None and reader is not None
    leading.cancel()  # nothing comes after the snapshot, however long it takes
    await asyncio.wait([leading])
    began = last = time.process_time()
    longest, pieces = 0.0, []
    for part in queue_snapshot.parts(world.manager.state):
        pieces.append(part)
        now = time.process_time()
        longest, last = max(longest, now - last), now
    body = b"".join(pieces)
    pieces.clear()
    await write_snapshot(world.store, reader.cluster_id, leader.commits.mark, body)
    figures: Figures = {"snapshot_s": time.process_time() - began, "snapshot_bytes": len(body)}
    figures["snapshot_part_ms"] = longest * 1e3
    del body, leader, reader
    vars(world.manager.state).clear()  # memory for the next one
    began = time.process_time()
    world.manager = world.new_manager(2)
    again = await world.lead(0)
    figures["recovery_s"] = time.process_time() - began
    again.cancel()
    return figures


# --- against workers ----------------------------------------------------------------------------------


def against_workers(workers: int, job_seconds: float, call_us: float) -> Figures:
    """A backlog, and so many workers that pull from it. `call_us`: what Ray adds to each call."""

    async def story(loop: CpuLoop) -> Figures:
        world = World(workers)
        leading = await world.lead(workers)
        await world.enqueue(BACKLOG[job_seconds], loop)
        played = [PlayedWorker(world, loop, f"w{n}", job_seconds, call_us / 1e6) for n in range(workers)]
        tasks = [asyncio.create_task(worker.run()) for worker in played]
        await asyncio.sleep(WARM_SECONDS[job_seconds])
        commits = world.manager.leader.commits if world.manager.leader else None
        assert commits is not None
        commits.commit_seconds.clear()
        spent, began, calls, jobs = loop.leader_seconds, loop.time(), _calls(played), _finished(played)
        loop.longest_seconds = 0.0
        await asyncio.sleep(LOOK_SECONDS)
        spent, seconds = loop.leader_seconds - spent, loop.time() - began
        calls, jobs = _calls(played) - calls, _finished(played) - jobs
        for task in [*tasks, leading]:
            task.cancel()
        ordered = sorted(commits.commit_seconds)
        return {
            "kind": "workers",
            "workers": workers,
            "job_ms": job_seconds * 1e3,
            "call_us": call_us,
            "jobs_s": jobs / seconds,
            "calls_s": calls / seconds,
            "leader_percent": spent / seconds * 100,
            "us_per_call": spent / max(calls, 1) * 1e6,
            "us_per_job": spent / max(jobs, 1) * 1e6,
            "commit_ms": statistics.median(ordered) * 1e3 if ordered else 0.0,
            "stall_ms": loop.longest_seconds * 1e3,
        }

    with Collections():
        return run(story)


def _calls(workers: Iterable[PlayedWorker]) -> int:
    return sum(worker.calls for worker in workers)


def _finished(workers: Iterable[PlayedWorker]) -> int:
    return sum(worker.finished for worker in workers)


# --- on real clocks -----------------------------------------------------------------------------------


def commit_latency(queued: int) -> Figures:
    """On this machine's disk, by its wall clock: records of one batch each, until so many jobs are queued."""

    async def story(folder: str) -> Figures:
        store = DirectoryObjectStore(folder)
        world = World(0, store)
        leading = await world.lead()
        await world.enqueue(queued)
        assert world.manager.leader is not None
        commits = world.manager.leader.commits
        commits.commit_seconds.clear()
        await world.enqueue(100 * BATCH_JOBS)
        seconds = sorted(commits.commit_seconds)
        leading.cancel()
        await asyncio.wait([leading])
        store.close()
        return {
            "kind": "commit",
            "queued": queued,
            "p50_ms": seconds[len(seconds) // 2] * 1e3,
            "p99_ms": seconds[-1 - len(seconds) // 100] * 1e3,
            "load": os.getloadavg()[0],
        }

    with tempfile.TemporaryDirectory(prefix="jobsvc-scaling-") as folder:
        return asyncio.run(story(folder))


class Callee:
    """An actor with one call, as empty as can be."""

    async def call(self, data: bytes) -> bytes:
        return data

    async def cpu_seconds(self) -> float:
        return time.process_time()


def ray_call() -> Figures:
    """CPU time of an async actor's process for one call, all its threads, in a Ray of its own."""
    import ray

    with tempfile.TemporaryDirectory(prefix="jr-") as folder:
        ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            actor = ray.remote(Callee).options(max_concurrency=1000).remote()  # type: ignore[attr-defined]
            data = b"x" * 1_000
            ray.get([actor.call.remote(data) for _ in range(1_000)])
            began = ray.get(actor.cpu_seconds.remote())
            for _ in range(RAY_CALLS // 100):
                ray.get([actor.call.remote(data) for _ in range(100)])
            spent = ray.get(actor.cpu_seconds.remote()) - began
        finally:
            ray.shutdown()
    return {"kind": "ray", "ray_call_us": spent / RAY_CALLS * 1e6}


def side_by_side(pairs: int) -> Figures:
    """So many leaders at the same time, each in a process: what one costs the other in CPU time."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--only", "workers", "--workers", "10", "--noop"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(pairs)]
    found = [msgspec.json.decode(each.communicate()[0].splitlines()[-1]) for each in started]
    return {
        "kind": "pairs",
        "pairs": pairs,
        "jobs_s": sum(each["jobs_s"] for each in found),
        "us_per_job": statistics.mean(each["us_per_job"] for each in found),
    }


# --- the command --------------------------------------------------------------------------------------


def plan(options: argparse.Namespace) -> Iterable[Callable[[], Figures]]:
    queued = [*options.queued, *([QUEUED_HUGE] if options.huge else [])]
    if "queued" in options.only:
        against_queued(BATCH_JOBS)  # what is done once for a process is no part of the figures
        yield from ((lambda n=n: against_queued(n)) for n in queued)
    if "commit" in options.only:
        yield from ((lambda n=n: commit_latency(n)) for n in COMMITS_QUEUED)
    if "ray" in options.only:
        yield ray_call
    if "workers" in options.only:
        for seconds in (NOOP_SECONDS,) if options.noop else (NOOP_SECONDS, NAP_SECONDS):
            yield from (
                (lambda n=n, s=seconds: against_workers(n, s, options.call_us)) for n in options.workers
            )
    if "pairs" in options.only:
        yield from ((lambda n=n: side_by_side(n)) for n in (1, 2))


def main() -> None:
    kinds = ["queued", "commit", "ray", "workers", "pairs"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--queued", nargs="*", type=int, default=list(QUEUED))
    parser.add_argument("--workers", nargs="*", type=int, default=list(WORKERS))
    parser.add_argument("--huge", action="store_true", help="also 10,000,000 queued jobs: takes 12 GB")
    parser.add_argument("--noop", action="store_true", help="only the workers' no-op jobs")
    parser.add_argument("--call-us", type=float, default=0.0, help="what Ray adds to each call")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--from", type=Path, dest="source", help="lines of an earlier run: measure nothing")
    options = parser.parse_args()
    if options.source:
        found = [msgspec.json.decode(line) for line in options.source.read_text().splitlines()]
    else:
        found = []
        for measure in plan(options):
            found.append({**measure(), "machine": cpu(), "load": round(os.getloadavg()[0], 1)})
            line = msgspec.json.encode(found[-1]).decode()
            print(line, flush=True)
            if options.json:
                with options.json.open("a") as lines:
                    lines.write(line + "\n")
    if options.report:
        options.report.write_text(report(found))
    if options.picture:
        options.picture.write_text(picture(found))


if __name__ == "__main__":
    main()
