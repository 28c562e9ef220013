"""Bare Ray tasks. Nothing is durable: with the caller, all its jobs are gone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import ray

from .. import work
from .peer import Peer, folder, kill_all
from .ray_here import start_ray

RAY_OWN = ("gcs_server", "raylet")
WARM_UP_JOBS = 50


@ray.remote(num_cpus=1)
def block(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.001)


TASKS = {each.__name__: ray.remote(num_cpus=1)(each) for each in (work.noop, work.sha, work.nap)}


class Driver(Peer):
    memory_of = "RSS of caller, raylet and GCS"

    def open(self) -> None:
        start_ray(num_cpus=2)
        ray.get([TASKS["noop"].remote("x") for _ in range(WARM_UP_JOBS)])
        self._gate: Path | None = None
        self._holds = 0
        self._kept: list[Any] = []  # a job whose reference is dropped may be forgotten

    def close(self) -> None:
        ray.shutdown()

    def hold(self) -> None:
        """Two tasks that wait for a file take both cores."""
        self._holds += 1
        self._gate = folder() / f"gate-{self._holds}"
        self._blockers = [block.remote(str(self._gate)) for _ in range(2)]
        time.sleep(0.5)

    def start_workers(self) -> None:
        if self._gate is not None:
            self._gate.touch()
            ray.get(self._blockers)
            self._gate = None

    def stop_workers(self) -> None:
        """They are Ray's."""

    def kill_workers(self) -> None:
        """The processes of tasks, not Ray's own agents."""
        children = psutil.Process().children(recursive=True)
        kill_all([each for each in children if _title(each).startswith(("ray::nap", "ray::IDLE"))])

    def restart_workers(self) -> None:
        """Ray does it."""

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        task = TASKS[kind]
        handles = [task.remote(each) for each in arguments]
        self._kept += handles
        return handles

    def finished(self) -> int:
        return 0  # `wait` does not count

    def wait(self, handles: Sequence[Any], finished_before: int, seconds: float) -> bool:
        return not ray.wait(list(handles), num_returns=len(handles), timeout=seconds)[1]

    def result(self, handle: Any) -> Any:
        return ray.get(handle)

    def results(self, handles: Sequence[Any]) -> list[Any]:
        found: list[Any] = ray.get(list(handles))
        return found

    def memory_bytes(self) -> int:
        """Waiting tasks live in the caller, and in Ray's own two processes."""
        caller = psutil.Process()
        near = [each for each in caller.children(recursive=True) if each.name() in RAY_OWN]
        return sum(each.memory_info().rss for each in (caller, *near))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
