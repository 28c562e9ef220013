"""The way to whoever leads, over Ray: for replicas and for workers.

Both managers have fixed names, so a caller keeps a handle to each and asks the one that led last. `NotLeader`
carries a hint; a dead or silent manager means: ask the other, and begin there the next time. A caller goes on
until its deadline with the same command ids, so that a failover is a pause for it and not an error. A try
that is not answered within `TRY_SECONDS` is left behind: the manager may be stopped, and the other may lead
by now; if both get to see the same command, the second one finds it done.

What a leader was asked to wait comes on top of deadline and patience: a silence that was asked for is no sign
of anything. So that a stopped leader is noticed within seconds all the same, a replica asks for its long
polls in slices; the feed's places never change, so the next slice goes on with whoever leads then.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorDiedError, RayError

from .commands import FeedPage, Flight, FlightReply, ManagerStatus, ReadFeed
from .errors import Unavailable
from .jobs import NotLeader, WorkerOrders, WorkerReport, encode

MANAGER_NAMES = ("manager-a", "manager-b")
TRY_SECONDS = 2.5
BACKOFF_SECONDS = 0.02
BACKOFF_SECONDS_MAX = 0.25
POLL_SECONDS = 5.0  # of one slice

_flight_reply: msgspec.msgpack.Decoder[FlightReply | NotLeader] = msgspec.msgpack.Decoder(
    FlightReply | NotLeader
)
_orders: msgspec.msgpack.Decoder[WorkerOrders | NotLeader] = msgspec.msgpack.Decoder(WorkerOrders | NotLeader)
_feed: msgspec.msgpack.Decoder[FeedPage | NotLeader] = msgspec.msgpack.Decoder(FeedPage | NotLeader)
_status = msgspec.msgpack.Decoder(ManagerStatus)


async def actor_handle(name: str, namespace: str) -> Any:
    """A named actor's handle; Unavailable if there is none. Ray's lookup blocks, so it has a thread."""
    try:
        return await asyncio.to_thread(ray.get_actor, name, namespace)
    except ValueError as error:
        raise Unavailable(f"there is no actor {name}") from error


class LeaderFinder:
    """Handles to both managers, and which of them led last."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._handles: dict[str, Any] = {}
        self._leader = MANAGER_NAMES[0]

    async def handle(self, name: str) -> Any:
        if name not in self._handles:
            self._handles[name] = await actor_handle(name, self._namespace)
        return self._handles[name]

    async def _try(self, name: str, method: str, seconds: float, arguments: tuple[Any, ...]) -> bytes:
        """One call of one manager. Raises Unavailable."""
        try:
            async with asyncio.timeout(seconds):  # looking it up takes GCS, which dies with the head
                handle = await self.handle(name)
                answer: bytes = await getattr(handle, method).remote(*arguments)
                return answer
        except RayError as error:
            if isinstance(error, ActorDiedError):
                self._handles.pop(name, None)  # for good; another one may be made under this name
            raise Unavailable(f"{name} is gone: {type(error).__name__}") from error
        except TimeoutError as error:
            raise Unavailable(f"{name} did not answer") from error

    async def ask_leader(
        self,
        method: str,
        arguments: tuple[Any, ...],
        decoder: msgspec.msgpack.Decoder[Any],
        deadline_seconds: float,
        wait_seconds: float = 0.0,
    ) -> Any:
        """The leader's answer, whoever leads. Raises Unavailable when the deadline has passed.

        `wait_seconds` is how long the leader may keep this call waiting before it answers.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + deadline_seconds + wait_seconds
        pause = BACKOFF_SECONDS
        name = self._leader
        while True:
            try:
                patience = min(wait_seconds + TRY_SECONDS, max(0.05, deadline - loop.time()))
                answer = decoder.decode(await self._try(name, method, patience, arguments))
                if not isinstance(answer, NotLeader):
                    self._leader = name
                    return answer
                problem = f"{name} does not lead"
                hinted = answer.hint
            except Unavailable as error:
                problem, hinted = str(error), None
            asked, name = name, hinted if hinted in MANAGER_NAMES else _other(name)
            if self._leader == asked:
                self._leader = name  # whoever asks next need not find out again
            if loop.time() + pause >= deadline:
                raise Unavailable(f"no manager led in {deadline_seconds:g} s: {problem}")
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, BACKOFF_SECONDS_MAX)

    async def statuses(self) -> list[ManagerStatus]:
        """What each manager that answers says of itself."""

        async def one(name: str) -> ManagerStatus | None:
            try:
                return _status.decode(await self._try(name, "status", 1.0, ()))
            except Unavailable:
                return None  # who does not answer has no status; the other one's says enough

        found = await asyncio.gather(*(one(name) for name in MANAGER_NAMES))
        return [status for status in found if status is not None]


def _other(name: str) -> str:
    return MANAGER_NAMES[1] if name == MANAGER_NAMES[0] else MANAGER_NAMES[0]


class RayManagers:
    """`gateway.Managers`, for a Serve replica."""

    def __init__(self, namespace: str, deadline_seconds: float) -> None:
        self._finder = LeaderFinder(namespace)
        self._deadline_seconds = deadline_seconds

    async def send(self, flight: Flight) -> FlightReply:
        reply: FlightReply = await self._finder.ask_leader(
            "handle_flight", (encode(flight),), _flight_reply, self._deadline_seconds
        )
        return reply

    async def wait_feed(self, query: ReadFeed, wait_seconds: float) -> FeedPage:
        """In slices. The deadline is for finding a leader, in each of them."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_seconds
        data = encode(query)
        while True:
            seconds = max(0.0, min(POLL_SECONDS, until - loop.time()))
            page: FeedPage = await self._finder.ask_leader(
                "wait_feed", (data, seconds), _feed, self._deadline_seconds, seconds
            )
            if page.entries or page.next != query.after or page.reset or loop.time() >= until:
                return page

    async def statuses(self) -> list[ManagerStatus]:
        return await self._finder.statuses()


class RayLeaderLink:
    """`worker.LeaderLink`, for a worker. One round of tries a call: the worker has its own pace."""

    def __init__(self, namespace: str) -> None:
        self._finder = LeaderFinder(namespace)

    async def report_and_ask(self, report: WorkerReport) -> WorkerOrders:
        orders: WorkerOrders = await self._finder.ask_leader(
            "report_and_ask",
            (encode(report),),
            _orders,
            TRY_SECONDS,
            report.wait_seconds,
        )
        return orders
