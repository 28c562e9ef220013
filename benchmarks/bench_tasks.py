"""The work that is measured, as tasks: W1 does nothing, W2 hashes."""

from __future__ import annotations

import time
from pathlib import Path

import jobsvc

from . import work
from .work import argument

__all__ = ["argument", "nap", "noop", "noted_nap", "sha"]


@jobsvc.task(name="bench.noop")
def noop(text: str) -> list[float]:
    """W1."""
    return work.noop(text)


@jobsvc.task(name="bench.sha")
def sha(text: str) -> list[object]:
    """W2."""
    return work.sha(text)


@jobsvc.task(name="bench.noted_nap")
def noted_nap(text: str) -> list[float]:
    """Sleeps between two lines in a file."""
    return work.nap(text)


@jobsvc.task(name="bench.nap", max_attempts=5)
def nap(path: str, seconds: float) -> float:
    """Appends a line when it starts, then sleeps."""
    with Path(path).open("a") as lines:
        lines.write(f"{time.time():.6f}\n")
    time.sleep(seconds)
    return time.time()
