"""The tasks of the jobs in the store of version 0.1."""

from __future__ import annotations

import os
import time

import jobsvc


@jobsvc.task(name="old.double")
def double(number: int) -> int:
    return 2 * number


@jobsvc.task(name="old.say")
def say(text: str, times: int) -> str:
    """Prints, and returns as much."""
    print(text * times, flush=True)
    return text * times


@jobsvc.task(name="old.fail", max_attempts=2, backoff_base_seconds=0.05)
def fail(text: str) -> None:
    raise ValueError(text)


@jobsvc.task(name="old.later", max_attempts=5, backoff_base_seconds=10_000_000.0, backoff_cap_seconds=1e9)
def later() -> None:
    raise ValueError("once more, after a long time")


@jobsvc.task(name="old.crash", max_crashes=1)
def crash() -> None:
    os.abort()


@jobsvc.task(name="old.nap")
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"
