"""How job processes die, in words: of a job's own process, and of one that never came up."""

from __future__ import annotations

import signal

import msgspec

from .jobs import ErrorInfo

_OUTPUT_BYTES_MAX = 2_000


def crash_error(exit_code: int) -> ErrorInfo:
    """What is to be said of a job whose process ended with this code (minus the signal, if one ended it)."""
    if exit_code >= 0:
        message = f"the job's process left with exit code {exit_code} before the task returned"
        return ErrorInfo("ProcessExited", message, exit_code=exit_code)
    name = _signal_name(exit_code)
    why = " (from outside, or because memory ran out)" if name == "SIGKILL" else ""
    return ErrorInfo("ProcessKilled", f"the job's process was killed by {name}{why}", signal=name)


def code_error(error: ErrorInfo) -> ErrorInfo:
    """The same for code by value that does not say its Python: bytecode of another one ends a process."""
    why = "; its code came with it, enqueued by version 0.1, and does not say what Python it is of"
    return msgspec.structs.replace(error, message=f"{error.message}{why}: enqueue it again")


def memory_error(used_bytes: int, bytes_max: int) -> ErrorInfo:
    message = f"the job's processes used {used_bytes} bytes of memory, more than the {bytes_max} allowed"
    return ErrorInfo("OutOfMemory", message)


def start_failure(exit_code: int, output: bytes) -> str:
    """Why a process cannot work that ended before its tasks were loaded."""
    how = f"left with exit code {exit_code}" if exit_code >= 0 else f"was killed by {_signal_name(exit_code)}"
    lines = output[-_OUTPUT_BYTES_MAX:].decode("utf-8", "replace").strip().splitlines()
    said = f"; it said last: {lines[-1]}" if lines else ""
    return f"its job process {how} while it loaded the tasks{said}"


def _signal_name(exit_code: int) -> str:
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
