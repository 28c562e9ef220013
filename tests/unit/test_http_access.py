"""Who may speak to the service: tokens, and browsers that were sent by somebody else's page."""

from __future__ import annotations

import logging

import httpx
import pytest

from jobsvc.access import check_bind
from jobsvc.errors import InvalidRequest

from .http_world import Replica, run
from .test_http_api import is_problem

TOKEN = "correct horse battery staple"
WRITE = {"task": "jobsvc.echo"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org", ""])
def test_a_host_that_others_reach_needs_a_token(host: str) -> None:
    for token in (None, ""):
        with pytest.raises(InvalidRequest, match="JOBSVC_TOKEN"):
            check_bind(host, token)
    check_bind(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_none(host: str) -> None:
    check_bind(host, None)


def test_with_a_token_everything_but_health_and_the_empty_page_needs_it() -> None:
    async def story(replica: Replica) -> None:
        for path in (
            "/v1/jobs",
            "/v1/status",
            "/metrics",
            "/openapi.json",
            "/docs",
            "/nope",
            "/healthz/x",
            "/webx",
        ):
            answer = await replica.http.get(path)
            is_problem(answer, 401, "unauthorized", "Authorization")
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert (await replica.http.get(path, headers=bearer(TOKEN))).status_code in (200, 404)
        for path in ("/healthz", "/readyz"):
            assert (await replica.http.get(path)).status_code == 200
        assert (await replica.http.get("/")).status_code == 200, "it asks for the token itself"
        assert (await replica.http.get("/web/nope.js")).status_code == 404
        assert (await replica.http.post("/")).status_code == 401
        assert (await replica.http.put("/enqueue?iterations=1", content=b"x")).status_code == 401
        assert replica.jobs == 0

    run(story, token=TOKEN)


def test_a_token_that_is_not_quite_right_is_wrong() -> None:
    async def story(replica: Replica) -> None:
        wrong = [TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "", "\u00fc"]
        values = [f"Bearer {token}".encode() for token in wrong] + [
            b"Basic " + TOKEN.encode(),
            TOKEN.encode(),
        ]
        for value in values:
            answer = await replica.http.get("/v1/jobs", headers=httpx.Headers([(b"Authorization", value)]))
            is_problem(answer, 401, "unauthorized", "Authorization")
        twice = httpx.Headers([("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")])
        is_problem(await replica.http.get("/v1/jobs", headers=twice), 401, "unauthorized", "Authorization")
        assert (
            await replica.http.get("/v1/jobs", headers={"authorization": f"bearer  {TOKEN}"})
        ).status_code == 200

    run(story, token=TOKEN)


def test_a_token_is_told_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def story(replica: Replica) -> None:
        async def broken(*requests: object) -> None:
            raise RuntimeError("defect")

        answers = [await replica.http.get("/v1/jobs", headers=bearer(TOKEN + "x"))]
        replica.gateway.ask = broken  # type: ignore[assignment, method-assign]
        answers.append(await replica.http.get("/v1/jobs", headers=bearer(TOKEN)))
        assert [answer.status_code for answer in answers] == [401, 500]
        assert all(TOKEN not in answer.text for answer in answers)

    run(story, token=TOKEN)
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "127.0.0.1:8000", "127.0.0.2", "[::1]:8000", "LocalHost:1", "[::1]"],
)
def test_without_a_token_loopback_names_are_served(host: str) -> None:
    async def story(replica: Replica) -> None:
        assert (await replica.http.post("/v1/jobs", json=WRITE, headers={"Host": host})).status_code == 202

    run(story)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1:8000", "evil@localhost",
     "[::", "",
     "localhost:x", "0.0.0.0:8000", "[::ffff:10.0.0.1]"],
)  # fmt: skip
def test_without_a_token_other_names_are_refused_also_for_reading(host: str) -> None:
    async def story(replica: Replica) -> None:
        for method, path in (("GET", "/v1/jobs"), ("PUT", "/enqueue?iterations=1"), ("GET", "/metrics")):
            answer = await replica.http.request(method, path, headers={"Host": host})
            is_problem(answer, 403, "not_allowed", "Host")
        assert (await replica.http.get("/healthz", headers={"Host": host})).status_code == 200
        assert replica.jobs == 0

    run(story)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8000.evil.example"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:8000"},
    ],
)
def test_pages_from_elsewhere_may_not_write(headers: dict[str, str]) -> None:
    async def story(replica: Replica) -> None:
        (field,) = {"Origin", "Sec-Fetch-Site"} & headers.keys() - ({"Origin"} if len(headers) > 1 else set())
        for method, path in (
            ("POST", "/v1/jobs"), ("PUT", "/enqueue?iterations=1"), ("POST", "/pullCompleted"),
            ("PATCH", "/v1/queues/default"), ("POST", "/v1/jobs:batch"),
        ):  # fmt: skip
            answer = await replica.http.request(method, path, json=WRITE, headers=headers)
            is_problem(answer, 403, "not_allowed", field)
        assert replica.jobs == 0
        # reading is kept from that page by the browser: no answer ever allows it to look
        answer = await replica.http.get("/v1/jobs", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]

    run(story)


def test_the_services_own_page_may_write() -> None:
    async def story(replica: Replica) -> None:
        own = {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}
        assert (await replica.http.post("/v1/jobs", json=WRITE, headers=own)).status_code == 202

    run(story)


def test_with_a_token_the_name_and_origin_do_not_matter() -> None:
    async def story(replica: Replica) -> None:
        headers = {**bearer(TOKEN), "Host": "jobs.example.org", "Origin": "https://page.example"}
        assert (await replica.http.post("/v1/jobs", json=WRITE, headers=headers)).status_code == 202

    run(story, token=TOKEN)


def test_what_callers_sent_is_given_back_in_a_way_that_no_browser_runs() -> None:
    async def story(replica: Replica) -> None:
        answer = await replica.http.put("/enqueue?iterations=1", content=b"<script>alert(1)</script>")
        payload = await replica.http.get(f"/v1/jobs/{answer.json()['id']}/payload")
        assert payload.headers["content-disposition"] == "attachment"
        assert payload.headers["content-security-policy"] == "sandbox"
        assert payload.headers["x-content-type-options"] == "nosniff"

    run(story)
