"""Tasks that the cluster tests enqueue."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import jobsvc


@jobsvc.task(name="test.double")
def double(number: int) -> int:
    return 2 * number


@jobsvc.task(name="test.nap")
async def nap(number: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 2 * number


@jobsvc.task(name="test.mark", max_attempts=5)
def mark(path: str, seconds: float) -> str:
    """Appends a line when it begins and one when it ends."""
    with Path(path).open("a") as lines:
        lines.write(f"begin {os.getpid()}\n")
    time.sleep(seconds)
    with Path(path).open("a") as lines:
        lines.write(f"end {os.getpid()}\n")
    return "done"


@jobsvc.task(name="test.fail", max_attempts=2, backoff_base_seconds=0.05)
def fail(text: str) -> None:
    print("about to fail")
    raise ValueError(text)


@jobsvc.task(name="test.say_back")
def say_back(text: str) -> str:
    print(f"{len(text)} characters")
    return text


@jobsvc.task(name="test.tick")
def tick(times: int, seconds: float) -> int:
    for number in range(times):
        print(f"tick {number}", flush=True)
        time.sleep(seconds)
    return times
