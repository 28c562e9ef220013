"""A process that works on a store, for tests in which several do, or one is killed.

    python -m tests.store_process race SETTINGS WORKER KEYS
        put_new one key after another, all with this worker's name; prints each outcome
    python -m tests.store_process puts SETTINGS PREFIX
        put_new for ever; prints `PREFIX/n` once it is CREATED, and by that promises that it is there
    python -m tests.store_process die SETTINGS KEY CALL TIMING
        one put_new, killed with SIGKILL `before` or `after` its first call of os.CALL

SETTINGS is the JSON of `encode_settings`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from typing import Any

from jobsvc.object_store import PutOutcome
from jobsvc.s3_store import open_store
from jobsvc.settings import decode_settings


def body_of(key: str) -> bytes:
    """What `puts` writes under a key: long enough that half of it would show."""
    return key.encode() * 2000


async def race(settings: str, worker: str, keys: str) -> None:
    store = open_store(decode_settings(settings))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for number in range(int(keys)):
        outcome = await store.put_new(f"race/{number}", worker.encode())
        print(outcome.value, flush=True)


async def puts(settings: str, prefix: str) -> None:
    store = open_store(decode_settings(settings))
    for number in itertools.count():
        key = f"{prefix}/{number:06}"
        if await store.put_new(key, body_of(key)) is PutOutcome.CREATED:
            print(key, flush=True)


async def die(settings: str, key: str, call: str, timing: str) -> None:
    store = open_store(decode_settings(settings))
    real = getattr(os, call)

    def deadly(*arguments: Any, **options: Any) -> None:
        if timing == "after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, deadly)
    await store.put_new(key, body_of(key))


if __name__ == "__main__":
    word, *arguments = sys.argv[1:]
    work: Any = {"race": race, "puts": puts, "die": die}[word]
    asyncio.run(work(*arguments))
