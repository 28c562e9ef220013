"""Measures one peer, in the peer's own Python: `benchmarks.peers.session PEER PART SCALE CRASH_SECONDS`.

Started by the keeper. Each measurement is one line of JSON on standard output.
"""

from __future__ import annotations

import importlib
import json
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import work
from .peer import Peer, folder
from .roster import PEERS, Entry

BATCH_SECONDS_MAX = 240.0
JOBS_MIN = 20
IDLE_SECONDS = 0.5
LATENCY_JOBS, LATENCY_SECONDS_MAX, LATENCY_WARM_UP_JOBS = 120, 5.0, 3
MEMORY_SLICE_JOBS = 5_000
CRASH_JOBS, CRASH_RUNNING_MIN = 6, 2
PROBE = 99
PROBE_SECONDS = 30.0
START_SECONDS = 60.0


def main() -> None:
    name, part, scale, crash_seconds = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    entry = PEERS[name]
    driver: Peer = importlib.import_module(f"{__package__}.{entry.module}_peer").Driver()
    driver.open()
    try:
        if part == "memory":
            memory(driver, entry, scale)
        elif part == "crash":
            crash(driver, crash_seconds)
        else:
            speed(driver, entry, scale)
    finally:
        driver.close()  # workers that are left are the keeper's to end


def say(measure: str, value: float | None, unit: str, **more: Any) -> None:
    print(json.dumps({"measure": measure, "value": value, "unit": unit, **more}), flush=True)


# --- rates and latency -------------------------------------------------------------------------------


def speed(driver: Peer, entry: Entry, scale: float) -> None:
    if entry.noops:
        fill_and_drain(driver, scaled(entry.noops, scale))
        end_to_end(driver, "noop", "w1_end_to_end", scaled(entry.noops, scale))
        end_to_end(driver, "sha", "w2_end_to_end", scaled(entry.shas, scale))
        latency(driver)
    driver.extras(say, scale)


def scaled(jobs: int, scale: float) -> int:
    return max(JOBS_MIN, int(jobs * scale))


def fill_and_drain(driver: Peer, jobs: int) -> None:
    """No worker runs while jobs come: half of them singly, the rest in bulk where there is such a thing."""
    driver.hold()
    singles = driver.singles_of(jobs)
    handles: list[Any] = []
    for measure, enqueue, numbers in (
        ("enqueue_each", driver.enqueue_each, range(singles)),
        ("enqueue_bulk", driver.enqueue_bulk, range(singles, jobs)),
    ):
        if not numbers:
            continue
        arguments = [work.argument(number) for number in numbers]
        began = time.perf_counter()
        handles += enqueue("noop", arguments)
        by = driver.bulk_by if measure == "enqueue_bulk" else driver.each_by
        say(measure, len(numbers) / (time.perf_counter() - began), "jobs/s", jobs=len(numbers), by=by)
    driver.start_workers()
    if not driver.wait(handles, 0, BATCH_SECONDS_MAX):
        raise TimeoutError("not all jobs were drained")
    ended = time.time()
    results = driver.results(handles)
    check("noop", [work.argument(number) for number in range(jobs)][-len(handles) :], results)
    seconds = ended - min(started for started, _ in results)
    say("drain", len(handles) / seconds, "jobs/s", jobs=len(handles))


def end_to_end(driver: Peer, kind: str, measure: str, jobs: int) -> None:
    """Workers are up and idle; the client is as quick as it can be."""
    arguments = [work.argument(number) for number in range(jobs)]
    time.sleep(IDLE_SECONDS)
    before, began = driver.finished(), time.perf_counter()
    handles = driver.enqueue_bulk(kind, arguments)
    if not driver.wait(handles, before, BATCH_SECONDS_MAX):
        raise TimeoutError(f"{measure}: not all results came")
    seconds = time.perf_counter() - began
    checked = check(kind, arguments, driver.results(handles))
    say(measure, jobs / seconds, "jobs/s", jobs=jobs, checked=checked, by=driver.bulk_by or "one by one")


def check(kind: str, arguments: Sequence[str], results: Sequence[Any]) -> int:
    """Each job must have given its own right answer. Returns how many did, 0 for a peer that keeps none."""
    if len(results) != len(arguments):
        raise AssertionError(f"{len(results)} results of {len(arguments)} jobs")
    values = [value for _, value in results]
    if all(value is None for value in values):
        return 0
    wrong = sum(
        value != (len(text) if kind == "noop" else work.sha_of(text))
        for text, value in zip(arguments, values, strict=True)
    )
    if wrong:
        raise AssertionError(f"{wrong} wrong results of {len(values)}")
    return len(values)


def latency(driver: Peer) -> None:
    """One job at a time, from the call to the result in hand."""
    text = work.argument(0)
    spent: list[float] = []
    deadline = time.monotonic() + LATENCY_SECONDS_MAX
    while len(spent) < LATENCY_JOBS + LATENCY_WARM_UP_JOBS and time.monotonic() < deadline:
        time.sleep(0.01)
        began = time.perf_counter()
        driver.result(driver.enqueue_one("noop", text))
        spent.append((time.perf_counter() - began) * 1000)
    spent = sorted(spent[LATENCY_WARM_UP_JOBS:])
    say("latency_p50", statistics.median(spent), "ms", jobs=len(spent))
    say("latency_p99", spent[int(0.99 * (len(spent) - 1))], "ms", jobs=len(spent))


# --- memory ------------------------------------------------------------------------------------------


def memory(driver: Peer, entry: Entry, scale: float) -> None:
    """What the queue grows by for each queued W1 job."""
    driver.hold()
    before, queued = driver.memory_bytes(), 0
    for measure, jobs in (("memory", entry.memory_jobs), ("memory_of_more", driver.more_memory_jobs)):
        while jobs and queued < scaled(jobs, scale):
            count = min(MEMORY_SLICE_JOBS, scaled(jobs, scale) - queued)
            driver.enqueue_bulk("noop", [work.argument(queued + number) for number in range(count)])
            queued += count
        if jobs:
            grown = driver.memory_bytes() - before
            say(measure, grown / queued, "bytes", jobs=queued, of=driver.memory_of)


# --- crash -------------------------------------------------------------------------------------------


class Naps:
    """What the jobs of the crash have written down."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        words = [line.split() for line in lines]
        self.starts = [(int(number), float(at)) for word, number, at in words if word == "start"]
        self.ends = [int(number) for word, number, _ in words if word == "end"]


def crash(driver: Peer, seconds: float) -> None:
    """All workers are killed while jobs run, and others started at once: when do those jobs run again?"""
    path = folder() / "naps"
    path.touch()
    path.chmod(0o666)
    driver.start_workers()
    for number in range(CRASH_JOBS):
        driver.enqueue_one("nap", work.nap_argument(number, str(path)))
    if not wait_for(lambda: len(Naps(path).starts) >= CRASH_RUNNING_MIN, START_SECONDS):
        raise TimeoutError("no job has started")
    time.sleep(1.0)
    driver.kill_workers()
    killed_at = time.time()
    seen = Naps(path)
    killed = {number for number, _ in seen.starts} - set(seen.ends)
    driver.restart_workers()
    wait_for(lambda: len(set(Naps(path).ends)) == CRASH_JOBS, seconds)
    time.sleep(work.NAP_SECONDS + 1.0)  # a second run would have ended by now
    tell_of_crash(Naps(path), killed, killed_at, seconds, driver.held())
    driver.enqueue_one("nap", work.nap_argument(PROBE, str(path)))
    works = wait_for(lambda: PROBE in Naps(path).ends, PROBE_SECONDS)
    say("crash_new_workers_work", float(works), "")


def tell_of_crash(naps: Naps, killed: set[int], killed_at: float, seconds: float, held: int | None) -> None:
    again: dict[int, float] = {}
    for number, at in naps.starts:
        if number in killed and at > killed_at:
            again[number] = min(at - killed_at, again.get(number, at))
    finished = set(naps.ends)
    later = [at - killed_at for _, at in naps.starts if at > killed_at]
    say(
        "crash_rerun",
        max(again.values()) if killed and len(again) == len(killed) else None,
        "s",
        jobs=CRASH_JOBS,
        killed=len(killed),
        again=sorted(round(delay, 2) for delay in again.values()),
        first_start_seconds=min(later, default=None),
        finished=len(finished),
        finished_twice=len(naps.ends) - len(finished),
        held=held,
        deadline_seconds=seconds,
    )


def wait_for(done: Any, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    main()
