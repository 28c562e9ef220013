"""The figures, one function each: it takes a running service and returns what it measured."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from jobsvc import service
from jobsvc.client import Client
from jobsvc.service import ServiceInfo
from jobsvc.settings import Settings

from .bench_tasks import argument, nap, noop, sha
from .http_load import Connection, closed_loop

SINGLE_SECONDS = 8.0
CONNECTIONS = 32
BATCH_JOBS = 2_000
MILLION = 1_000_000
SUSTAINED_CALLERS = 3
SUSTAINED_BATCH = 2_000
SUSTAINED_SECONDS = 600.0
SMALL_LIMITS: dict[str, Any] = {"max_jobs": 300_000, "retained_jobs_max": 100_000}  # for `sustained`


class Figure(msgspec.Struct):
    name: str
    value: float
    unit: str
    notes: str = ""
    store: str = ""
    machine: str = ""


class Bench:
    """A running service, and what the figures ask of it."""

    def __init__(self, settings: Settings, run_dir: Path, info: ServiceInfo) -> None:
        self.settings = settings
        self.run_dir = run_dir
        self.info = info
        self.client = Client(info.urls, deadline_seconds=60)
        self.sustained_seconds = SUSTAINED_SECONDS

    @property
    def url(self) -> str:
        return self.info.urls[0]

    def leader(self) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for manager in self.client.status()["managers"]:
                if manager["role"] == "leader":
                    found: dict[str, Any] = manager
                    return found
            time.sleep(0.05)
        raise RuntimeError("no manager leads")

    def wait_until_drained(self) -> None:
        while True:
            counts = self.client.status()["counts"]
            if counts["queued"] + counts["running"] + counts["scheduled"] == 0:
                return
            time.sleep(0.02)

    def again(self) -> None:
        """`up` after everything was killed."""
        self.info = service.up(self.settings, run_dir=self.run_dir, say=lambda _: None)
        self.client = Client(self.info.urls, deadline_seconds=60)


def batch_lines(task: str, first: int, count: int, queue: str = "default") -> bytes:
    return b"\n".join(
        msgspec.json.encode({"task": task, "args": [argument(number)], "queue": queue})
        for number in range(first, first + count)
    )


def single_puts(bench: Bench) -> list[Figure]:
    """Durable `PUT /enqueue`s, 32 connections, closed loop."""
    body = argument(1).encode()

    def request(_: int) -> tuple[str, str, bytes, str]:
        return "PUT", "/enqueue?iterations=1", body, ""

    count, seconds, latencies = asyncio.run(closed_loop(bench.url, CONNECTIONS, SINGLE_SECONDS, request))
    bench.wait_until_drained()
    p99 = statistics.quantiles(latencies, n=100)[98] * 1e3
    return [
        Figure("single PUTs", count / seconds, "jobs/s", f"{CONNECTIONS} connections, workers running"),
        Figure("single PUT p99", p99, "ms", f"{CONNECTIONS} connections"),
    ]


def batch_enqueue(bench: Bench) -> list[Figure]:
    """W1 in batches of 2,000, three connections, nothing leased meanwhile; then the same jobs drained."""
    jobs = 100_000
    bench.client.pause("bench")
    bodies = [batch_lines("bench.noop", first, BATCH_JOBS, "bench") for first in range(0, jobs, BATCH_JOBS)]
    began = time.perf_counter()
    asyncio.run(_send_all(bench.url, bodies))
    enqueue_seconds = time.perf_counter() - began
    began = time.perf_counter()
    bench.client.resume("bench")
    bench.wait_until_drained()
    drain_seconds = time.perf_counter() - began
    return [
        Figure("batch enqueue", jobs / enqueue_seconds, "jobs/s", f"W1, batches of {BATCH_JOBS}"),
        Figure("drain", jobs / drain_seconds, "jobs/s", "W1, 2 workers"),
    ]


async def _send_all(url: str, bodies: list[bytes]) -> None:
    waiting = list(reversed(bodies))

    async def one() -> None:
        connection = Connection(url)
        while waiting:
            status, answer = await connection.request(
                "POST", "/v1/jobs:batch", waiting.pop(), "Content-Type: application/x-ndjson\r\n"
            )
            if status != 202:
                raise RuntimeError(f"answered {status}: {answer[:300]!r}")
        connection.close()

    await asyncio.gather(*(one() for _ in range(3)))


def end_to_end(bench: Bench) -> list[Figure]:
    """From the first request to the last result read from the feed, by the Python client."""
    figures = []
    for name, task, jobs in (("W1", noop, 40_000), ("W2", sha, 8_000)):
        began = time.perf_counter()
        found = bench.client.map(task, (argument(number) for number in range(jobs)))
        counts = found.wait(300)
        seconds = time.perf_counter() - began
        assert counts == {"succeeded": jobs}, counts
        figures.append(Figure(f"{name} end to end", jobs / seconds, "jobs/s", "client.map, 2 workers"))
    return figures


def idle_latency(bench: Bench) -> list[Figure]:
    """`PUT` to result in hand by long poll, one after the other."""
    latencies = asyncio.run(_latencies(bench.url, 200))
    cuts = statistics.quantiles(latencies, n=100)
    return [
        Figure("idle latency p50", cuts[49] * 1e3, "ms", "PUT, then the result by long poll"),
        Figure("idle latency p99", cuts[98] * 1e3, "ms", "200 in a row"),
    ]


async def _latencies(url: str, count: int) -> list[float]:
    connection = Connection(url)
    latencies = []
    for number in range(count + 20):
        began = time.perf_counter()
        _, body = await connection.request("PUT", "/enqueue?iterations=1", argument(number).encode())
        job_id = msgspec.json.decode(body)["id"]
        status, _ = await connection.request("GET", f"/v1/jobs/{job_id}/result", b"", "Prefer: wait=20\r\n")
        assert status == 200, status
        if number >= 20:
            latencies.append(time.perf_counter() - began)
    connection.close()
    return latencies


def store_requests(bench: Bench) -> list[Figure]:
    """PUTs for 1,000 jobs, and PUTs a second, while a load runs."""
    jobs = 20_000
    before, began = bench.leader()["store_requests"]["put"], time.perf_counter()
    bench.client.map(noop, (argument(number) for number in range(jobs))).wait(120)
    puts, seconds = bench.leader()["store_requests"]["put"] - before, time.perf_counter() - began
    return [
        Figure("PUTs for 1,000 jobs", puts / jobs * 1000, "PUTs", "W1 end to end"),
        Figure("PUTs under load", puts / seconds, "PUTs/s", "W1 end to end"),
    ]


def failover(bench: Bench) -> list[Figure]:
    """The longest pause of any of eight callers when the leader is killed under load."""
    pauses: list[float] = []
    stop = threading.Event()

    def call() -> None:
        with Client(bench.info.urls, deadline_seconds=60) as client:
            while not stop.is_set():
                began = time.perf_counter()
                client.enqueue(noop, argument(1))
                pauses.append(time.perf_counter() - began)

    found = []
    for _ in range(3):
        _wait_for_pair(bench)
        pauses.clear()
        stop.clear()
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        os.kill(bench.leader()["pid"], signal.SIGKILL)
        time.sleep(4.0)
        stop.set()
        for thread in threads:
            thread.join()
        found.append(max(pauses))
    return [
        Figure("failover pause", statistics.median(found), "s", f"longest of 8 callers, of three: {found}")
    ]


def _wait_for_pair(bench: Bench) -> None:
    while {manager["role"] for manager in bench.client.status()["managers"]} != {"leader", "standby"}:
        time.sleep(0.05)


def rerun(bench: Bench) -> list[Figure]:
    """From the kill of a worker to its job's next beginning."""
    delays = []
    for number in range(3):
        path = bench.run_dir / f"nap-{number}"
        job = bench.client.enqueue(nap, str(path), seconds=1.5)
        while not path.exists():
            time.sleep(0.01)
        name = bench.client.get(f"/v1/jobs/{job.id}")["worker"]
        pid = next(worker["pid"] for worker in bench.client.workers() if worker["name"] == name)
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        job.result(60)
        delays.append(float(path.read_text().split()[1]) - killed)
        time.sleep(3.0)
    return [Figure("re-run after a worker's death", statistics.median(delays), "s", f"three: {delays}")]


def idle_cost(bench: Bench) -> list[Figure]:
    """PUTs and CPU of jobsvc's own actors while nothing happens."""
    bench.wait_until_drained()
    own = [process for process in service.service_processes(bench.info) if _is_own(process)]
    before = {process.pid: sum(process.cpu_times()[:2]) for process in own}
    puts, began = bench.leader()["store_requests"]["put"], time.perf_counter()
    time.sleep(30.0)
    seconds = time.perf_counter() - began
    cpu = sum(sum(process.cpu_times()[:2]) - before[process.pid] for process in own)
    puts = bench.leader()["store_requests"]["put"] - puts
    return [
        Figure("idle PUTs", puts / seconds, "PUTs/s", "30 s"),
        Figure("idle CPU", cpu / seconds * 100, "% of a core", f"{len(own)} processes of jobsvc, 30 s"),
    ]


def _is_own(process: psutil.Process) -> bool:
    """Managers, workers, replicas and job processes, by the titles that they give themselves."""
    line = " ".join(process.cmdline()).removeprefix("ray::")
    return line.startswith(("jobsvc ", "ManagerActor", "WorkerActor", "ServeReplica:"))


def a_million(bench: Bench) -> list[Figure]:
    """Memory for each queued job, and the time from `kill -9` of everything to the first lease."""
    bench.client.pause("million")
    before = psutil.Process(bench.leader()["pid"]).memory_info().rss
    bodies = (
        batch_lines("bench.noop", first, BATCH_JOBS, "million") for first in range(0, MILLION, BATCH_JOBS)
    )
    began = time.perf_counter()
    for chunk in iter(lambda: [body for _, body in zip(range(25), bodies, strict=False)], []):
        asyncio.run(_send_all(bench.url, chunk))
    seconds = time.perf_counter() - began
    time.sleep(3.0)
    grown = psutil.Process(bench.leader()["pid"]).memory_info().rss - before
    figures = [
        Figure("memory of a queued job", grown / MILLION, "bytes", "leader's RSS, 1,000,000 queued W1"),
        Figure("a million enqueued", MILLION / seconds, "jobs/s", "with making the requests"),
    ]
    began = time.perf_counter()
    for manager in bench.client.status()["managers"]:
        os.kill(manager["pid"], signal.SIGKILL)
    bench.client.enqueue(noop, argument(0)).result(60)
    seconds = time.perf_counter() - began
    figures.append(Figure("recovery of a million", seconds, "s", "both managers killed, to the next result"))
    processes = list(service.service_processes(bench.info))
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)
    began = time.perf_counter()
    bench.again()
    bench.client.enqueue(noop, argument(0)).result(60)
    seconds = time.perf_counter() - began
    figures.append(
        Figure("everything killed, a million queued", seconds, "s", "`up`, Ray included, to a result")
    )
    return figures


def sustained(bench: Bench) -> list[Figure]:
    """The rate and the leader's memory in the first minute of full load, and in the last."""
    seconds, spans = bench.sustained_seconds, []
    window = min(60.0, seconds / 4)
    done = [0] * SUSTAINED_CALLERS
    began = time.monotonic()

    def call(caller: int) -> None:
        client = Client(bench.info.urls, deadline_seconds=60)
        while time.monotonic() < began + seconds:
            items = [argument(number) for number in range(SUSTAINED_BATCH)]
            client.map(noop, items, progress=False).wait(120)
            done[caller] += SUSTAINED_BATCH

    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(SUSTAINED_CALLERS)]
    for thread in callers:
        thread.start()
    for start in (0.0, seconds - window):
        time.sleep(max(0.0, began + start - time.monotonic()))
        before, at = sum(done), time.monotonic()
        time.sleep(window)
        rate = (sum(done) - before) / (time.monotonic() - at)
        spans.append((rate, psutil.Process(bench.leader()["pid"]).memory_info().rss))
    for thread in callers:
        thread.join()
    held = sum(bench.client.status()["counts"].values())
    notes = f"{seconds:g} s of full load, {sum(done):,} jobs, {held:,} held at the end"
    return [
        figure
        for (rate, rss), when in zip(spans, ("first", "last"), strict=True)
        for figure in (
            Figure(f"sustained, {when} {window:g} s", rate, "jobs/s", notes),
            Figure(f"leader's memory after the {when} {window:g} s", rss / 1e6, "MB", notes),
        )
    ]


ALL: dict[str, Callable[[Bench], list[Figure]]] = {
    "latency": idle_latency,
    "singles": single_puts,
    "batches": batch_enqueue,
    "end-to-end": end_to_end,
    "puts": store_requests,
    "failover": failover,
    "rerun": rerun,
    "idle": idle_cost,
    "million": a_million,
    "sustained": sustained,
}
