"""Callers that go on through every disaster, and remember what they were told."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from jobsvc.client import Client

from .. import history_checks
from .tasks_under_test import double


class Service(Protocol):
    """Where a service is, and a client of it."""

    @property
    def urls(self) -> list[str]: ...

    @property
    def client(self) -> Client: ...


@dataclass
class Told:
    """What callers were told. The judge compares it with what the service says at the end."""

    accepted: dict[str, int] = field(default_factory=dict)  # id -> argument
    pauses: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


class Load:
    """Threads that enqueue one small batch after the other."""

    def __init__(
        self,
        running: Service,
        callers: int = 4,
        batch: int = 5,
        pace_seconds: float = 0.02,
        deadline_seconds: float = 90.0,
    ) -> None:
        self.told = Told()
        self._urls = list(running.urls)
        self._deadline_seconds = deadline_seconds
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
            thread.join(self._deadline_seconds + 30)

    def _call(self) -> None:
        client = Client(self._urls, deadline_seconds=self._deadline_seconds)
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


def judge(running: Service, told: Told, seconds: float = 90.0) -> None:
    """Wait until all that was accepted has ended, then let the one judge compare what was told with it."""
    assert not told.errors, told.errors
    heard = history_checks.Told()
    for job_id, number in told.accepted.items():
        heard.accept(job_id, 0.0)
        heard.expected[job_id] = double(number)
    final = history_checks.Final()
    _read_feed(running, told, heard, final, seconds)
    problems = history_checks.judge(heard, final)
    assert not problems, problems
    counts = running.client.status()["counts"]
    assert sum(counts.values()) >= len(told.accepted), "the counts do not add up"


def _read_feed(
    running: Service,
    told: Told,
    heard: history_checks.Told,
    final: history_checks.Final,
    seconds: float,
) -> None:
    """The feed from its beginning until every accepted job is in it."""
    deadline = time.monotonic() + seconds
    after = 0
    while told.accepted.keys() - final.jobs.keys():
        left = deadline - time.monotonic()
        missing = len(told.accepted.keys() - final.jobs.keys())
        assert left > 0, f"{missing} of {len(told.accepted)} accepted jobs have not ended"
        page = running.client.feed(after, min(left, 5.0))
        for entry in page.entries:
            finish = history_checks.Finish(entry.seq, entry.id, entry.state)
            heard.feed.append(finish)
            final.finishes.append(finish)
            final.jobs[entry.id] = (entry.state, entry.result)
            if entry.state == "succeeded":
                heard.results.append((entry.id, entry.result))
        after = page.next
