"""Callers of the whole service on virtual time: a silence of hours, in seconds.

Managers, workers, the replica with its HTTP handlers and the Python client are the real classes. What blocks
in the client runs in a greenlet: where it would wait for a socket or sleep, the loop goes on with all others.
So `Client`, `JobSet` and the commands are run as they are, many of them side by side, in one thread.
"""

from __future__ import annotations

import asyncio
import time as real_time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from random import Random
from typing import Any, TypeVar

import greenlet
import httpx
import msgspec
import pytest

from jobsvc import cli_jobs, cli_watch, client, client_http, client_job, client_jobs, client_logs
from jobsvc.client import Client
from jobsvc.client_http import Connection
from jobsvc.job_frames import ReadyJob
from jobsvc.leader_links import RayLeaderLink
from jobsvc.settings import DEFAULT_POOL, PoolSettings
from jobsvc.simulated_runner import Plan, SimulatedRunner
from jobsvc.worker import Worker

from ..unit.http_world import PairFinder, Replica
from ..unit.manager_world import START, FakeFleet, Pair, until
from . import virtual_loop

URL = "http://127.0.0.1:8000"
WORKERS = 2
CLOCKED = (client_http, client_job, client_jobs, client_logs, cli_jobs, cli_watch)

T = TypeVar("T")


# --- what blocks ------------------------------------------------------------------------------------


def block_on(work: Awaitable[T]) -> T:
    """In blocking code: wait for this, while everybody else goes on."""
    hub = greenlet.getcurrent().parent
    assert hub is not None, "only within `blocking`"
    result: T = hub.switch(work)
    return result


async def blocking(call: Callable[[], T]) -> T:
    """A blocking call, as a thread of its own would make it. To cancel it is Ctrl-C."""
    thread = greenlet.greenlet(call)
    wanted: Any = thread.switch()
    while not thread.dead:
        try:
            value = await wanted
        except BaseException as error:
            wanted = thread.throw(error)
        else:
            wanted = thread.switch(value)
    result: T = wanted
    return result


class VirtualTime:
    """In the place of the module `time`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.monotonic = loop.time

    def time(self) -> float:
        return START + self.monotonic()

    def sleep(self, seconds: float) -> None:
        block_on(asyncio.sleep(seconds))

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)


class VirtualPool:
    """In the place of a pool of threads: each call is a greenlet of its own."""

    def __init__(self, count: int, name: str = "") -> None:
        self._count = count

    def __enter__(self) -> VirtualPool:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, call: Callable[..., T], *arguments: Any) -> VirtualFuture[T]:
        return VirtualFuture(asyncio.get_running_loop().create_task(blocking(partial(call, *arguments))))

    def map(self, call: Callable[[Any], T], items: Any) -> Iterator[T]:
        return iter([each.result() for each in [self.submit(call, item) for item in items]])


class VirtualFuture:
    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task

    def __class_getitem__(cls, _: Any) -> Any:
        return cls

    def result(self) -> Any:
        return block_on(asyncio.shield(self._task))


# --- the way to the replica -------------------------------------------------------------------------


class Exchange:
    """One request to the app, and its answer piece by piece."""

    def __init__(self, world: World, request: httpx.Request, body: bytes) -> None:
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self.pieces: asyncio.Queue[Any] = asyncio.Queue()
        self._world = world
        world.exchanges.add(self)
        url = request.url
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        self.task = asyncio.get_running_loop().create_task(world.serve(scope, self._receive, self._send))
        self.task.add_done_callback(lambda _: self.pieces.put_nowait(None))

    async def _receive(self) -> Any:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.pieces.put_nowait(message)

    async def next(self, timeout: float | None) -> Any:
        """The next message; None at the end. Raises what a connection does."""
        try:
            async with asyncio.timeout(timeout):
                message = await self.pieces.get()
        except TimeoutError as error:
            self.close()
            raise httpx.ReadTimeout("silence") from error
        if isinstance(message, Exception):
            raise message
        return message

    def broken(self) -> None:
        """The replica has died."""
        self.task.cancel()
        self.pieces.put_nowait(httpx.RemoteProtocolError("server disconnected"))
        self.close()

    def close(self) -> None:
        self._gone.set()
        self._world.exchanges.discard(self)


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of an answer, for blocking code and for a loop."""

    def __init__(self, exchange: Exchange, timeout: float | None) -> None:
        self._exchange = exchange
        self._timeout = timeout

    def __iter__(self) -> Iterator[bytes]:
        while (message := block_on(self._exchange.next(self._timeout))) is not None:
            yield message.get("body", b"")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._exchange.next(self._timeout)) is not None:
            yield message.get("body", b"")

    def close(self) -> None:
        self._exchange.close()

    async def aclose(self) -> None:
        self._exchange.close()


class Wire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """httpx's way to the app of the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return block_on(self._answer(request, request.read()))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._answer(request, await request.aread())

    async def _answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        await asyncio.sleep(0.001)
        if self._world.refuses:
            raise httpx.ConnectError("connection refused")
        timeout = request.extensions["timeout"]["read"]
        exchange = Exchange(self._world, request, body)
        try:
            head = await exchange.next(timeout)
        except asyncio.CancelledError:
            exchange.close()
            raise
        assert head is not None, "the app answered nothing"
        return httpx.Response(head["status"], headers=head["headers"], stream=Body(exchange, timeout))


# --- the world ------------------------------------------------------------------------------------------


class Fleet(FakeFleet):
    """Real workers, whose jobs take as long as their first argument says."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        await super().start(pool, name, not_on)
        self._world.begin_worker(name)


class WorkersLink(RayLeaderLink):
    def __init__(self, pair: Pair) -> None:
        self._finder = PairFinder(pair)


def plan_of(job: ReadyJob) -> Plan:
    seconds = float(msgspec.json.decode(job.payload)["args"][0])
    return Plan(seconds, data=b'"slept"', output=b"awake\n")


class World:
    """A service that does nothing for hours, and who waits for it."""

    def __init__(self, seed: int, patch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.random = Random(seed)
        self.exchanges: set[Exchange] = set()
        self.refuses = False
        self.lost = 0  # leaders so far
        one_shape = {DEFAULT_POOL: PoolSettings(min_workers=WORKERS, max_workers=WORKERS)}
        self.pair = Pair(**{"pools": one_shape, **settings})
        self.pair.fleet = Fleet(self)
        self.replica = Replica(self.pair)
        self.managers = self.replica.managers
        self._workers: list[asyncio.Task[Any]] = []
        clock = VirtualTime(self.loop)
        for module in CLOCKED:
            patch.setattr(module, "time", clock)
        for module in (client, client_http, client_jobs):
            patch.setattr(module, "ThreadPoolExecutor", VirtualPool)
        wire = Wire(self)
        options = {"transport": wire, "trust_env": False}
        patch.setattr(Connection, "open", lambda _: httpx.Client(**options))
        patch.setattr(Connection, "open_async", lambda _: httpx.AsyncClient(**options))

    def begin_worker(self, name: str) -> None:
        def wall() -> float:
            return START + self.loop.time()

        worker = Worker(
            name=name,
            session=name,
            pool=DEFAULT_POOL,
            node="node",
            pid=1,
            settings=self.pair.settings,
            store=self.pair.store,
            leader=WorkersLink(self.pair),
            runner=SimulatedRunner(plan_of, wall),
            wall=wall,
            random=Random(name),
        )
        self._workers.append(self.loop.create_task(worker.run(), name=name))

    async def begin(self) -> None:
        await self.pair.leader_and_standby()
        await until(lambda: len(self.pair.fleet.there) == WORKERS)

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        await self.replica.app(scope, receive, send)

    def client(self, deadline_seconds: float | None = 60.0) -> Client:
        found = Client(URL, deadline_seconds=deadline_seconds)
        found.talks.random = Random(self.random.random())
        return found

    # --- what goes wrong ---

    def leader_to_lose(self) -> str | None:
        """Who leads, if there is another one to take over: to have none at all is another story."""
        roles = {each.role: name for name, each in self.pair.managers.items()}
        return roles.get("leader") if "standby" in roles else None

    def kill_leader(self) -> None:
        """SIGKILL; its process begins again soon, as the standby."""
        name = self.leader_to_lose()
        if name is None:
            return
        self.lost += 1
        self.pair.kill(name)
        self.loop.call_later(2.0, self.pair.start, name)

    def stop_leader(self) -> None:
        """SIGSTOP, and nothing tells: it answers nobody until its process is replaced."""
        name = self.leader_to_lose()
        if name is None:
            return
        self.lost += 1
        self.pair.silent.add(name)
        self.pair.kill(name)

        def again() -> None:
            self.pair.silent.discard(name)
            self.pair.start(name)

        self.loop.call_later(30.0, again)

    def kill_replica(self) -> None:
        """All its connections break; for a moment there is none."""
        for each in list(self.exchanges):
            each.broken()
        self.refuses = True

        def again() -> None:
            self.refuses = False

        self.loop.call_later(2.0, again)


def run(
    story: Callable[[World], Coroutine[Any, Any, T]],
    patch: pytest.MonkeyPatch,
    seed: int = 0,
    **settings: Any,
) -> T:
    """A story in a world that has begun."""

    async def whole() -> T:
        world = World(seed, patch, **settings)
        await world.begin()
        return await story(world)

    return virtual_loop.run(whole())
