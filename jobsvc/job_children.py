"""What a job has started ends with it: the job process's side of `process_tree`.

The job process is a subreaper, so whatever a job started is its descendant for as long as it runs, also
after a change of session and the death of what was in between. One system call tells whether there is any.

What is left when the task has returned gets SIGTERM, the time of a kill to end in, and SIGKILL. Only then
does the job end: what it said until then is the job's, and none of it is there for the next one. What the
tasks' modules started as they were imported is nobody's leftover: it stays.

multiprocessing starts processes of its own, for shared memory and for the methods spawn and forkserver. They
ignore SIGTERM, and end when nobody holds their pipe: it is closed, and the next job that needs them starts
others. Shared memory that is still open then has lost its name, so that process is renewed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

from .process_tree import children_of, descendants_of

_P_ALL = 0
_ANY_CHILD = os.WNOHANG | os.WEXITED | os.WNOWAIT | 0x4000_0000  # __WALL: of every kind; none is buried
_LOOK_SECONDS = 0.002
_TRACKERS = ("multiprocessing", "joblib.externals.loky.backend", "loky.backend")
_SHARED_MEMORY = b" /dev/shm/"
_AFTER_KILL_SECONDS_MAX = 1.0  # then the process ends, and the worker goes on killing


class JobChildren:
    """The processes that jobs of this process have started. Made when its tasks are loaded."""

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._pid = os.getpid()
        self._waitid = ctypes.CDLL(None).waitid
        self._kept = set(children_of(self._pid))
        self._clock, self._sleep = time.monotonic, time.sleep  # a job may replace those of the module

    def any(self) -> bool:
        if self._kept:
            return not self._kept.issuperset(children_of(self._pid))
        return bool(self._waitid(_P_ALL, 0, None, _ANY_CHILD) == 0)

    def end(self) -> bool:
        """End all that is left. True if something of it still ran, or is missed."""
        left = self._living()
        if not left:
            return False
        helpers = _release_helpers(self._kept)
        is_missed = bool(left - helpers) or _has_shared_memory()
        asked: set[int] = set()
        kill_at = self._clock() + self._grace_seconds
        while left and self._clock() < kill_at + _AFTER_KILL_SECONDS_MAX:
            number = signal.SIGTERM if self._clock() < kill_at else signal.SIGKILL
            for pid in left if number is signal.SIGKILL else left - asked:
                _signal(pid, number)
            asked |= left
            self._sleep(_LOOK_SECONDS)
            left = self._living()
        return is_missed

    def _living(self) -> set[int]:
        """Those that run. What has ended is buried."""
        living = set()
        for pid in set(children_of(self._pid)) - self._kept:
            if not _is_buried(pid):
                living.add(pid)
                living.update(descendants_of(pid))
        return living


def _release_helpers(kept: set[int]) -> set[int]:
    """Let go of the processes of multiprocessing's own, but for those to be kept. Their numbers."""
    released: set[int] = set()
    for package in _TRACKERS:
        tracker: Any = getattr(sys.modules.get(f"{package}.resource_tracker"), "_resource_tracker", None)
        if getattr(tracker, "_fd", None) is not None and tracker._pid not in kept:
            os.close(tracker._fd)
            released.add(tracker._pid)
            tracker._fd = tracker._pid = None
    server: Any = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    if getattr(server, "_forkserver_alive_fd", None) is not None and server._forkserver_pid not in kept:
        os.close(server._forkserver_alive_fd)
        released.add(server._forkserver_pid)
        server._forkserver_alive_fd = server._forkserver_pid = server._forkserver_address = None
    return released


def _has_shared_memory() -> bool:
    with open("/proc/self/maps", "rb") as maps:
        return any(_SHARED_MEMORY in line for line in maps)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended meanwhile, or is another user's now: the worker may have more rights


def _is_buried(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True  # the job has done it
