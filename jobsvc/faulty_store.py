"""A store that misbehaves as S3 and the network in front of it do: the one that finds bugs.

Wraps any honest store that answers without waiting (`MemoryObjectStore`). Every request is two steps, each
after a delay of its own:

    caller ──before──> takes effect ──after──> the answer arrives

and the caller waits `timeout_seconds` at most. From this alone follows what is hard about S3: an answer
that is late is UNKNOWN although the bytes are there, and an effect that is late comes after the caller
has given up, or has died. The effect belongs to a task and a context of its own, so cancelling or
freezing the caller recalls nothing: that is the write of a dead leader which lands in the time of the next.

On top come faults by rate: `error` (no effect, UNKNOWN), `lost` (effect, UNKNOWN), `late` (UNKNOWN at once,
the effect up to `late_seconds` later). For gets, lists and deletes UNKNOWN is StoreError.

Give each manager a `FaultyObjectStore` of its own over one shared inner store: then `cut()` takes one of
them off the network and leaves the others. All randomness is drawn when a request starts, and only
`asyncio.sleep` and the loop's time are used: one seed, one story, under a virtual-time loop too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from random import Random
from typing import Any, NamedTuple

from .errors import InvalidRequest
from .object_store import (
    Keys,
    ObjectStore,
    PutOutcome,
    StoreError,
    Warnings,
    prove_exclusive_create,
)


class FaultRates(NamedTuple):
    """How likely a request meets each fault. Exclusive of one another; together at most 1."""

    error: float = 0.0
    lost: float = 0.0
    late: float = 0.0

    def draw(self, random: Random) -> str:
        point = random.random()
        for fault, rate in zip(self._fields, self, strict=True):
            if point < rate:
                return fault
            point -= rate
        return "none"


class _Plan(NamedTuple):
    """What will happen to one request, decided when it starts."""

    fault: str
    before_seconds: float
    after_seconds: float


class FaultyObjectStore:
    """`inner`, seen through a bad network. `delay_seconds` is the mean of each of the two delays."""

    def __init__(
        self,
        inner: ObjectStore,
        random: Random,
        *,
        delay_seconds: float = 0.01,
        put_error_rate: float = 0.0,
        put_lost_rate: float = 0.0,
        put_late_rate: float = 0.0,
        read_error_rate: float = 0.0,
        late_seconds: float = 30.0,
        timeout_seconds: float = 5.0,
    ) -> None:
        self._put_rates = FaultRates(put_error_rate, put_lost_rate, put_late_rate)
        self._read_rates = FaultRates(error=read_error_rate)
        for rates in (self._put_rates, self._read_rates):
            if min(rates) < 0 or sum(rates) > 1:
                raise InvalidRequest(f"{rates} must be at least 0 each and at most 1 together", "rates")
        self.requests = inner.requests
        self.put_failure = ""
        self.flying: set[asyncio.Task[None]] = set()  # effects that have not happened yet
        self._inner = inner
        self._random = random
        self._delay_seconds = delay_seconds
        self._late_seconds = late_seconds
        self._timeout_seconds = timeout_seconds
        self._outage_until = 0.0
        self._slow_seconds = 0.0
        self._cut = False

    # --- switches for a scenario ----------------------------------------------------------------

    def outage_until(self, loop_time: float) -> None:
        """Every request that reaches the store before that time is answered with an error, undone."""
        self._outage_until = loop_time

    def slow(self, seconds: float) -> None:
        """Each of the two steps of later requests takes this much longer; 0 ends it."""
        self._slow_seconds = seconds

    def cut(self) -> None:
        """Off the network: new requests never leave. Those under way still take effect, unanswered."""
        self._cut = True

    def heal(self) -> None:
        """Undo all switches."""
        self._cut = False
        self._slow_seconds = 0.0
        self._outage_until = 0.0

    async def settle(self) -> None:
        """Wait until every effect that was still to come has come."""
        while self.flying:
            await asyncio.wait(set(self.flying))

    # --- the store ------------------------------------------------------------------------------

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        outcome = await self._request(self._put_rates, lambda: self._inner.put_new(key, data))
        self.put_failure = "no answer" if outcome is _NO_ANSWER else self._inner.put_failure
        return PutOutcome.UNKNOWN if outcome is _NO_ANSWER else outcome

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        data: bytes | None = await self._answered(f"get {key}", lambda: self._inner.get(key, offset, length))
        return data

    async def list(self, prefix: str) -> Keys:
        keys: Keys = await self._answered(f"list {prefix}", lambda: self._inner.list(prefix))
        return keys

    async def delete(self, key: str) -> None:
        await self._answered(f"delete {key}", lambda: self._inner.delete(key))

    async def delete_many(self, keys: Keys) -> None:
        """Where it meets an error, the first half is gone all the same: such a request is many."""
        half = keys[: len(keys) // 2]
        await self._answered(
            f"delete {len(keys)} keys",
            lambda: self._inner.delete_many(keys),
            spoiled=lambda: self._inner.delete_many(half),
        )

    async def probe(self) -> Warnings:
        await prove_exclusive_create(self)
        return []

    # --- one request ----------------------------------------------------------------------------

    async def _answered(
        self,
        what: str,
        effect: Callable[[], Awaitable[Any]],
        spoiled: Callable[[], Awaitable[Any]] | None = None,
    ) -> Any:
        answer = await self._request(self._read_rates, effect, spoiled)
        if answer is _NO_ANSWER:
            raise StoreError(f"{what}: no answer")
        return answer

    async def _request(
        self,
        rates: FaultRates,
        effect: Callable[[], Awaitable[Any]],
        spoiled: Callable[[], Awaitable[Any]] | None = None,
    ) -> Any:
        """`spoiled` is what an error leaves of the effect; None: nothing."""
        plan = self._plan(rates)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._fly(plan, effect, spoiled, answer), context=Context())
        self.flying.add(task)
        task.add_done_callback(self.flying.discard)
        await asyncio.wait([answer], timeout=self._timeout_seconds)
        return answer.result() if answer.done() else _NO_ANSWER

    def _plan(self, rates: FaultRates) -> _Plan:
        # Always the same number of draws, so that a switch or a rate does not change what follows.
        fault = rates.draw(self._random)
        before, after = (self._random.expovariate(1.0) * self._delay_seconds for _ in range(2))
        late = self._random.random() * self._late_seconds
        if fault == "late":
            return _Plan(fault, before + late, 0.0)
        return _Plan(fault, before + self._slow_seconds, after + self._slow_seconds)

    async def _fly(
        self,
        plan: _Plan,
        effect: Callable[[], Awaitable[Any]],
        spoiled: Callable[[], Awaitable[Any]] | None,
        answer: asyncio.Future[Any],
    ) -> None:
        if self._cut:
            return  # never left this machine; the caller waits for its timeout
        if plan.fault == "late":
            _set(answer, _NO_ANSWER)
        await asyncio.sleep(plan.before_seconds)
        if asyncio.get_running_loop().time() < self._outage_until:
            result: Any = _NO_ANSWER
        elif plan.fault == "error":
            if spoiled is not None:
                await spoiled()
            result = _NO_ANSWER
        else:
            try:
                result = await effect()
            except Exception as error:
                _fail(answer, error)
                return
        if plan.fault == "lost":
            result = _NO_ANSWER
        await asyncio.sleep(plan.after_seconds)
        if not self._cut:
            _set(answer, result)


_NO_ANSWER = object()


def _set(answer: asyncio.Future[Any], result: Any) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
