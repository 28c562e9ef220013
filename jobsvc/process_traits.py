"""What the system keeps of a process, and a job may change: how it is read, and how it is put back.

A `Trait` without `put_back`, and one that reads differently after it, is there again in a new process only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enumerations of everything, which takes twenty times as long
import ctypes
import os
import platform
import resource
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

_LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
_SIGNALS = sorted(int(number) for number in signal.valid_signals())
_LIBC_SIGNALS = 1 << 31 | 1 << 32  # 32 and 33: the C library takes them when it first needs them
_PROC_BYTES = 8192
_IOPRIO_CALLS = {"x86_64": (252, 251), "aarch64": (31, 30)}  # numbers of ioprio_get and ioprio_set
# what prctl gets by value, and how it is set
_PRCTL = {"dumpable": (3, 4), "keepcaps": (7, 8), "timer slack": (30, 29)}
_PRCTL_INTO = {"death signal": (2, 1), "subreaper": (37, 36)}  # gets into an int


class Trait(NamedTuple):
    """One thing that a process has."""

    name: str
    read: Callable[[], Any]
    put_back: Callable[[Any], None] | None = None


def system_traits() -> list[Trait]:
    """In the order in which they have to be put back."""
    traits = [
        Trait("timers", lambda: [_signal.getitimer(which) != (0.0, 0.0) for which in range(3)], _stop_timers),
        *_folder(),
        _environment(),
        Trait("time zone", lambda: (time.tzname, time.timezone, time.altzone), lambda _: time.tzset()),
        Trait("signal mask", _read_mask, _put_mask),
        Trait("signal handlers", lambda: tuple(map(_signal.getsignal, _SIGNALS)), _put_handlers),
        Trait("wake-up descriptor", _read_wakeup, _signal.set_wakeup_fd),
        Trait("blocking", lambda: (os.get_blocking(1), os.get_blocking(2)), _put_blocking),
        Trait("users", lambda: (os.getresuid(), os.getresgid(), os.getgroups()), _put_users),
        Trait("session", lambda: (os.getsid(0), os.getpgrp())),
        Trait("root folder", lambda: (os.stat("/").st_dev, os.stat("/").st_ino)),
        Trait("priority", lambda: os.getpriority(os.PRIO_PROCESS, 0), _put_priority),
        Trait("scheduler", _read_scheduler, _put_scheduler),
        Trait("processors", lambda: os.sched_getaffinity(0), lambda fresh: os.sched_setaffinity(0, fresh)),
        Trait("limits", lambda: tuple(map(resource.getrlimit, _LIMITS)), _put_limits),
        *_process_controls(),
        *_kept_in_proc(),
    ]
    if (machine := platform.machine()) in _IOPRIO_CALLS:
        traits.append(_io_priority(*_IOPRIO_CALLS[machine]))
    return traits


def _folder() -> Iterator[Trait]:
    """By a descriptor, so that it can be found again whatever has become of its name.

    Where the name is as it was, nobody looks at what has it: that takes ten times as long."""
    try:
        fd = os.open(".", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return  # this process may not be where it is; no job can be worse off

    name, place = os.getcwd(), os.fstat(fd)

    def read() -> bool:
        try:
            if os.getcwd() == name:
                return True
        except FileNotFoundError:
            pass  # it was removed
        return os.path.samestat(os.stat("."), place)

    yield Trait("current folder", read, lambda _: os.fchdir(fd))


def _environment() -> Trait:
    """Python's and C's: code in C may set variables that `os.environ` does not show.

    C's is compared by the addresses of its texts, which is quick; a text that is set again has another.
    """
    libc = ctypes.CDLL(None)
    block = ctypes.c_void_p.in_dll(libc, "environ")
    original, fresh = os.environ, dict(os.environb)
    texts = _texts(block.value)
    of_c_alone = [pair for pair in (text.split(b"=", 1) for text in texts) if pair[0] not in fresh]
    size = (len(texts) + 1) * ctypes.sizeof(ctypes.c_void_p)  # with the null at its end
    addresses = [ctypes.string_at(block.value, size) if block.value else b""]

    def read() -> bool:
        now = ctypes.string_at(block.value, size) if block.value else b""
        return now == addresses[0] and os.environ is original

    def put_back(_: Any) -> None:
        os.environ = original  # noqa: B003  the one that the os module itself works with
        os.environb.clear()
        libc.clearenv()
        os.environb.update(fresh)
        for name, *value in of_c_alone:
            libc.setenv(name, b"".join(value), 1)
        time.tzset()
        addresses[0] = ctypes.string_at(block.value, size) if block.value else b""

    return Trait("environment", read, put_back)


def _texts(block: int | None) -> list[bytes]:
    """Of an array of texts in C, with a null at its end."""
    texts: list[bytes] = []
    if block:
        pointers = ctypes.cast(block, ctypes.POINTER(ctypes.c_char_p))
        while (text := pointers[len(texts)]) is not None:
            texts.append(text)
    return texts


def _read_mask() -> set[int]:
    return set(_signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def _put_mask(fresh: set[int]) -> None:
    for number in _signal.sigpending() - set(fresh):
        handler = _signal.signal(number, _signal.SIG_IGN)  # what has been held back is dropped
        _signal.signal(number, _signal.SIG_DFL if handler is None else handler)
    _signal.pthread_sigmask(signal.SIG_SETMASK, fresh)


def _read_wakeup() -> int:
    fd: int = _signal.set_wakeup_fd(-1)
    if fd != -1:
        _signal.set_wakeup_fd(fd)
    return fd


def renew_handlers() -> None:
    """After `siginterrupt`: calls into the system shall end for signals again."""
    for number in _SIGNALS:
        if callable(handler := _signal.getsignal(number)):
            _signal.signal(number, handler)


def _put_handlers(fresh: tuple[Any, ...]) -> None:
    for number, handler in zip(_SIGNALS, fresh, strict=True):
        if handler is not None and _signal.getsignal(number) != handler:
            _signal.signal(number, handler)


def _stop_timers(fresh: list[bool]) -> None:
    for which, runs in enumerate(fresh):
        if not runs:
            _signal.setitimer(which, 0.0)


def _put_blocking(fresh: tuple[bool, bool]) -> None:
    os.set_blocking(1, fresh[0])
    os.set_blocking(2, fresh[1])


def _put_users(fresh: tuple[tuple[int, int, int], tuple[int, int, int], list[int]]) -> None:
    users, groups, others = fresh
    os.setresuid(*users)
    os.setresgid(*groups)
    os.setgroups(others)


def _put_priority(fresh: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, fresh)


def _read_scheduler() -> tuple[int, int]:
    return os.sched_getscheduler(0), os.sched_getparam(0).sched_priority


def _put_scheduler(fresh: tuple[int, int]) -> None:
    os.sched_setscheduler(0, fresh[0], os.sched_param(fresh[1]))


def _put_limits(fresh: tuple[tuple[int, int], ...]) -> None:
    for which, pair in zip(_LIMITS, fresh, strict=True):
        if resource.getrlimit(which) != pair:
            resource.setrlimit(which, pair)


def _process_controls() -> Iterator[Trait]:
    prctl = ctypes.CDLL(None).prctl

    def put(set_: int, fresh: int) -> None:
        prctl(set_, fresh, 0, 0, 0)

    def read(get: int) -> int:
        return int(prctl(get, 0, 0, 0, 0))

    def read_into(get: int) -> int:
        value = ctypes.c_int()
        prctl(get, ctypes.byref(value), 0, 0, 0)
        return value.value

    for reading, numbers in ((read, _PRCTL), (read_into, _PRCTL_INTO)):
        for name, (get, set_) in numbers.items():
            yield Trait(name, partial(reading, get), partial(put, set_))


def _kept_in_proc() -> Iterator[Trait]:
    """What only files tell."""
    yield Trait("out-of-memory score", _reader("oom_score_adj"), _put_score)
    yield Trait("timers of C code", _reader("timers"))


def _reader(name: str) -> Callable[[], bytes]:
    """Reads a file of /proc/self. It stays open: to open it takes longer than all the rest."""
    try:
        fd = os.open(f"/proc/self/{name}", os.O_RDONLY)
    except OSError:
        return bytes  # not every system has it
    return lambda: os.pread(fd, _PROC_BYTES, 0)


def rights() -> Trait:
    """To be read when all the rest has been put back."""
    status = _reader("status")
    return Trait("signals and rights of C code", lambda: _rights(status()))


def _rights(status: bytes) -> tuple[int, int, bytes]:
    """Signals ignored and caught, however that came to be; capabilities, seccomp and the like."""
    at, end = status.find(b"\nSigIgn:"), status.find(b"\nSpeculation")
    if not 0 <= at < end:
        return 0, 0, b""  # this system does not tell
    ignored, caught, rest = status[at + 1 : end].split(b"\n", 2)
    return _signals(ignored), _signals(caught), rest


def _signals(line: bytes) -> int:
    return int(line.split()[1], 16) & ~_LIBC_SIGNALS


def _put_score(fresh: bytes) -> None:
    with open("/proc/self/oom_score_adj", "wb") as score:
        score.write(fresh)


def _io_priority(get: int, set_: int) -> Trait:
    syscall = ctypes.CDLL(None).syscall
    process = 1  # IOPRIO_WHO_PROCESS
    return Trait(
        "I/O priority", lambda: syscall(get, process, 0), lambda fresh: syscall(set_, process, 0, fresh)
    )
