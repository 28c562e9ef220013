"""The express lane: another way to the same answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from jobsvc import serve_express, serve_proxy
from jobsvc.http_express import EXPRESS_ROUTES, ExpressLane
from jobsvc.http_operations import OPERATIONS

from .http_world import Replica, run

REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "/enqueue?iterations=3", {"content": b"\xff\x00hello"}),
    ("PUT", "/enqueue", {"content": b"hello"}),
    ("PUT", "/enqueue?iterations=0", {}),
    ("PUT", "/enqueue?iterations=2&iterations=3", {}),
    ("PUT", "/enqueue?iterations=2", {"headers": {"Idempotency-Key": "~mine"}}),
    ("PUT", "/enqueue?iterations=2", {"headers": {"Content-Encoding": "gzip"}}),
    ("PUT", "/enqueue?iterations=2", {"headers": {"Host": "example.com"}}),
    ("PUT", "/enqueue?iterations=2", {"headers": {"Origin": "http://example.com"}}),
    ("PUT", "/enqueue?iterations=2", {"headers": {"X-Request-Id": "mine"}}),
    ("PUT", "/enqueue?iterations=2", {"content": b"x" * 2_000}),
    ("POST", "/v1/jobs", {"json": {"task": "jobsvc.echo", "args": [1]}}),
    ("POST", "/v1/jobs", {"json": {"task": "no.such.task"}}),
    ("POST", "/v1/jobs", {"content": b"{"}),
    ("POST", "/v1/jobs", {"content": b"x", "headers": {"Content-Type": "image/png"}}),
    ("POST", "/v1/jobs:batch", {"json": [{"task": "jobsvc.echo", "args": [1]}] * 3}),
    ("POST", "/v1/jobs:batch", {"json": [{"task": "jobsvc.echo"}, {"task": 7}]}),
    ("GET", "/enqueue", {}),
    ("DELETE", "/v1/jobs:batch", {}),
    ("PUT", "/enqueue/", {}),
]


async def told(app: Any, method: str, path: str, fields: dict[str, Any]) -> tuple[Any, ...]:
    """All of an answer but what is new in each: ids and times."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
        answer = await http.request(method, path, **fields)
    headers = {
        name: value for name, value in answer.headers.items() if name not in ("location", "x-request-id")
    }
    document = answer.json()
    for name in ("id", "ids", "request_id", "links", "enqueued_at", "created_at", "ready_at", "place"):
        document.pop(name, None)
    headers.pop("content-length")
    return answer.status_code, headers, document, answer.headers.get("x-request-id") == "mine"


@pytest.mark.parametrize(("method", "path", "fields"), REQUESTS)
def test_both_ways_give_the_same_answer(method: str, path: str, fields: dict[str, Any]) -> None:
    async def story(replica: Replica) -> None:
        # given the long way and the short one to the same replica
        short = ExpressLane(replica.app, replica.app.state.express)
        # then a request is answered alike, and leaves as many jobs behind
        expected = await told(replica.app, method, path, fields)
        jobs = replica.jobs
        assert await told(short, method, path, fields) == expected
        assert replica.jobs == 2 * jobs

    run(story, request_bytes_max=1_500)


def test_the_short_way_really_is_one() -> None:
    async def story(replica: Replica) -> None:
        async def long_way(scope: Any, receive: Any, send: Any) -> None:
            raise AssertionError("an enqueue went the long way")

        short = ExpressLane(long_way, replica.app.state.express)
        assert (await told(short, "PUT", "/enqueue?iterations=1", {"content": b"x"}))[0] == 200
        figures = replica.app.state.own_figures()
        assert any("/enqueue" in str(key) for key in figures.requests), "it was not counted"

    run(story)


def test_a_defect_on_the_short_way_is_a_500_without_its_details(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(replica: Replica) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr(replica.gateway, "get", broken)
        short = ExpressLane(replica.app, replica.app.state.express)
        status, _, document, _ = await told(short, "PUT", "/enqueue?iterations=1", {"content": b"x"})
        assert (status, document["code"]) == (500, "internal")
        assert "secret" not in str(document)

    run(story)


def test_express_routes_are_routes_of_the_table() -> None:
    assert {(each.method, each.path) for each in OPERATIONS} >= EXPRESS_ROUTES


def test_a_process_without_a_replica_has_no_express_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    # Serve asks for middlewares in its proxies, too
    monkeypatch.setattr(serve_express, "_express", None)
    assert serve_express.middlewares() == []
    # and finds the function by this name
    assert f"{serve_express.__name__}.{serve_express.middlewares.__name__}" == serve_proxy.EXPRESS_LANE
