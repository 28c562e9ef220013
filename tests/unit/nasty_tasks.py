"""Tasks that do what tasks should not, for `test_job_runner`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobsvc import task

_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
_left_open: list[asyncio.Task[None]] = []


@task
def say(*words: str) -> None:
    print(*words)


@task
def say_in_c(text: str) -> None:
    ctypes.CDLL(None).write(1, text.encode(), len(text))
    ctypes.CDLL(None).write(2, b"!", 1)


@task
def say_in_grandchild(text: str) -> None:
    subprocess.run(["sh", "-c", f"sh -c 'echo {text}; echo {text} >&2'"], check=True)


@task
def say_without_newline(text: str) -> None:
    sys.stdout.write(text)


@task
def note(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text + "\n")


@task
def segfault() -> None:
    print("about to go", flush=True)
    ctypes.string_at(0)


@task
def eat_memory() -> int:
    eaten = []
    while True:
        eaten.append(b"x" * (1 << 20))
        time.sleep(0.0005)


@task
def ignore_term_with_children(pids: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    same_group = subprocess.Popen([sys.executable, "-c", _STUBBORN])
    own_session = subprocess.Popen([sys.executable, "-c", _STUBBORN], start_new_session=True)
    _publish(pids, same_group.pid, own_session.pid)
    time.sleep(600)


@task
def leave_a_daemon(pids: str) -> None:
    """Forks twice and changes its session in between, as daemons do, and goes on for long."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writing, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    _publish(pids, int(os.read(reading, 20)))
    time.sleep(600)


def _publish(path: str, *pids: int) -> None:
    """Written elsewhere and renamed: whoever sees the file sees all of it."""
    Path(path + ".new").write_text(" ".join(map(str, [os.getpid(), *pids])))
    os.rename(path + ".new", path)


@task
def hold_the_lock() -> int:
    """One call into C that lets nobody else run, no signal handler of Python either."""
    return sum(range(10**14))


@task
def print_megabytes(megabytes: int) -> None:
    line = "x" * 1023 + "\n"
    print("first line")
    for _ in range(megabytes):
        sys.stdout.write(line * 1024)
    print("last line")


@task
def leave(code: int) -> None:
    os._exit(code)


@task
def kill_myself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(600)


@task
def close_stdout(how: str) -> None:
    print("before")
    if how == "fd":
        os.close(1)
    elif how == "object":
        sys.stdout.close()
    elif how == "replaced":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  that it stays open is the point
    else:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@task
def close_everything() -> None:
    os.closerange(3, 256)


@task
def raise_it(what: str) -> None:
    raise {
        "SystemExit": SystemExit(3),
        "KeyboardInterrupt": KeyboardInterrupt(),
        "GeneratorExit": GeneratorExit(),
        "ValueError": ValueError("no good: é"),
        "Mute": Mute(),
        "Interrupting": Interrupting(),
        "Unnamed": Unnamed(),
        "RecursionError": RecursionError("deep"),
        "long": ValueError("x" * 1_000_000),
    }[what]


class Interrupting(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    @property
    def __cause__(self) -> None:  # type: ignore[override]
        raise KeyboardInterrupt


class _WithoutName(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise SystemExit


class Unnamed(Exception, metaclass=_WithoutName):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I cannot say")


@task
def recurse() -> None:
    recurse()


@task
def give_back(what: str) -> object:
    circle: list[object] = []
    circle.append(circle)
    return {
        "object": object(),
        "circle": circle,
        "lambda": {"a": lambda: 0},
        "bytes": b"\x00\xff",
        "large": b"x" * 3_000_000,
        "set": {1},
        "tuple": (1, (2,)),
        "inner": {"images": ["", b"\x00\xff"]},
        "nan": {"loss": float("nan")},
        "number as key": {1: "a"},
        "surrogate": "\ud800",
        "evil": Evil(a=1),
    }[what]


class Evil(dict[str, int]):
    def __eq__(self, other: object) -> bool:
        raise SystemExit

    __hash__ = None  # type: ignore[assignment]


@task
def fork_and_return() -> str:
    """Both halves come back."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return "parent"
    return "child"


@task
async def sleep_async(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@task
async def loop_id() -> int:
    return id(asyncio.get_running_loop())


@task
async def leave_a_coroutine() -> None:
    async def chatter() -> None:
        while True:
            print("still here")
            await asyncio.sleep(0)

    _left_open.append(asyncio.create_task(chatter()))
    await asyncio.sleep(0)


@task
def clean_up(path: str) -> None:
    try:
        print("waiting", flush=True)
        time.sleep(600)
    finally:
        Path(path).write_text("cleaned")


@task
def turn_into_another(path: str) -> None:
    try:
        Path(path).write_text("up")
        time.sleep(600)
    except SystemExit as error:
        raise ValueError("something else") from error


@task
def finish_in_grace(path: str) -> str:
    try:
        Path(path).write_text("up")
        time.sleep(600)
    except SystemExit:
        pass
    return "done after all"


@task
def environment(name: str) -> str | None:
    return os.environ.get(name)


@task
def my_title() -> str:
    return Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()


@task
def print_slowly(path: str) -> None:
    print("early", flush=True)
    while not Path(path).exists():
        time.sleep(0.02)
    print("late")


@task
def pids_of(path: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    _publish(path, child.pid)
    sum(range(10**14))
