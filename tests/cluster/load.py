"""Callers that go on through every disaster, and remember what they were told."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from jobsvc.client import Client
from jobsvc.client_jobs import TERMINAL_STATES

from .conftest import RunningService
from .tasks_under_test import double


@dataclass
class Told:
    """What callers were told. The judge compares it with what the service says at the end."""

    accepted: dict[str, int] = field(default_factory=dict)  # id -> argument
    pauses: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


class Load:
    """Threads that enqueue one small batch after the other."""

    def __init__(
        self, running: RunningService, callers: int = 4, batch: int = 5, pace_seconds: float = 0.02
    ) -> None:
        self.told = Told()
        self._urls = list(running.info.urls)
        self._batch = batch
        self._pace_seconds = pace_seconds
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next = 0
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _call(self) -> None:
        client = Client(self._urls, deadline_seconds=90)
        try:
            while not self._stop.wait(self._pace_seconds):
                with self._lock:
                    numbers = list(range(self._next, self._next + self._batch))
                    self._next += self._batch
                began = time.monotonic()
                jobs = client.enqueue_many([{"task": "test.double", "args": [number]} for number in numbers])
                with self._lock:
                    self.told.pauses.append(time.monotonic() - began)
                    self.told.accepted.update(zip(jobs.ids, numbers, strict=True))
        except BaseException as error:
            self.told.errors.append(error)
        finally:
            client.close()

    def wait_for(self, jobs: int, seconds: float = 60.0) -> None:
        """Until this many more jobs were accepted."""
        goal = len(self.told.accepted) + jobs
        deadline = time.monotonic() + seconds
        while len(self.told.accepted) < goal:
            assert not self.told.errors, self.told.errors
            assert time.monotonic() < deadline, f"{len(self.told.accepted)} of {goal} accepted in {seconds} s"
            time.sleep(0.02)


def judge(running: RunningService, told: Told, seconds: float = 90.0) -> None:
    """P1 to P3 over HTTP: everything accepted has ended once, rightly, and the counts add up."""
    assert not told.errors, told.errors
    finished: dict[str, object] = {}
    places: dict[str, int] = {}
    deadline = time.monotonic() + seconds
    after = 0
    while told.accepted.keys() - finished.keys():
        left = deadline - time.monotonic()
        missing = len(told.accepted.keys() - finished.keys())
        assert left > 0, f"{missing} of {len(told.accepted)} accepted jobs have not ended"
        page = running.client.feed(after, min(left, 5.0))
        for entry in page.entries:
            assert entry.id not in finished, f"{entry.id} finished twice: {places[entry.id]}, {entry.seq}"
            assert entry.seq > after, "the feed goes back"
            assert entry.state in TERMINAL_STATES
            finished[entry.id] = entry.result if entry.state == "succeeded" else entry.state
            places[entry.id] = entry.seq
        after = page.next
    wrong = {
        job_id: finished[job_id]
        for job_id, number in told.accepted.items()
        if finished[job_id] != double(number)
    }
    assert not wrong, f"wrong or failed: {wrong}"
    counts = running.client.status()["counts"]
    assert sum(counts.values()) >= len(told.accepted), "the counts do not add up"
