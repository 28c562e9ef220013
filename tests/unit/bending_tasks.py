"""Tasks that bend their process, and tasks that see how it is, for `test_process_state`."""

from __future__ import annotations

import asyncio
import atexit
import builtins
import contextvars
import csv
import ctypes
import decimal
import faulthandler
import gc
import http.client
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobsvc import task

_LIBC = ctypes.CDLL(None)
_setting = contextvars.ContextVar("setting", default="fresh")
_kept: list[Any] = []
BENDS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}  # what: how it is bent, how it is seen
_module_logger = logging.getLogger("of.the.module")
_module_logger.addHandler(logging.NullHandler())


def bend(see: Callable[[], Any]) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Names what the function bends as the function."""

    def add(function: Callable[[], Any]) -> Callable[[], Any]:
        BENDS[function.__name__] = function, see
        return function

    return add


@task
def bend_it(what: str) -> int:
    """The process's pid."""
    BENDS[what][0]()
    return os.getpid()


@task
def bend_it_for_longer(what: str) -> int:
    BENDS[what][0]()
    time.sleep(0.03)
    return os.getpid()


@task
def see_it(what: str) -> str:
    return repr(BENDS[what][1]())


# --- what the system keeps ------------------------------------------------------------------------


@bend(os.getcwd)
def folder() -> None:
    os.chdir("/")


@bend(os.getcwd)
def folder_that_is_gone() -> None:
    with tempfile.TemporaryDirectory() as gone:
        os.chdir(gone)


@bend(os.getcwd)
def folder_in_c() -> None:
    _LIBC.chdir(b"/")


def see_umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@bend(see_umask)
def umask() -> None:
    os.umask(0o777)


@bend(see_umask)
def umask_in_c() -> None:
    _LIBC.umask(0)


def see_environment() -> tuple[Any, ...]:
    _LIBC.getenv.restype = ctypes.c_char_p
    return os.environ.get("BENT"), _LIBC.getenv(b"BENT"), os.environ.get("PATH"), _LIBC.getenv(b"PATH")


@bend(see_environment)
def environment() -> None:
    os.environ["BENT"] = "yes"
    del os.environ["PATH"]


@bend(see_environment)
def environment_emptied() -> None:
    os.environ.clear()


@bend(see_environment)
def environment_replaced() -> None:
    os.environ = {"BENT": "yes"}  # type: ignore[assignment]  # noqa: B003


@bend(see_environment)
def environment_in_c() -> None:
    _LIBC.setenv(b"BENT", b"yes", 1)


@bend(lambda: (time.tzname, time.localtime(0).tm_hour))
def time_zone() -> None:
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()


@bend(lambda: [resource.getrlimit(which) for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)])
def limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@bend(lambda: resource.getrlimit(resource.RLIMIT_NPROC))
def limit_for_good() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (1000, 1000))


@bend(lambda: os.getpriority(os.PRIO_PROCESS, 0))
def priority() -> None:
    os.nice(5)


@bend(lambda: os.sched_getaffinity(0))
def processors() -> None:
    os.sched_setaffinity(0, {0})


@bend(lambda: os.sched_getscheduler(0))
def scheduler() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


@bend(lambda: [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD)])
def handlers() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@bend(lambda: open("/proc/self/status").read().partition("SigIgn")[2].split()[1])  # noqa: SIM115
def handlers_in_c() -> None:
    _LIBC.signal(signal.SIGUSR2, 1)


@bend(lambda: signal.set_wakeup_fd(-1))
def wakeup_descriptor() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    _kept.append(reading)
    signal.set_wakeup_fd(writing)


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def see_restart() -> bool:
    """Whether a system call goes on after a SIGTERM, and the task's `finally` has to wait for it."""
    action = _Action()
    _LIBC.sigaction(signal.SIGTERM, None, ctypes.byref(action))
    return bool(action.flags & 0x1000_0000)


@bend(see_restart)
def interruptions() -> None:
    signal.siginterrupt(signal.SIGTERM, False)


@bend(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()))
def mask() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    os.kill(os.getpid(), signal.SIGUSR1)


@bend(lambda: time.sleep(0.1))
def alarm() -> None:
    """It would end the process, or raise in the job that runs then."""
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def _too_late(*_: object) -> None:
    raise TimeoutError("an alarm of another job")


@bend(lambda: time.sleep(0.1))
def alarm_with_a_handler() -> None:
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)


@bend(lambda: time.sleep(0.1))
def alarm_at_once() -> None:
    """It may be heard while the process is put in order."""
    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.001)
    try:
        time.sleep(0.01)
    except TimeoutError:
        pass


@bend(lambda: sum(range(10**6)))
def timer_of_cpu_time() -> None:
    signal.signal(signal.SIGPROF, _too_late)
    signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001)


@bend(lambda: _LIBC.prctl(3, 0, 0, 0, 0))
def dumpable() -> None:
    _LIBC.prctl(4, 0, 0, 0, 0)


@bend(lambda: _LIBC.prctl(39, 0, 0, 0, 0))
def new_privileges() -> None:
    """For good."""
    _LIBC.prctl(38, 1, 0, 0, 0)


@bend(lambda: open("/proc/self/oom_score_adj").read())  # noqa: SIM115
def out_of_memory_score() -> None:
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")


@bend(lambda: (os.getresuid(), os.getresgid()))
def users() -> None:
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


# --- what the interpreter keeps -------------------------------------------------------------------


@bend(lambda: [sys.path, sys.argv])
def paths() -> None:
    sys.path.insert(0, "/nowhere")
    sys.argv.append("bent")


@bend(lambda: sys.path)
def path_replaced() -> None:
    sys.path = []


class _Finder:
    @staticmethod
    def find_spec(*_: Any) -> None: ...


@bend(lambda: [len(sys.meta_path), len(sys.path_hooks)])
def importers() -> None:
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
    sys.path_hooks = []


@bend(lambda: getattr(sys, "tracebacklimit", None))
def length_of_tracebacks() -> None:
    sys.tracebacklimit = 0


@bend(lambda: [sys.displayhook, sys.argv, builtins.input])
def deleted() -> None:
    del sys.displayhook, sys.argv, builtins.input


def see_audits() -> bool:
    _audits.clear()
    os.listdir("/")
    return bool(_audits)


_audits: list[str] = []


@bend(see_audits)
def audit_hook() -> None:
    """For good."""
    sys.addaudithook(lambda event, _: _audits.append(event) if event == "os.listdir" else None)


@bend(lambda: [sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook, sys.breakpointhook])
def hooks() -> None:
    sys.excepthook = sys.unraisablehook = threading.excepthook = lambda *_: None
    sys.displayhook = sys.breakpointhook = print


@bend(lambda: (sys.gettrace(), sys.getprofile(), threading.gettrace()))
def tracing() -> None:
    sys.settrace(lambda *_: None)
    sys.setprofile(lambda *_: None)
    threading.settrace(lambda *_: None)


@bend(lambda: (sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits()))
def numbers() -> None:
    sys.setrecursionlimit(50_000)
    sys.setswitchinterval(1.0)
    sys.set_int_max_str_digits(0)


@bend(lambda: (gc.isenabled(), gc.get_threshold(), gc.callbacks, gc.get_freeze_count()))
def collection() -> None:
    gc.disable()
    gc.freeze()
    gc.set_threshold(1, 1, 1)


@bend(lambda: [warnings.filters, warnings.showwarning])
def warning_filters() -> None:
    warnings.simplefilter("error")
    warnings.showwarning = print  # type: ignore[assignment]


@bend(lambda: [logging.getLevelName(20), logging._warnings_showwarning])  # type: ignore[attr-defined]
def logging_of_warnings() -> None:
    logging.captureWarnings(True)
    logging.addLevelName(20, "BENT")


def see_module_logger() -> list[Any]:
    handler = _module_logger.handlers[0]
    return [_module_logger.propagate, _module_logger.disabled, *see_handler(handler)]


def see_handler(handler: logging.Handler) -> list[Any]:
    return [handler.level, handler.formatter, handler.filters]


@bend(see_module_logger)
def logger_alone() -> None:
    _module_logger.propagate = False


@bend(see_module_logger)
def logger_disabled() -> None:
    _module_logger.disabled = True


@bend(see_module_logger)
def handler_of_the_module() -> None:
    handler = _module_logger.handlers[0]
    handler.setLevel(logging.ERROR)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda _: False)


def see_logging() -> list[Any]:
    named = [logging.getLogger(name) for name in ("of.the.module", "of_a_job")]
    return [
        *((each.level, each.handlers, each.filters) for each in (logging.root, *named)),
        [each.disabled for each in named],
        logging.root.manager.disable,
        logging.getLogger("of.the.module").isEnabledFor(logging.INFO),
    ]


@bend(see_logging)
def root_logger() -> None:
    logging.basicConfig(level=logging.DEBUG)


@bend(see_logging)
def logging_off() -> None:
    logging.disable(logging.CRITICAL)


@bend(see_logging)
def named_loggers() -> None:
    for name in ("of.the.module", "of_a_job"):
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).disabled = True


@bend(lambda: (locale.setlocale(locale.LC_ALL, None), locale.localeconv()["decimal_point"]))
def language() -> None:
    for name in ("C", "C.UTF-8", "POSIX"):
        if locale.setlocale(locale.LC_ALL, None) != name:
            locale.setlocale(locale.LC_ALL, name)
            return


@bend(lambda: (decimal.getcontext().prec, decimal.DefaultContext.prec, decimal.getcontext().rounding))
def decimals() -> None:
    decimal.getcontext().prec = 3
    decimal.getcontext().rounding = decimal.ROUND_UP


@bend(lambda: decimal.DefaultContext.prec)
def default_decimals() -> None:
    decimal.DefaultContext.prec = 3


@bend(_setting.get)
def context_variable() -> None:
    _setting.set("bent")


@bend(lambda: (socket.getdefaulttimeout(), tempfile.gettempdir(), faulthandler.is_enabled()))
def time_out_and_others() -> None:
    socket.setdefaulttimeout(0.001)
    tempfile.tempdir = "/nowhere"
    faulthandler.disable()


@bend(tracemalloc.is_tracing)
def memory_tracing() -> None:
    tracemalloc.start()


@bend(lambda: [builtins.print, builtins.open])
def builtin_functions() -> None:
    builtins.print = builtins.open = lambda *_, **__: None  # type: ignore[assignment]


@bend(lambda: [sys.get_coroutine_origin_tracking_depth(), sys.getdlopenflags()])
def tracking_and_loading() -> None:
    sys.set_coroutine_origin_tracking_depth(5)
    sys.setdlopenflags(257)


@bend(lambda: (time.time() > 1e9, os.getcwd()))
def standard_library() -> None:
    time.time = lambda: 0.0
    os.getcwd = lambda: "bent"


def see_loop() -> tuple[bool, ...]:
    loop = asyncio.get_event_loop_policy().get_event_loop()
    return loop.is_closed(), loop.get_debug(), isinstance(loop, asyncio.SelectorEventLoop)


@bend(see_loop)
def loop_closed() -> None:
    asyncio.get_event_loop_policy().get_event_loop().close()


@bend(see_loop)
def loop_set_to_none() -> None:
    asyncio.run(asyncio.sleep(0))


@bend(see_loop)
def loop_policy() -> None:
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    asyncio.set_event_loop(None)


@bend(see_loop)
def loop_in_debug() -> None:
    loop = asyncio.get_event_loop_policy().get_event_loop()
    loop.run_until_complete(asyncio.sleep(0.0001))
    loop.set_debug(True)


@bend(lambda: _loop().run_until_complete(asyncio.sleep(0.001, "slept")))
def loop_stopped() -> None:
    _loop().stop()
    _loop().slow_callback_duration = 9.0


@bend(lambda: _loop().run_until_complete(_in_a_thread()))
def executor_shut_down() -> None:
    """As for ever: nothing could be run in a thread by any later job."""
    _loop().run_until_complete(_in_a_thread())
    _loop().run_until_complete(_loop().shutdown_default_executor())


def _loop() -> Any:
    return asyncio.get_event_loop_policy().get_event_loop()


async def _in_a_thread() -> int:
    return await asyncio.to_thread(abs, -1)


@bend(lambda: [csv.field_size_limit(), threading.current_thread().name, sys.modules["csv"] is csv])
def library() -> None:
    csv.field_size_limit(10)
    threading.current_thread().name = "bent"
    sys.modules["csv"] = json


@bend(lambda: [ssl._create_default_https_context.__name__, urllib.request._opener])  # type: ignore[attr-defined]
def web_clients() -> None:
    """The next one would not look at certificates."""
    ssl._create_default_https_context = ssl._create_unverified_context
    urllib.request.install_opener(urllib.request.build_opener())


@bend(lambda: multiprocessing.get_start_method(allow_none=True))
def start_method() -> None:
    """It can be set once in a process."""
    multiprocessing.set_start_method("spawn")


@bend(lambda: [json.JSONEncoder.default.__name__, http.client.HTTPConnection.debuglevel])
def standard_class() -> None:
    json.JSONEncoder.default = lambda *_: "bent"  # type: ignore[method-assign]
    http.client.HTTPConnection.debuglevel = 1


@bend(lambda: sys.stdin.read())
def standard_input() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"bent")
    os.close(writing)
    os.dup2(reading, 0)


@bend(lambda: sys.stdin.read())
def standard_input_closed() -> None:
    sys.stdin.close()


@bend(lambda: [vars(sys.stdout), vars(sys.stderr)])
def writing_of_the_object() -> None:
    sys.stdout.write = sys.stderr.flush = lambda *_: 0  # type: ignore[method-assign, assignment, union-attr]


@bend(lambda: sys.stdout.encoding)
def output_deleted() -> None:
    del sys.stdout


@bend(lambda: (sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering))
def encoding() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict", line_buffering=False)  # type: ignore[union-attr]


@bend(lambda: (os.get_blocking(1), os.get_blocking(2)))
def blocking() -> None:
    os.set_blocking(1, False)


# --- seeds ----------------------------------------------------------------------------------------


@task
def seeded(seed: int | None) -> float:
    if seed is not None:
        random.seed(seed)
    return random.random()


# --- loops ----------------------------------------------------------------------------------------


@task
def leave_on_the_loop(how: str) -> str:
    loop = asyncio.get_event_loop_policy().get_event_loop()

    async def late() -> None:
        while True:
            await asyncio.sleep(0)
            print("late")

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                print("no")

    if how == "task":
        _kept.append(loop.create_task(late()))
    elif how == "stubborn":
        _kept.append(loop.create_task(stubborn()))
        loop.run_until_complete(asyncio.sleep(0.02))
    elif how == "later":
        loop.call_later(0.05, print, "late")
    else:
        loop.call_soon(print, "soon")
    return "left"


@task
async def use_the_loop() -> str:
    await asyncio.sleep(0.1)
    return "used"


# --- what stays, and grows ------------------------------------------------------------------------


@task
def leak(what: str, count: int) -> int:
    if what == "memory":
        _kept.append(bytearray(os.urandom(1 << 10) * (count << 10)))
    elif what == "descriptors":
        _kept.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(count))
    else:
        for _ in range(count):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
    return os.getpid()


@task
def pid() -> int:
    return os.getpid()


@task
def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@task
def say_at_the_end(path: str, seconds: float) -> None:
    atexit.register(time.sleep, seconds)
    atexit.register(Path(path).write_text, "ended")


@task
def use_memory(megabytes: int, seconds: float) -> int:
    used = b"x" * (megabytes << 20)
    time.sleep(seconds)
    return len(used)
