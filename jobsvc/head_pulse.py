"""Whether a head lives, asked by way of the store: for a guard that cannot reach it.

The network between two machines may be cut while both of them reach the store. So a guard that hears
nothing from a head that EC2 calls running puts a question into the store, one object, and the head that
lives takes it away:

    guard ── put_new ──> pulse/<head's id> <── get, every 10 s ── `jobsvc node pulse` on the head
      └──── get ────────────────┘    └──────── delete ───────────── if its own GCS answers there

**What an answer proves.** The head deletes its own question, nobody else does, and only after its GCS has
answered a request that was made after the question was read. So a question that was seen there, and is
seen no more, or has another in its place, means: in between the head's Ray answered, on its machine. It
is more than that the machine is up, and more than that somebody listens: a GCS that hangs answers
nothing. The process that answers is systemd's, and no part of Ray, which it is to judge.

**Nobody's clock is compared.** The guard counts on its own monotonic clock, and only time in which it saw
the question lie there. A question that nobody could put, or see, proves nothing (`Sign.NOT_ASKED`).

**Answers that come late.** A head has one `delete` in the air at most; one that lands after the head died
takes one question away, which the guard takes for one more sign of life. It asks again, and that question
stays.

**What it costs.** While nobody asks: a `get` every ten seconds (0.10 $ a month), and no PUT. In doubt: a
PUT for each question, at most one in ten seconds. A heartbeat would be a PUT every so often, for ever.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from .object_store import ObjectStore, PutOutcome, StoreError
from .ports import is_listening

PREFIX = "pulse/"
POLL_SECONDS = 10.0
CHECK_SECONDS = 50.0  # Ray's own command takes two to start; on a machine that is very busy, twenty

_log = logging.getLogger("jobsvc.pulse")


class Sign(enum.Enum):
    """What the store says of a head."""

    ANSWERED = "it has answered since the last look"
    ASKED = "a question lies there, and it has not answered"
    NOT_ASKED = "no question is known to lie there"


class Questions:
    """The guard's side: one guard's questions to all heads."""

    def __init__(self, store: ObjectStore, new_nonce: Callable[[], str]) -> None:
        self._store = store
        self._new_nonce = new_nonce
        self._seen: dict[str, bytes] = {}  # questions as they lay there in the last look, of any guard

    async def look(self, head: str) -> Sign:
        """Whether it has answered; where no question lies, one is put. Raises StoreError."""
        key = f"{PREFIX}{head}"
        there = await self._store.get(key)
        before = self._seen.pop(head, None)
        if there is None:
            question = self._new_nonce().encode()
            # UNKNOWN, or another guard's was there first: the next look tells
            if await self._store.put_new(key, question) is PutOutcome.CREATED:
                self._seen[head] = question
        else:
            self._seen[head] = there
        if before is not None and there != before:
            return Sign.ANSWERED
        return Sign.ASKED if head in self._seen else Sign.NOT_ASKED


class Pulse:
    """The head's side. `run` for ever, or `step` by step."""

    def __init__(self, store: ObjectStore, head: str, gcs_answers: Callable[[], Awaitable[bool]]) -> None:
        self._store = store
        self._key = f"{PREFIX}{head}"
        self._gcs_answers = gcs_answers

    async def run(self) -> None:
        """Raises Fatal where the store is unfit."""
        while True:
            await self.step()
            await asyncio.sleep(POLL_SECONDS)

    async def step(self) -> None:
        """Answer, if somebody has asked and there is something to say. The next step is the next try."""
        try:
            if await self._store.get(self._key) is None:
                return
            if await self._gcs_answers():
                await self._store.delete(self._key)
                _log.info("a guard cannot reach this head, and asked whether it lives: it does")
            else:
                _log.warning("a guard asks whether this head lives, and its GCS does not answer")
        except StoreError as error:
            _log.warning("%s", error)


async def ray_answers(address: str) -> bool:
    """Whether the GCS at HOST:PORT answers a request. False too if that takes too long to be told."""
    if not await asyncio.to_thread(is_listening, address):
        return False
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ray.scripts.scripts", "health-check"),
        *("--skip-version-check", "--address", address),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
    )
    try:
        return await asyncio.wait_for(process.wait(), CHECK_SECONDS) == 0
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
