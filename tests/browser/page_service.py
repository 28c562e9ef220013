"""A service without Ray behind a real HTTP server, whose jobs do as their arguments say."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import msgspec

from jobsvc import commands as c
from jobsvc.jobs import BlobRef, ErrorInfo, Finished, Grant, JobOptions, NewJob, Outcome, Result, id_text

from ..unit.local_service import LocalService
from ..unit.queue_world import job_id

TRACEBACK = 'Traceback (most recent call last):\n  File "work.py", line 12, in step\n    boom()\n'
BATCH = 10_000


class PageService(LocalService):
    """`jobsvc.echo` of a text that begins with `fail ` fails with what follows; `long` ends when it may."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.may_end = threading.Event()

    async def _finish(self, grant: Grant, options: JobOptions) -> Finished:
        payload = grant.payload
        if not isinstance(payload, BlobRef) and options.content == "json":
            args = msgspec.json.decode(payload)["args"]
            if args == ["long"]:
                return await self._finish_late(grant)
            if args and str(args[0]).startswith("fail "):
                kind, _, message = str(args[0])[5:].partition(" ")
                error = ErrorInfo(kind, message, f"{TRACEBACK}{kind}: {message}\n")
                now = time.time()
                log = f"logs/{id_text(grant.job_id)}/{grant.attempt}/000000"
                await self.store.put_new(log, b"given: %b\n" % payload)
                return Finished(grant.job_id, grant.attempt, Outcome.RAISED, now - 0.3, now, error=error)
        return await super()._finish(grant, options)

    async def _finish_late(self, grant: Grant) -> Finished:
        began, log = time.time(), f"logs/{id_text(grant.job_id)}/{grant.attempt}"
        await self.store.put_new(f"{log}/000000", b"begun\n")
        while not self.may_end.is_set():  # noqa: ASYNC110 - the event is another thread's
            await asyncio.sleep(0.01)
        await self.store.put_new(f"{log}/000001", b"and ended\n")
        return Finished(
            grant.job_id, grant.attempt, Outcome.SUCCEEDED, began, time.time(), Result("json", b"1")
        )

    def watch_blocks(self) -> None:
        """From now on `longest_block_seconds` is the longest time that the loop did not let others in.

        Processor time: on a busy machine the clock would tell of the neighbours."""
        self.longest_block_seconds = 0.0
        self.run(self._begin_watch())

    async def _begin_watch(self) -> None:
        self._watch = asyncio.create_task(self._watch_blocks())

    async def _watch_blocks(self) -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            self.longest_block_seconds = max(self.longest_block_seconds, time.thread_time() - began)

    def fill(self, count: int, queue: str = "bulk") -> None:
        """So many queued jobs, handed to the leader without HTTP."""
        for first in range(1, count + 1, BATCH):
            self.run(self._fill(first, min(BATCH, count - first + 1), queue))

    async def _fill(self, first: int, count: int, queue: str) -> None:
        leader: Any = self._manager.leader
        jobs = [NewJob(job_id(first + n), 0, b'{"args":[1],"kwargs":{}}') for n in range(count)]
        [answer] = await leader.flight([c.Enqueue([JobOptions("jobsvc.echo", queue)], jobs)])
        assert isinstance(answer, c.Accepted)
        await asyncio.sleep(0)
