"""Tasks that leave something running behind them, for `test_job_children`."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver, resource_tracker, shared_memory
from pathlib import Path
from typing import Any

from jobsvc import task

_FORK = multiprocessing.get_context("fork")
_started_at_import = subprocess.Popen(["sleep", "600"])
_pools: list[Any] = []
_STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
_LATE = (
    "import sys, time; print(1, flush=True); time.sleep(1); print('late words', flush=True); time.sleep(600)"
)
_POLITE = """if True:
    import signal, sys, time
    def leave(*_):
        print("last words", flush=True)
        sys.exit()
    signal.signal(signal.SIGTERM, leave)
    print(1, flush=True)
    time.sleep(600)"""


def _start(code: str, **options: Any) -> int:
    """The process's pid, when it has begun."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **options)
    assert child.stdout is not None
    child.stdout.readline()
    return child.pid


@task
def own_pid() -> int:
    return os.getpid()


@task
def pid_of_the_module() -> int | None:
    return None if _started_at_import.poll() is not None else _started_at_import.pid


@task
def leave_a_child() -> int:
    return subprocess.Popen([sys.executable, "-c", _LATE]).pid


@task
def leave_a_session() -> int:
    return _start(_STUBBORN, start_new_session=True)


@task
def leave_a_stranger() -> int:
    """A daemon: another session, no environment, another program, and its parent is gone."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if (pid := os.fork()) != 0:
            os.write(writing, str(pid).encode())
            os._exit(0)
        os.execve("/bin/sleep", ["sleep", "600"], {})
    os.wait()
    return int(os.read(reading, 20))


@task
def leave_a_child_of_a_thread() -> int:
    pids: list[int] = []
    thread = threading.Thread(target=lambda: pids.append(_start(_LATE)))
    thread.start()
    thread.join()
    return pids[0]


@task
def leave_a_fork() -> int:
    if (pid := os.fork()) == 0:
        time.sleep(600)
    return pid


@task
def leave_a_polite_child() -> int:
    child = subprocess.Popen([sys.executable, "-c", _POLITE])
    time.sleep(1)
    return child.pid


@task
def leave_a_pool() -> int:
    """One that starts its processes again when they end."""
    pool = _FORK.Pool(2)
    _pools.append(pool)
    return int(pool.apply(os.getpid))


@task
def use_the_pool() -> int:
    if not _pools:
        _pools.append(_FORK.Pool(2))
    return int(_pools[0].apply_async(abs, (-1,)).get(10))


@task
def use_shared_memory() -> int:
    """multiprocessing starts a process that keeps books of it. Returns its pid."""
    shared = shared_memory.SharedMemory(create=True, size=1000)
    shared.close()
    shared.unlink()
    return int(resource_tracker._resource_tracker._pid or 0)  # type: ignore[attr-defined]


@task
def keep_shared_memory() -> int:
    _pools.append(shared_memory.SharedMemory(create=True, size=1000))
    return int(resource_tracker._resource_tracker._pid or 0)  # type: ignore[attr-defined]


@task
def use_a_fork_server() -> int:
    """Returns its pid."""
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        pool.apply(abs, (-1,))
    return int(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]


@task
def leave_a_large_child(megabytes: int, seconds: float = 0) -> int:
    pid = _start(f"import time; kept = b'x' * ({megabytes} << 20); print(1, flush=True); time.sleep(600)")
    time.sleep(seconds)
    return pid


@task
def leave_a_dead_child() -> int:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return child.pid


@task
def share_memory(megabytes: int, forks: int, seconds: float) -> int:
    """Forks that all use the same pages for a while."""
    shared = mmap.mmap(-1, megabytes << 20)
    for at in range(0, len(shared), mmap.PAGESIZE):
        shared[at] = 1
    kept = b"x" * (megabytes << 20)
    children = [_FORK.Process(target=_read_all, args=(shared, kept, seconds)) for _ in range(forks)]
    for each in children:
        each.start()
    for each in children:
        each.join()
    return sum(each.exitcode or 0 for each in children)


def _read_all(shared: mmap.mmap, kept: bytes, seconds: float) -> None:
    sum(shared[at] + kept[at] for at in range(0, len(shared), mmap.PAGESIZE))
    time.sleep(seconds)


@task
def fork_twice_and_write(path: str) -> str:
    """A fork whose own files have the numbers that were the job process's, and a fork of that one."""
    if (first := os.fork()) == 0:
        files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(30)]
        if (second := os.fork()) == 0:
            for fd in files:
                os.write(fd, b".")
            os._exit(0)
        os.waitpid(second, 0)
        for fd in files:
            os.write(fd, b".")
        os._exit(0)
    os.waitpid(first, 0)
    return Path(path).read_text()


@task
def print_in_c(text: str) -> None:
    """Without a newline, and not flushed."""
    ctypes.CDLL(None).printf(b"%s", text.encode())


@task
def print_and_come_back_twice() -> str:
    if (pid := os.fork()) == 0:
        print("from the fork", end="")
        return "child"
    os.waitpid(pid, 0)
    return "parent"
