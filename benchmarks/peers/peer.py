"""What every peer can do. Its module has one subclass of Peer, named Driver.

A driver learns where it is from environment variables, because a peer's workers import the same module in
processes of their own. Handles are whatever the peer's enqueue returns; results come as [started, value],
value None where the peer keeps none.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
LOOK_SECONDS = 0.02  # between two looks whether all results are there
TERM_SECONDS = 8.0
RESULT_SECONDS = 60.0

Say = Callable[..., None]


def address(database: int = 0) -> str:
    """Of the broker; for Redis, of one of its databases."""
    url = os.environ.get("BENCH_BROKER", "redis://127.0.0.1:6379")
    return f"{url}/{database}" if url.startswith("redis:") else url


def variant() -> str:
    return os.environ.get("BENCH_VARIANT", "")


def folder() -> Path:
    """Of this session: everything in it is removed at the end."""
    return Path(os.environ["BENCH_FOLDER"])


def mode() -> str:
    return os.environ["BENCH_MODE"]


class Peer:
    """The defaults: workers are processes, the broker is Redis."""

    each_by = "one caller"
    bulk_by = ""  # the peer's own way to enqueue many, in words; empty where it has none
    memory_of = "the broker's own count"
    more_memory_jobs = 0  # measured beside the count that all have

    def __init__(self) -> None:
        self.workers: list[subprocess.Popen[bytes]] = []

    def open(self) -> None:
        """Connect the client."""

    def close(self) -> None:
        """Disconnect the client."""

    # --- jobs ---

    def singles_of(self, jobs: int) -> int:
        """How many of the jobs of a filling come one by one."""
        return jobs // 2 if self.bulk_by else jobs

    def enqueue_one(self, kind: str, argument: str) -> Any:
        return self.enqueue_each(kind, [argument])[0]

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> Sequence[Any]:
        """One by one: the next only after the broker's answer to the last."""
        raise NotImplementedError

    def enqueue_bulk(self, kind: str, arguments: Sequence[str]) -> Sequence[Any]:
        return self.enqueue_each(kind, arguments)

    def finished(self) -> int:
        """How many results are visible since the start, at a cost that does not grow with them."""
        raise NotImplementedError

    def wait(self, handles: Sequence[Any], finished_before: int, seconds: float) -> bool:
        """True when all results are visible, False when time is over."""
        deadline = time.monotonic() + seconds
        while self.finished() < finished_before + len(handles):
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def result(self, handle: Any) -> Any:
        """Of one job, waited for in the peer's own way."""
        raise NotImplementedError

    def results(self, handles: Sequence[Any]) -> list[Any]:
        """Of jobs that have ended."""
        return [self.result(handle) for handle in handles]

    def held(self) -> int | None:
        """Unfinished jobs that the broker still knows; None if there is no broker to ask."""
        return None

    def extras(self, say: Say, scale: float) -> None:
        """What only this peer is asked. Nothing is in the queue, and workers are up."""

    def memory_bytes(self) -> int:
        import redis

        used: int = redis.Redis.from_url(address()).info("memory")["used_memory"]
        return used

    # --- workers ---

    def hold(self) -> None:
        """Called before jobs are enqueued that no worker may take yet."""

    def worker_commands(self) -> list[list[str]]:
        """Arguments of Python, one list a process."""
        return []

    def start_workers(self) -> None:
        self.workers = [
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,  # a peer's stop signals do not reach the client
            )
            for arguments in self.worker_commands()
        ]

    def restart_workers(self) -> None:
        """After `kill_workers`: what an operator's supervisor would do."""
        self.start_workers()

    def stop_workers(self) -> None:
        """In order; what is left after a while is killed."""
        tree = self._tree()
        for worker in self.workers:
            worker.send_signal(signal.SIGTERM)
        psutil.wait_procs(tree, timeout=TERM_SECONDS)
        self._kill(tree)

    def kill_workers(self) -> None:
        """SIGKILL to the workers and all their children at once."""
        self._kill(self._tree())

    def _tree(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for worker in self.workers:
            try:
                top = psutil.Process(worker.pid)
                found += [top, *top.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        return found

    def _kill(self, tree: list[psutil.Process]) -> None:
        kill_all(tree)
        for worker in self.workers:
            worker.wait()
        self.workers = []


def kill_all(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def count_of_keys(database: int) -> Callable[[], int]:
    """For peers that keep one key for each result in a database of Redis of its own."""
    import redis

    count: Callable[[], int] = redis.Redis.from_url(address(database)).dbsize
    return count
