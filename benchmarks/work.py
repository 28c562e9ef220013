"""The work that is measured, as plain functions: jobsvc and its peers wrap the same ones.

Nothing but the standard library is imported here, since each peer runs it in a virtualenv of its own.
"""

from __future__ import annotations

import hashlib
import os
import time

ARGUMENT_BYTES = 200
SHA_BUFFER_BYTES = 16 * 1024
SHA_ROUNDS = 1000
NAP_SECONDS = 3.0


def argument(number: int) -> str:
    """A 200-byte text argument, different for each job."""
    return f"{number:08d}".ljust(ARGUMENT_BYTES, "x")


def noop(text: str) -> list[float]:
    """W1: does nothing; the result is the time at which it started."""
    return [time.time(), len(text)]


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


# --- a job that tells when it started and ended ------------------------------------------------------


def nap_argument(number: int, path: str) -> str:
    """The file is in the argument, so that no worker needs anything in its environment."""
    return f"{number} {path}"


def nap(text: str) -> list[float]:
    """Sleeps between two lines in the file that its argument names."""
    note("start", text)
    time.sleep(NAP_SECONDS)
    return napped(text)


def napped(text: str) -> list[float]:
    note("end", text)
    return [time.time(), len(text)]


def note(word: str, text: str) -> None:
    """One write of one short line, so that processes do not mix theirs."""
    number, _, path = text.partition(" ")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, f"{word} {number} {time.time():.6f}\n".encode())
    finally:
        os.close(descriptor)
