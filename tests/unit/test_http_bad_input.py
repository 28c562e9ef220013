"""Ten thousand clients' worth of bad input, at every endpoint: never a 500, and nothing half taken.

What is held for every exchange, whatever was sent: it is not the service that failed; what is not a success
is a problem document; and the number of jobs grows exactly by what the answer says was accepted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from jobsvc.http_operations import OPERATIONS
from jobsvc.jobs import Outcome, State

from .http_world import Replica
from .manager_world import Pair, until
from .queue_world import job_id

QUICK = settings(
    max_examples=1_000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Service:
    """A leader and a replica on a real event loop that runs while a request is out."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.replica = self.loop.run_until_complete(self._start())
        self.documented = {(operation.method, operation.path): operation.answers for operation in OPERATIONS}

    async def _start(self) -> Replica:
        pair = Pair(batch_jobs_max=50, request_bytes_max=200_000)
        pair.settings = msgspec.structs.replace(pair.settings, request_deadline_seconds=5.0)
        manager = pair.start("manager-a")
        await until(lambda: manager.role == "leader")
        return Replica(pair)

    def close(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def exchange(self, method: str, path: str, **sent: Any) -> httpx.Response:
        """One exchange, judged by what must hold for every one."""
        before = self.replica.jobs
        request = self.replica.http.build_request(method, path, **sent)
        answer: httpx.Response = self.loop.run_until_complete(self.replica.http.send(request))
        self.judge(answer, self.replica.jobs - before)
        return answer

    def judge(self, answer: httpx.Response, grown: int) -> None:
        told = (answer.request.method, answer.request.url, answer.status_code, answer.text[:300])
        assert answer.status_code < 500, told
        assert answer.headers["x-request-id"], told
        if answer.status_code < 400:
            repeated = "idempotency-key" in answer.request.headers  # then the job may be an old one
            assert grown == accepted(answer) or (repeated and grown == 0), told
            return
        assert grown == 0, told
        assert answer.headers["content-type"] == "application/problem+json", told
        if answer.request.method != "HEAD":
            document = answer.json()
            assert document["status"] == answer.status_code and document["detail"], told


def accepted(answer: httpx.Response) -> int:
    """How many new jobs an answer tells of."""
    path = answer.request.url.path
    if answer.request.method == "PUT" and path == "/enqueue":
        return 1
    if answer.request.method == "POST" and path == "/v1/jobs":
        return int(answer.json()["created"])
    if path == "/v1/jobs:batch":
        return len(answer.json()["ids"]) if answer.json()["created"] else 0
    return 0


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    found = Service()
    yield found
    found.close()


# --- what is sent ---------------------------------------------------------------------------------------

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["jobsvc.echo", "jobsvc.sha512", "\ud800", "\x00", "2030-01-01T00:00:00Z", "9" * 400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
MISSING = "00000000-0000-7000-8000-00000000ffff"
FIELDS = [
    "task", "args", "kwargs", "queue", "priority", "max_attempts", "max_crashes", "timeout_seconds", "run_at",
    "retention_seconds", "backoff_base_seconds", "backoff_cap_seconds", "delay_seconds", "batch", "labels",
]  # fmt: skip
nearly_jobs = st.builds(
    lambda job, task: {**job, "task": task} if task else job,
    st.dictionaries(st.sampled_from([*FIELDS, "tsk", ""]), anything, max_size=4),
    st.sampled_from(["jobsvc.echo", "jobsvc.echo", "jobsvc.echo", "no.such", None]),
)


def as_json(value: Any) -> bytes:
    """JSON as careless programs write it: with NaN, lone surrogates and numbers of any size."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


@st.composite
def broken(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were right, and then cut, doubled or scratched."""
    data = draw(whole)
    how = draw(st.sampled_from(["as it is", "cut", "scratched", "followed", "deep"]))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    if how == "cut":
        return data[:place]
    if how == "scratched":
        return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
    if how == "followed":
        return data + draw(st.binary(max_size=5))
    if how == "deep":
        return data[:place] + b"[" * draw(st.sampled_from([10, 990, 5_000])) + data[place:]
    return data


header_text = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40
)
content_types = st.sampled_from(
    ["application/json", "application/x-ndjson", "application/octet-stream", "text/plain",
     "multipart/form-data",
     "application/json; charset=utf-16", "", ";", "application/problem+json"]
)  # fmt: skip


@st.composite
def headers(draw: st.DrawFn) -> list[tuple[bytes, bytes]]:
    named: list[tuple[bytes, bytes]] = []
    if draw(st.booleans()):
        named.append((b"content-type", draw(content_types).encode()))
    for name in draw(st.lists(st.sampled_from(
        ["Idempotency-Key", "Prefer", "X-Request-Id", "Content-Encoding", "Last-Event-ID", "Origin", "Range",
         "If-Match", "Sec-Fetch-Site", "Authorization"]
    ), max_size=2)):  # fmt: skip
        value = draw(st.one_of(header_text, st.sampled_from(["k1", "k2", "wait=0", "~x", "gzip", "1"])))
        named.append((name.encode(), value.encode("latin-1")))
    return named


queries = st.one_of(
    st.lists(
        st.tuples(
            st.sampled_from(
                [*FIELDS, "iterations", "top", "state", "cursor", "limit", "after", "attempt", "tail"]
            ),
            st.text(max_size=12)
            | st.integers(-5, 10**20).map(str)
            | st.sampled_from(["nan", "1e9", "{}", "[]"]),
        ),
        max_size=3,
    ).map(urlencode),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=30),
)  # fmt: skip


# --- what must hold -------------------------------------------------------------------------------------


def test_bad_jobs_are_refused_whole(service: Service) -> None:
    @QUICK
    @given(broken(nearly_jobs.map(as_json)), headers())
    def hold(body: bytes, head: list[tuple[bytes, bytes]]) -> None:
        service.exchange("POST", "/v1/jobs", content=body, headers=head)

    hold()


def test_bad_batches_are_refused_whole(service: Service) -> None:
    arrays = st.lists(nearly_jobs, max_size=4).map(as_json)
    lines = st.lists(nearly_jobs.map(as_json), max_size=4).map(b"\n".join)

    @settings(QUICK, max_examples=600)
    @given(broken(arrays | lines), headers())
    def hold(body: bytes, head: list[tuple[bytes, bytes]]) -> None:
        service.exchange("POST", "/v1/jobs:batch", content=body, headers=head)

    hold()


def test_bad_queries_and_bodies_at_the_old_endpoints(service: Service) -> None:
    @QUICK
    @given(st.sampled_from(["PUT", "POST"]), queries, st.binary(max_size=300), headers())
    def hold(method: str, query: str, body: bytes, head: list[tuple[bytes, bytes]]) -> None:
        path = "/enqueue" if method == "PUT" else "/pullCompleted"
        service.exchange(method, f"{path}?{query}", content=body, headers=head)

    hold()


def test_raw_jobs_with_bad_queries(service: Service) -> None:
    raw = (b"content-type", b"application/octet-stream")

    @QUICK
    @given(queries, st.binary(max_size=50), st.booleans())
    def hold(query: str, body: bytes, named: bool) -> None:
        task = "task=jobsvc.echo&" if named else ""
        service.exchange("POST", f"/v1/jobs?{task}{query}", content=body, headers=[raw])

    hold()


def test_any_method_at_any_address(service: Service) -> None:
    ids = st.sampled_from(["{id}", "x", "%00", "%FF", "..", MISSING, "%E2%82%AC"])
    parts = st.sampled_from(
        ["/v1/jobs/", "/v1/queues/", "/v1/completions", "/v1/status", "/v1/workers", "/v1/tasks",
         "/metrics", "/",
         "/v1/queues", "/healthz", "/openapi.json", "/docs", "/v1/jobs"]
    )  # fmt: skip
    ends = st.sampled_from(["", "/result", "/payload", "/logs", "/cancel", "/retry", "/", "//", ":batch"])
    methods = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"])
    [known] = service.loop.run_until_complete(_some_ids(service.replica))

    @QUICK
    @given(methods, parts, ids, ends, queries, st.binary(max_size=30), headers())
    def hold(
        method: str, part: str, name: str, end: str, query: str, body: bytes, head: list[tuple[bytes, bytes]]
    ) -> None:
        query = query.replace("wait", "w")  # long polls are another test's business
        path = part + (name.replace("{id}", known) if part.endswith("s/") else "") + end
        service.exchange(method, f"{path}?{query}", content=body, headers=head)

    hold()


async def _some_ids(replica: Replica) -> list[str]:
    return [await replica.enqueue()]


def test_what_a_generator_makes_of_the_openapi_document(service: Service) -> None:
    """Schemathesis makes requests of the document, right and wrong ones, and compares the answers with it."""
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", service.replica.app, headers={"Host": "localhost"}
    )
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    seen: set[str] = set()
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        for mode in schemathesis.GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(QUICK, max_examples=25)
            @given(strategy)
            def hold(case: schemathesis.Case[Any]) -> None:
                _play(service, case, checks)

            hold()
        seen.add(operation.label)
    assert len(seen) == len(OPERATIONS)


def _play(service: Service, case: schemathesis.Case[Any], checks: list[Any]) -> None:
    """One request of the generator, over the same loop as all others."""
    sent = case.as_transport_kwargs()
    named = dict(sent.get("headers") or {})
    named.pop("Prefer", None)
    if "event-stream" in str(named) or "wait" in (case.query or {}):
        return  # goes on for long; tested elsewhere
    body = sent.get("data")
    content = (
        msgspec.json.encode(sent["json"]) if "json" in sent else body if isinstance(body, bytes) else None
    )
    if isinstance(body, str):
        content = body.encode("utf-8", "surrogatepass")
    head = [
        (str(k).encode("latin-1", "replace"), str(v).encode("latin-1", "replace")) for k, v in named.items()
    ]
    answer = service.exchange(
        case.method, case.formatted_path, params=case.query or None, content=content, headers=head
    )
    response = schemathesis.Response.from_any(answer)
    case.validate_response(response, checks=checks)


def _latin(text: object) -> bytes:
    return str(text).encode("latin-1", "replace")


# --- the service is as it was ---------------------------------------------------------------------------


def test_after_all_this_it_still_works(service: Service) -> None:
    async def story() -> None:
        replica = service.replica
        for queue in (await replica.http.get("/v1/queues")).json()["queues"]:
            if queue["paused"]:
                await replica.http.patch(f"/v1/queues/{queue['name']}", json={"paused": False})
        states = {State.QUEUED, State.SCHEDULED, State.CANCELLED}
        assert {job.state for job in replica.leader.state.jobs.values()} <= states
        new = await replica.enqueue(priority=1000)
        [grant] = await replica.take(1)
        await replica.finish(grant, b'"fine"')
        assert (await replica.http.get(f"/v1/jobs/{new}/result")).json() == "fine"
        assert Outcome.SUCCEEDED.value == (await replica.http.get(f"/v1/jobs/{new}")).json()["state"]
        assert job_id(1) not in replica.leader.state.jobs

    service.loop.run_until_complete(story())
