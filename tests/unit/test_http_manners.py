"""HEAD where GET is, OPTIONS, a slash at the end: what health checks and people send."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from jobsvc.http_operations import OPERATIONS

from .local_service import LocalService

STREAM = "/v1/events"  # nothing else, without an end
PAGES = ["/", "/docs", "/openapi.json"]
GETS = sorted({each.path for each in OPERATIONS if each.method == "GET"} - {STREAM}) + PAGES


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService(data="memory") as started:
        yield started


@pytest.fixture(scope="module")
def http(service: LocalService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=20.0) as connected:
        yield connected


@pytest.fixture(scope="module")
def job_id(http: httpx.Client) -> str:
    job_id = str(http.post("/v1/jobs", json={"task": "jobsvc.echo", "args": ["x" * 20_000]}).json()["id"])
    http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=15"})
    return job_id


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_its_body(http: httpx.Client, job_id: str, path: str) -> None:
    # given any address that may be read
    address = path.replace("{id}", job_id)
    got = http.get(address)
    # when it is asked for its head alone
    head = http.head(address)
    # then that is what a GET would have said
    assert head.status_code == got.status_code == 200, head
    assert head.content == b""
    for name in ("content-type", "cache-control", "content-disposition", "x-content-type-options"):
        assert head.headers.get(name) == got.headers.get(name), name
    if path not in ("/v1/status", "/metrics", "/v1/summary", "/v1/history", "/v1/queues", "/v1/workers"):
        assert head.headers.get("content-length") == got.headers.get("content-length")
    # and the connection is good for more
    assert http.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/v1/completions", STREAM])
def test_head_of_a_stream_ends_at_once(service: LocalService, path: str) -> None:
    before = service.app.state.own_figures().gauges["event_streams"]
    began = time.monotonic()
    with httpx.Client(base_url=service.url, timeout=20.0) as http:
        answer = http.head(path, headers={"Accept": "text/event-stream"})
        assert answer.content == b"" and time.monotonic() - began < 10
        assert http.head("/healthz").status_code == 200
    deadline = time.monotonic() + 10
    while service.app.state.own_figures().gauges["event_streams"] > before:
        assert time.monotonic() < deadline, "the stream goes on for nobody"
        time.sleep(0.02)


def test_no_byte_follows_a_head(service: LocalService) -> None:
    port = int(service.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall(b"HEAD /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        got = b""
        while piece := wire.recv(65_536):
            got += piece
    assert got.startswith(b"HTTP/1.1 200") and got.endswith(b"\r\n\r\n")


def test_errors_have_heads_too(http: httpx.Client) -> None:
    for path, status in (
        ("/nope", 404),
        ("/v1/jobs/x", 404),
        ("/v1/tasks?x=1", 400),
        ("/v1/jobs:batch", 405),
    ):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (status, b"")
    assert "POST" in http.head("/v1/jobs:batch").headers["allow"]


@pytest.mark.parametrize("path", sorted({each.path for each in OPERATIONS}))
def test_options_say_what_an_address_takes(http: httpx.Client, job_id: str, path: str) -> None:
    answer = http.options(path.replace("{id}", job_id).replace("{name}", "q"))
    methods = {each.method for each in OPERATIONS if each.path == path} | {"OPTIONS"}
    methods |= {"HEAD"} if "GET" in methods else set()
    assert (answer.status_code, answer.content) == (204, b"")
    assert set(answer.headers["allow"].split(", ")) == methods
    assert not any(name.startswith("access-control-") for name in answer.headers)


def test_options_of_nothing_and_of_everything_else(http: httpx.Client) -> None:
    assert http.options("/nope").status_code == 404


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/status", "/v1/jobs", "/docs"])
def test_a_slash_at_the_end_means_nothing(http: httpx.Client, path: str) -> None:
    assert http.get(path + "/").status_code == http.get(path).status_code == 200
    assert http.head(path + "/").status_code == 200
    assert http.get(path + "//").status_code == 404


def test_a_slash_at_the_end_of_a_write_is_the_same_write(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "with or without"}
    first = http.put("/enqueue/?iterations=2", content=b"hello", headers=headers)
    again = http.put("/enqueue?iterations=2", content=b"hello", headers=headers)
    assert first.status_code == again.status_code == 200 and first.json() == again.json()


def test_health_needs_no_token_by_any_method() -> None:
    with LocalService(data="memory", token="secret") as service, httpx.Client(base_url=service.url) as http:
        for path in ("/healthz", "/readyz", "/healthz/"):
            assert http.head(path).status_code == http.get(path).status_code == 200
        assert http.head("/v1/status").status_code == http.get("/v1/status").status_code == 401


def test_the_old_endpoint_hashes_a_form_with_its_boundary(http: httpx.Client) -> None:
    # given a file that is uploaded as a form, as `curl -F` does: its boundary is another one each time
    ids = [
        http.put("/enqueue?iterations=1", files={"file": b"hello"}, headers={"X-Request-Id": f"{n}"}).json()[
            "id"
        ]
        for n in range(2)
    ]
    plain = http.put("/enqueue?iterations=1", content=b"hello").json()["id"]
    digests = [
        http.get(f"/v1/jobs/{each}/result", headers={"Prefer": "wait=15"}).json() for each in (*ids, plain)
    ]
    # then what is hashed is the whole body, as it came, and not the file
    assert len(set(digests)) == 3
    assert digests[2].startswith("9b71d224bd62f378")
