"""Two managers, their store and their fleet in one process, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import msgspec

from jobsvc import commands as c
from jobsvc.errors import Unavailable
from jobsvc.events import Event, decode_events
from jobsvc.jobs import (
    BlobRef,
    Finished,
    Grant,
    JobOptions,
    NewJob,
    NotLeader,
    Outcome,
    Result,
    WorkerOrders,
    WorkerReport,
    encode,
)
from jobsvc.journal import LogReader
from jobsvc.log_records import Record
from jobsvc.manager import Manager
from jobsvc.object_store import MemoryObjectStore
from jobsvc.scaling import Machines
from jobsvc.settings import PoolSettings, Settings

from ..simulation import virtual_loop
from .queue_world import job_id

_replies = msgspec.msgpack.Decoder(c.FlightReply | NotLeader)
_orders = msgspec.msgpack.Decoder(WorkerOrders | NotLeader)
_pages = msgspec.msgpack.Decoder(c.FeedPage | NotLeader)
_statuses = msgspec.msgpack.Decoder(c.ManagerStatus)
START = 1_000_000.0


class FakePeer:
    """The way to the other manager; `cut` is a partition between the two."""

    def __init__(self, world: Pair, name: str) -> None:
        self._world = world
        self.name = name
        self.cut = False

    async def push(self, records: list[bytes]) -> int:
        manager = self._world.managers.get(self.name)
        if manager is None or self.cut:
            raise Unavailable("cut")
        return await manager.follow(records)

    async def status(self) -> c.ManagerStatus | None:
        if self.cut:
            raise Unavailable("cut")
        manager = self._world.managers.get(self.name)
        return _statuses.decode(manager.status()) if manager is not None else None


class FakeFleet:
    def __init__(self) -> None:
        self.there: dict[str, str] = {}
        self.started: list[str] = []
        self.ended: list[str] = []
        self.outlook: Machines | None = None
        self.not_on: frozenset[str] = frozenset()

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        self.started.append(name)
        self.not_on = not_on
        self.there[name] = pool

    async def end(self, name: str) -> None:
        self.ended.append(name)
        self.there.pop(name, None)

    async def names(self) -> dict[str, str]:
        return dict(self.there)

    async def trouble(self) -> str | None:
        return None

    async def machines(self) -> Machines | None:
        return self.outlook


class SlowStore(MemoryObjectStore):
    """A memory store whose puts may be held up."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()
        self.put_seconds = 0.005

    async def put_new(self, key: str, data: bytes) -> Any:
        await self.open.wait()
        await asyncio.sleep(self.put_seconds)
        return await super().put_new(key, data)


class Pair:
    """manager-a and manager-b. Stories wait for conditions; the loop moves time on."""

    def __init__(self, **settings: Any) -> None:
        chosen: dict[str, Any] = {"pools": {"default": PoolSettings(max_workers=0)}, **settings}
        self.settings = Settings(**chosen)
        self.store = SlowStore()
        self.fleet = FakeFleet()
        self.managers: dict[str, Manager] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.peers = {"manager-a": FakePeer(self, "manager-b"), "manager-b": FakePeer(self, "manager-a")}
        self.lives = 0
        self.clock_errors: dict[str, float] = {}
        self.silent: set[str] = set()  # killed or not, nobody is told that they do not answer

    def start(self, name: str) -> Manager:
        self.lives += 1
        loop = asyncio.get_running_loop()
        manager = Manager(
            name=name,
            settings=self.settings,
            store=self.store,
            peer=self.peers[name],
            fleet=self.fleet,
            wall=lambda: START + loop.time() + self.clock_errors.get(name, 0.0),
            random=Random(self.lives),
            nonce=self.lives.to_bytes(16, "big"),
            node="node",
            pid=self.lives,
        )
        self.managers[name] = manager
        self.tasks[name] = loop.create_task(manager.run(), name=name)
        return manager

    def kill(self, name: str) -> None:
        self.tasks.pop(name).cancel()
        del self.managers[name]

    async def leader_and_standby(self) -> tuple[Manager, Manager]:
        first = self.start("manager-a")
        await until(lambda: first.role == "leader")
        second = self.start("manager-b")
        await until(lambda: second.role == "standby")
        return first, second

    # --- what others ask ---

    async def ask(self, manager: Manager, *requests: c.Request) -> list[Any]:
        reply = _replies.decode(await manager.handle_flight(encode(c.Flight(list(requests)))))
        assert isinstance(reply, c.FlightReply), reply
        return reply.replies

    async def enqueue(self, manager: Manager, *numbers: int, **options: Any) -> list[bytes]:
        ids = [job_id(number) for number in numbers]
        [answer] = await self.ask(manager, enqueue_of(ids, **options))
        assert isinstance(answer, c.Accepted), answer
        return ids

    async def report(self, manager: Manager, worker: str = "w1", **fields: Any) -> WorkerOrders:
        orders = await self.raw_report(manager, worker, **fields)
        assert isinstance(orders, WorkerOrders)
        return orders

    async def raw_report(
        self, manager: Manager, worker: str = "w1", **fields: Any
    ) -> WorkerOrders | NotLeader:
        values = {"session": "s", "pool": "default", "node": "n", "pid": 1, **fields}
        self.fleet.there.setdefault(worker, values["pool"])
        return _orders.decode(await manager.report_and_ask(encode(WorkerReport(worker, **values))))

    async def feed(
        self, manager: Manager, after: int = 0, seconds: float = 0.0, store: str = ""
    ) -> c.FeedPage:
        page = _pages.decode(await manager.wait_feed(encode(c.ReadFeed(after, store=store)), seconds))
        assert isinstance(page, c.FeedPage)
        return page

    def status(self, manager: Manager) -> c.ManagerStatus:
        return _statuses.decode(manager.status())

    async def records(self) -> list[Record]:
        """The whole log, read by somebody new."""
        reader = LogReader(self.store, self.cluster_id())
        found = []
        while (record := await reader.read_next()) is not None:
            found.append(record)
        return found

    def cluster_id(self) -> bytes:
        reader = next(iter(self.managers.values()))._reader
        assert reader is not None
        return reader.cluster_id

    async def store_bytes(self, data: bytes | None, ref: BlobRef | None) -> bytes:
        """What a result, payload or output holds, inline or as a range of an object."""
        if ref is None:
            return data or b""
        found = await self.store.get(ref.key, ref.offset, ref.length)
        assert found is not None, f"{ref.key} is gone"
        return found

    def store_keys(self) -> list[str]:
        return sorted(self.store._objects)

    async def events(self) -> list[list[Event]]:
        return [decode_events(each.body) for each in await self.records() if each.kind == "data"]


def enqueue_of(ids: list[bytes], **options: Any) -> c.Enqueue:
    chosen = JobOptions(**{"task": "demo.task", **options})
    return c.Enqueue([chosen], [NewJob(each, 0, b"{}") for each in ids])


def done(grant: Grant, outcome: Outcome = Outcome.SUCCEEDED, log_bytes: int = 0) -> Finished:
    result = Result("json", b"1") if outcome is Outcome.SUCCEEDED else None
    return Finished(grant.job_id, grant.attempt, outcome, START, START + 1.0, result, None, log_bytes)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - virtual time makes looking free
            await asyncio.sleep(0.01)


def run(story: Callable[..., Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def whole() -> None:
        await story(Pair(**settings))

    virtual_loop.run(whole())
