"""A service in this process: the real manager, gateway and app over a memory store, in a thread of its own.

Requests go straight into the ASGI app as the bytes that a server would hand it, so that stories can send
what no client library sends. `work` is a worker that takes whatever is ready and reports it.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import uuid_utils
from fastapi import FastAPI

from jobsvc import commands as c
from jobsvc.errors import Unavailable
from jobsvc.gateway import Gateway
from jobsvc.http_api import build_app
from jobsvc.http_express import ExpressLane
from jobsvc.jobs import (
    BlobRef,
    Finished,
    Grant,
    NotLeader,
    Outcome,
    Result,
    WorkerOrders,
    WorkerReport,
    encode,
)
from jobsvc.manager import Manager
from jobsvc.object_store import MemoryObjectStore
from jobsvc.settings import DEFAULT_POOL, PoolSettings, Settings
from jobsvc.tasks import load_tasks

ANSWER_SECONDS = 30.0
HOST = "127.0.0.1:8000"
WORKER = "w"

T = TypeVar("T")
Headers = Sequence[tuple[bytes, bytes]]

_replies: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(c.FlightReply | NotLeader)
_orders: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(WorkerOrders | NotLeader)
_pages: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(c.FeedPage | NotLeader)
_statuses = msgspec.msgpack.Decoder(c.ManagerStatus)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class _Nobody:
    """No other manager, and no machines but the one where the test's own worker is."""

    name = "manager-b"

    async def push(self, records: list[bytes]) -> int:
        raise Unavailable("there is no other manager")

    async def status(self) -> None:
        return None

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None: ...

    async def end(self, name: str) -> None: ...

    async def names(self) -> dict[str, str]:
        return {WORKER: DEFAULT_POOL}  # a worker that nobody lists would be lost, and its jobs with it

    async def trouble(self) -> str | None:
        return None

    async def machines(self) -> None:
        return None


class _ToTheManager:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def send(self, flight: c.Flight) -> c.FlightReply:
        return self._leads(_replies.decode(await self._manager.handle_flight(encode(flight))))

    async def wait_feed(self, query: c.ReadFeed, wait_seconds: float) -> c.FeedPage:
        return self._leads(_pages.decode(await self._manager.wait_feed(encode(query), wait_seconds)))

    async def statuses(self) -> list[c.ManagerStatus]:
        return [_statuses.decode(self._manager.status())]

    def _leads(self, answer: Any) -> Any:
        if isinstance(answer, NotLeader):
            raise Unavailable("nobody leads")
        return answer


class ServedApp:
    """Use as a context manager, from one thread."""

    def __init__(self, token: str | None = None, **settings: Any) -> None:
        self.token = token
        one_worker = {DEFAULT_POOL: PoolSettings(min_workers=1, max_workers=1)}  # it is never sent home
        self.settings = Settings(**{"pools": one_worker, **settings})
        self.store = MemoryObjectStore()
        self.app: FastAPI
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> ServedApp:
        self._thread.start()
        self.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, story: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(story, self._loop).result(ANSWER_SECONDS)

    async def _start(self) -> None:
        nobody = _Nobody()
        self._manager = Manager(
            name="manager-a",
            settings=self.settings,
            store=self.store,
            peer=nobody,
            fleet=nobody,
            wall=time.time,
            random=random.Random(1),
            nonce=uuid_utils.uuid7().bytes,
            node="node",
            pid=1,
        )
        self._life = asyncio.create_task(self._manager.run())
        while self._manager.leader is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        gateway = Gateway(
            _ToTheManager(self._manager),
            self.store,
            self.settings,
            new_id=lambda: uuid_utils.uuid7().bytes,
            wall=time.time,
        )
        self.app = build_app(gateway, self.settings, self.token, load_tasks(self.settings.tasks))

    async def _stop(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.wait(others)

    def jobs(self) -> int:
        """How many jobs the leader holds."""
        return len(self._manager.state.jobs)

    def http_waiting(self) -> int:
        """How many requests wait for the end of a job."""
        return int(self.app.state.own_figures().gauges["http_waiting"])

    # --- requests ---

    def ask(
        self,
        method: str,
        path: str,
        query: bytes = b"",
        headers: Headers = (),
        body: bytes = b"",
        *,
        hang_up: bool = False,
    ) -> Answer | None:
        """One exchange; None if the app answered nothing. `hang_up`: the body breaks off."""
        return self.run(self._ask(method, path, query, headers, body, hang_up))

    async def _ask(
        self, method: str, path: str, query: bytes, headers: Headers, body: bytes, hang_up: bool
    ) -> Answer | None:
        half = len(body) // 2
        pieces: list[dict[str, Any]] = [
            {"type": "http.request", "body": body[:half], "more_body": True},
            {"type": "http.request", "body": body[half:], "more_body": False},
        ]
        if hang_up:
            pieces[1] = {"type": "http.disconnect"}
        is_stream = asyncio.Event()
        started: list[dict[str, Any]] = []
        sent: list[bytes] = []

        async def receive() -> dict[str, Any]:
            if pieces:
                return pieces.pop(0)
            await is_stream.wait()  # whoever reads a stream leaves after its first bytes
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.append(message)
                return
            sent.append(message.get("body", b""))
            if any(value.startswith(b"text/event-stream") for _, value in started[0]["headers"]):
                is_stream.set()

        named = [] if any(name == b"host" for name, _ in headers) else [(b"host", HOST.encode())]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("utf-8", "surrogateescape"),
            "query_string": query,
            "root_path": "",
            "headers": [*named, *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        await ExpressLane(self.app, self.app.state.express)(scope, receive, send)
        if not started:
            return None
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in started[0]["headers"]}
        return Answer(started[0]["status"], found, b"".join(sent))

    # --- a worker ---

    def work(self) -> int:
        """Take what is ready, read it as a worker would, report it. Returns how many jobs ended."""
        return self.run(self._work())

    async def _work(self) -> int:
        ended = 0
        finished: list[Finished] = []
        while True:
            report = WorkerReport(WORKER, "s", "default", "node", 7, finished=finished, can_take=100)
            orders = _orders.decode(await self._manager.report_and_ask(encode(report)))
            finished = [await self._finish(grant, orders.options[grant.option]) for grant in orders.grants]
            ended += len(finished)
            if not finished:
                return ended

    async def _finish(self, grant: Grant, options: Any) -> Finished:
        payload = grant.payload
        if isinstance(payload, BlobRef):
            stored = await self.store.get(payload.key, payload.offset, payload.length)
            assert stored is not None, "an accepted job has its payload"
            payload = stored
        if options.content == "raw":
            line, _, data = payload.partition(b"\n")
            args, kwargs = [data], msgspec.json.decode(line)
        else:
            call = msgspec.json.decode(payload)
            args, kwargs = call["args"], call["kwargs"]
        assert isinstance(args, list) and isinstance(kwargs, dict)
        result = Result("json", b'"done"')
        return Finished(grant.job_id, grant.attempt, Outcome.SUCCEEDED, 1.0, 2.0, result)
