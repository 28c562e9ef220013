"""Functions that change their process, made to say that they were called.

To read all that a job may have changed takes as long as several small jobs. So what has a function of
Python's to change it is read only when that was called since, and now and then for what C code may have done.
A function that was taken before `lay` did its work is not heard, nor is one that Python does not know.
"""

from __future__ import annotations

import _posixsubprocess
import faulthandler
import functools
import gc
import locale
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

SEEDS = "random seed"
FAULTS = "fault handler"
CHILDREN = "children"
INPUT = "standard input"
INTERRUPTIONS = "what signals interrupt"
FOR_GOOD = "what no call puts back"
EVERYTHING = "everything"  # some of it has no trait of its own
NO_TRAITS = frozenset({SEEDS, CHILDREN, INPUT})

_USERS = "setuid seteuid setreuid setresuid setgid setegid setregid setresgid setgroups initgroups"
_WIRES: list[tuple[Any, str, str]] = [
    (os, "chdir fchdir", "current folder"),
    (os, "fork forkpty posix_spawn posix_spawnp system", CHILDREN),
    (_posixsubprocess, "fork_exec", CHILDREN),
    (subprocess, "_fork_exec", CHILDREN),
    (os, "close closerange dup2", INPUT),
    (os, "putenv unsetenv", "environment"),
    (os, "nice setpriority", "priority"),
    (os, "sched_setaffinity", "processors"),
    (os, "sched_setscheduler sched_setparam", "scheduler"),
    (os, _USERS, "users"),
    (os, "setsid setpgid setpgrp", "session"),
    (os, "chroot", EVERYTHING),
    (os, "unshare setns", FOR_GOOD),
    (sys, "addaudithook", FOR_GOOD),
    (time, "tzset", "time zone"),
    (signal, "signal", "signal handlers"),
    (signal, "siginterrupt", INTERRUPTIONS),
    (signal, "set_wakeup_fd", "wake-up descriptor"),
    (signal, "alarm setitimer", "timers"),
    (signal, "pthread_sigmask", "signal mask"),
    (resource, "setrlimit prlimit", "limits"),
    (locale, "setlocale", "locale"),
    (logging.Logger, "setLevel addHandler removeHandler addFilter removeFilter __setattr__", "loggers"),
    (logging.Handler, "addFilter removeFilter __setattr__", "loggers"),
    (logging, "captureWarnings", "logging._warnings_showwarning"),
    (logging, "addLevelName", "names of levels"),
    (logging, "setLoggerClass", "logging.setLoggerClass"),
    (logging, "setLogRecordFactory", "logging.setLogRecordFactory"),
    (gc, "enable disable", "garbage collection"),
    (gc, "freeze unfreeze", "frozen objects"),
    (gc, "set_threshold", "gc.set_threshold"),
    (gc, "set_debug", "gc.set_debug"),
    (sys, "setrecursionlimit", "recursion limit"),
    (sys, "setswitchinterval", "switch interval"),
    (sys, "set_int_max_str_digits", "length of numbers"),
    (sys, "setdlopenflags", "sys.setdlopenflags"),
    (sys, "set_asyncgen_hooks", "generator hooks"),
    (sys, "set_coroutine_origin_tracking_depth", "origin tracking"),
    (threading, "stack_size", "thread stack"),
    (threading, "settrace settrace_all_threads", "threading.settrace"),
    (threading, "setprofile setprofile_all_threads", "threading.setprofile"),
    (socket, "setdefaulttimeout", "socket time-out"),
    (tracemalloc, "start stop", "tracemalloc"),
    (faulthandler, "enable disable register unregister dump_traceback_later", FAULTS),
    (os, "set_blocking", "blocking"),
    (random, "seed setstate", SEEDS),
]


def lay(called: set[str]) -> None:
    """From now on, each call puts the name of what it may change into `called`."""
    for owner, names, mark in _WIRES:
        for name in names.split():
            function = getattr(owner, name, None)
            if function is not None:
                setattr(owner, name, _heard(function, mark, called))


def _heard(function: Callable[..., Any], mark: str, called: set[str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def heard(*args: Any, **kwargs: Any) -> Any:
        called.add(mark)
        return function(*args, **kwargs)

    return heard
