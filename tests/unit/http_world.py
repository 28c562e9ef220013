"""The HTTP side over a real pair of managers, in virtual time: what a replica is, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import msgspec
from fastapi import FastAPI

from jobsvc import commands as c
from jobsvc.builtin_tasks import echo
from jobsvc.errors import Unavailable
from jobsvc.gateway import Gateway
from jobsvc.http_api import build_app
from jobsvc.http_express import ExpressLane
from jobsvc.jobs import (
    BlobRef,
    ErrorInfo,
    Finished,
    Grant,
    Outcome,
    Result,
    WorkerOrders,
)
from jobsvc.leader_links import LeaderFinder, RayManagers
from jobsvc.tasks import Registry, TaskDefinition, builtin_registry

from ..simulation import virtual_loop
from .manager_world import START, Pair, until
from .queue_world import job_id

_statuses = msgspec.msgpack.Decoder(c.ManagerStatus)


class PairFinder(LeaderFinder):
    """The real search for the leader. A manager that was killed is noticed, one that is `silent` is not."""

    def __init__(self, pair: Pair) -> None:
        super().__init__("in this process")
        self._pair = pair
        self.tries: list[str] = []

    async def _try(self, name: str, method: str, seconds: float, arguments: tuple[Any, ...]) -> bytes:
        self.tries.append(f"{name} {method}")
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        life = self._pair.tasks.get(name)
        if life is not None:
            manager: Any = self._pair.managers[name]
            call = loop.create_task(getattr(manager, method)(*arguments))
            await asyncio.wait([call, life], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            call.cancel()
            if call.done() and name not in self._pair.silent:
                answer: bytes = call.result()
                return answer
        if name in self._pair.silent:
            await asyncio.sleep(until - loop.time())
        raise Unavailable(f"{name} did not answer")


class PairManagers(RayManagers):
    """The replica's real way to the managers; only the call itself is simulated."""

    def __init__(self, pair: Pair) -> None:
        self.finder = self._finder = PairFinder(pair)
        self._deadline_seconds = pair.settings.request_deadline_seconds
        self._pair = pair
        self.flights: list[c.Flight] = []
        self.feed_calls = 0
        self.feed_open = 0

    async def send(self, flight: c.Flight) -> c.FlightReply:
        self.flights.append(flight)
        return await super().send(flight)

    async def wait_feed(self, query: c.ReadFeed, wait_seconds: float) -> c.FeedPage:
        self.feed_calls += 1
        self.feed_open += 1
        try:
            return await super().wait_feed(query, wait_seconds)
        finally:
            self.feed_open -= 1

    async def statuses(self) -> list[c.ManagerStatus]:
        return [_statuses.decode(manager.status()) for manager in self._pair.managers.values()]


class Replica:
    """One replica of the service, and hands to play worker with."""

    def __init__(self, pair: Pair, token: str | None = None, registry: Registry | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.pair = pair
        self.managers = PairManagers(pair)
        self.numbers = 1_000
        self.clock_error = 0.0
        self.gateway = Gateway(
            self.managers,
            pair.store,
            pair.settings,
            new_id=self._new_id,
            wall=lambda: START + loop.time() + self.clock_error,
        )
        self.app: FastAPI = build_app(self.gateway, pair.settings, token, registry or tasks())
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(ExpressLane(self.app, self.app.state.express)),
            base_url="http://localhost:8000",
            timeout=None,
        )

    def _new_id(self) -> bytes:
        self.numbers += 1
        return job_id(self.numbers)

    async def enqueue(self, task: str = "jobsvc.echo", **fields: Any) -> str:
        answer = await self.http.post("/v1/jobs", json={"task": task, **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    @property
    def leader(self) -> Any:
        return next(manager for manager in self.pair.managers.values() if manager.role == "leader")

    @property
    def jobs(self) -> int:
        """How many jobs the leader holds."""
        return len(self.leader.state.jobs)

    # --- a worker ---

    async def take(self, count: int = 1) -> list[Grant]:
        """A worker asks, and gets what is ready."""
        holding = [(job.id, job.attempt) for job in self.leader.state.leases.get("w1", {}).values()]
        orders = await self.pair.report(self.leader, can_take=count, holding=holding, busy=bool(holding))
        return orders.grants

    async def finish(self, grant: Grant, data: bytes = b"1", **fields: Any) -> WorkerOrders:
        result = fields.pop("result", Result("json", data))
        finished = Finished(
            grant.job_id, grant.attempt, Outcome.SUCCEEDED, START, START + 0.5, result, **fields
        )
        return await self.pair.report(self.leader, finished=[finished])

    async def fail(self, grant: Grant, error: ErrorInfo, outcome: Outcome = Outcome.RAISED) -> WorkerOrders:
        finished = Finished(grant.job_id, grant.attempt, outcome, START, START + 0.5, error=error)
        return await self.pair.report(self.leader, finished=[finished])

    async def run_all(self, data: bytes = b"1") -> int:
        """Take and finish whatever is queued. Returns how many jobs that were."""
        count = 0
        while grants := await self.take(100):
            for grant in grants:
                await self.finish(grant, data)
                count += 1
        return count

    async def store_object(self, key: str, data: bytes) -> BlobRef:
        await self.pair.store.put_new(key, data)
        return BlobRef(key, 0, len(data))


class Stream:
    """One streamed exchange with the app, event by event: httpx's transport would wait for its end."""

    def __init__(self, app: FastAPI, path: str, query: str = "", **headers: str) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._hang_up = asyncio.Event()
        self._asked = False
        named = {"host": "localhost:8000", "accept": "text/event-stream", **headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in named.items()],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 8000),
        }
        self.task = asyncio.get_running_loop().create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._hang_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self._pieces.put_nowait(message.get("body", b""))

    async def take(self, count: int) -> list[tuple[str | None, str, Any]]:
        """(id, name, data) of the next events; comments and the retry line are skipped."""
        found: list[tuple[str | None, str, Any]] = []
        while len(found) < count:
            piece = (await self._pieces.get()).decode()
            fields = dict(line.split(": ", 1) for line in piece.strip().splitlines() if ": " in line)
            if "event" in fields:
                found.append((fields.get("id"), fields["event"], msgspec.json.decode(fields["data"])))
        return found

    async def hang_up(self) -> None:
        self._hang_up.set()
        await asyncio.wait([self.task])


def tasks() -> Registry:
    """The built-in tasks, and one with options of its own."""
    registry = builtin_registry(allow_shell=False)
    registry.add(
        TaskDefinition(
            function=_caption, name="images.caption", queue="images", max_attempts=7, labels=(("team", "a"),)
        )
    )
    return registry


def _caption(url: str) -> object:
    return echo(url)


def run(
    story: Callable[[Replica], Coroutine[Any, Any, None]], *, token: str | None = None, **settings: Any
) -> None:
    """A story with a leader and one replica."""

    async def whole() -> None:
        pair = Pair(**settings)
        manager = pair.start("manager-a")
        await until(lambda: manager.role == "leader")
        await story(Replica(pair, token))

    virtual_loop.run(whole())
