"""Bringing the payloads that a worker's leases only refer to.

Jobs that were enqueued together share a pack, so their ranges are read together. No more is fetched ahead
than `PAYLOAD_BYTES_MAX`: the next reads wait until jobs have used what is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from .attempts import HeldAttempt
from .job_frames import ReadyJob
from .jobs import ErrorInfo, Outcome
from .object_store import StoreError
from .settings import MIB
from .worker_objects import PayloadMissing, WorkerObjects, together

PAYLOAD_BYTES_MAX = 64 * MIB  # fetched and not yet run, before the next are fetched


class Unfetched(Protocol):
    """What becomes of a lease whose payload cannot be had."""

    def __call__(self, held: HeldAttempt, outcome: Outcome, error: ErrorInfo) -> None: ...


class PayloadFetch:
    """Fetches for one worker. `wanted` says whether a lease is still to be run."""

    def __init__(
        self,
        objects: WorkerObjects,
        wanted: Callable[[HeldAttempt], bool],
        submit: Callable[[Iterable[ReadyJob]], None],
        unfetched: Unfetched,
    ) -> None:
        self._objects = objects
        self._wanted = wanted
        self._submit = submit
        self._unfetched = unfetched
        self._bytes_in_hand = 0
        self._used = asyncio.Event()

    def used(self, held: HeldAttempt) -> None:
        """The lease has left the worker's hands, and its payload with it."""
        if held.submitted and held.ref is not None:
            self._bytes_in_hand -= held.ref.length
            self._used.set()

    async def fetch_all(self, referred: list[HeldAttempt]) -> None:
        """Hand each job to the runner as soon as its payload is there."""
        for group in together(referred, lambda each: each.ref):
            while self._bytes_in_hand > PAYLOAD_BYTES_MAX:
                self._used.clear()
                await self._used.wait()
            wanted = [each for each in group if self._wanted(each)]
            if wanted:
                await self._fetch(wanted)

    async def _fetch(self, group: list[HeldAttempt]) -> None:
        try:
            payloads = await self._objects.fetch([each.ref for each in group if each.ref is not None])
        except StoreError as failure:  # the store's fault and not the jobs'
            error = ErrorInfo("StoreError", f"the payload could not be fetched: {failure}")
            for each in filter(self._wanted, group):
                self._unfetched(each, Outcome.RELEASED, error)
            return
        ready = []
        for each, payload in zip(group, payloads, strict=True):
            if not self._wanted(each):
                continue  # given back, cancelled or dropped meanwhile
            if isinstance(payload, PayloadMissing):
                self._unfetched(each, Outcome.RAISED, ErrorInfo("PayloadMissing", str(payload)))
            else:
                self._bytes_in_hand += len(payload)
                ready.append(each.ready(payload))
        self._submit(ready)
