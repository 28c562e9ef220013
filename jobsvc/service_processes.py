"""The processes of a service on this machine: which they are, and how they are ended.

What belongs to a service is told by a mark in its environment, a random text that `up` gives to the Ray that
it starts: Ray's processes, actors, HAProxy, jobs and what jobs start all inherit it, also when they have
lost their parent. Nothing else carries it, so nothing else is ended, whatever its name or its arguments.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator

import psutil

from .discovery import ServiceInfo
from .errors import Unavailable

INSTANCE_VARIABLE = "JOBSVC_INSTANCE"
TERM_SECONDS = 3.0
KILL_SECONDS = 15.0
# They start again what ends, and keep nothing that must be saved.
SUPERVISORS = frozenset({"gcs_server", "raylet"})


def service_processes(info: ServiceInfo) -> Iterator[psutil.Process]:
    """Every living process of the service's Ray, its workers and their jobs."""
    if info.instance is None:
        return
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if not _carries(process, info.instance):
            continue
        found[process.pid] = process
        try:
            # a child that has cleaned its environment still has its parent
            for child in process.children(recursive=True):
                found.setdefault(child.pid, child)
        except psutil.Error:
            continue
    found.pop(os.getpid(), None)  # `down` may be called by a job
    yield from (process for process in found.values() if _lives(process))


def _carries(process: psutil.Process, instance: str) -> bool:
    try:
        return bool(process.environ().get(INSTANCE_VARIABLE) == instance)
    except (psutil.Error, OSError):
        return False  # gone, or another user's


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def has_supervisors(info: ServiceInfo) -> bool:
    """True if the service's Ray lives: what has died in it will come back by itself."""
    return {_name(process) for process in service_processes(info)} >= SUPERVISORS


def end_processes(info: ServiceInfo, say: Callable[[str], None]) -> int:
    """End what belongs to the service's own Ray: TERM, then KILL, until nothing is left. Returns how many."""
    ended: set[int] = set()
    deadline = time.monotonic() + KILL_SECONDS
    while processes := list(service_processes(info)):
        if time.monotonic() > deadline:
            left = ", ".join(str(process.pid) for process in processes)
            raise Unavailable(f"these processes do not end: {left}")
        if not ended:
            say(f"ending {len(processes)} processes")
        ended |= {process.pid for process in processes}
        _signal((process for process in processes if _name(process) in SUPERVISORS), "kill")
        _signal(processes, "terminate")
        _, alive = psutil.wait_procs(processes, timeout=TERM_SECONDS)
        _signal(alive, "kill")
        psutil.wait_procs(alive, timeout=TERM_SECONDS)
    return len(ended)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _signal(processes: Iterable[psutil.Process], method: str) -> None:
    for process in processes:
        try:
            getattr(process, method)()
        except psutil.NoSuchProcess:
            continue
