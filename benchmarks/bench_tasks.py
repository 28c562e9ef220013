"""The work that is measured: W1 does nothing, W2 hashes. Registered as `bench.noop` and `bench.sha`."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import jobsvc

ARGUMENT_BYTES = 200
SHA_BUFFER_BYTES = 16 * 1024
SHA_ROUNDS = 1000


def argument(number: int) -> str:
    """A 200-byte text argument, different for each job."""
    return f"{number:08d}".ljust(ARGUMENT_BYTES, "x")


@jobsvc.task(name="bench.noop")
def noop(text: str) -> list[float]:
    """W1: does nothing; the result is the time at which it started."""
    return [time.time(), len(text)]


@jobsvc.task(name="bench.sha")
def sha(text: str) -> list[object]:
    """W2: sha512 over a 16 KiB buffer, then over its own digest, 1,000 times."""
    started = time.time()
    return [started, sha_of(text)]


def sha_of(text: str) -> str:
    seed = text.encode()
    digest = hashlib.sha512((seed * (SHA_BUFFER_BYTES // len(seed) + 1))[:SHA_BUFFER_BYTES]).digest()
    for _ in range(SHA_ROUNDS - 1):
        digest = hashlib.sha512(digest).digest()
    return digest.hex()


@jobsvc.task(name="bench.nap", max_attempts=5)
def nap(path: str, seconds: float) -> float:
    """Appends a line when it starts, then sleeps."""
    with Path(path).open("a") as lines:
        lines.write(f"{time.time():.6f}\n")
    time.sleep(seconds)
    return time.time()
