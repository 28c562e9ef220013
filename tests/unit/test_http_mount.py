"""The whole API below a prefix, as a server with several applications mounts it."""

from __future__ import annotations

from typing import Any

import httpx

from .http_world import Replica, run

PREFIX = "/of/jobs"


def below(replica: Replica) -> httpx.AsyncClient:
    """What Serve does: the prefix stays in `path`, and is told as `root_path`."""
    transport = httpx.ASGITransport(replica.app, root_path=PREFIX)
    return httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:8000{PREFIX}")


def test_everything_is_there_and_addresses_carry_the_prefix() -> None:
    async def story(replica: Replica) -> None:
        async with below(replica) as http:
            taken = await http.post("/v1/jobs", json={"task": "jobsvc.echo", "args": [1]})
            assert taken.status_code == 202, taken.text
            document: dict[str, Any] = taken.json()
            links = document["links"]
            assert taken.headers["location"] == links["self"] == f"{PREFIX}/v1/jobs/{document['id']}"
            assert all(each.startswith(f"{PREFIX}/v1/") for each in links.values() if each)
            again = await http.get(links["self"].removeprefix(PREFIX))
            assert again.json()["id"] == document["id"]
            missing = await http.get("/v1/nothing")
            assert missing.status_code == 404 and missing.json()["instance"].startswith(
                f"{PREFIX}/v1/nothing"
            )
            for path in ("/", "/web/app.js", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics"):
                assert (await http.get(path)).status_code == 200, path
            put = await http.put("/enqueue?iterations=1", content=b"x")
            assert put.headers["location"].startswith(f"{PREFIX}/v1/jobs/")

    run(story)


def test_the_prefix_alone_leads_to_the_page() -> None:
    async def story(replica: Replica) -> None:
        async with below(replica) as http:
            answer = await http.get(f"http://127.0.0.1:8000{PREFIX}")
            assert answer.status_code == 307 and answer.headers["location"] == f"{PREFIX}/"

    run(story)


def test_a_prefix_opens_nothing() -> None:
    async def story(replica: Replica) -> None:
        async with below(replica) as http:
            assert (await http.get("/")).status_code == 200
            for path in ("/v1/jobs", "/metrics", "/docs"):
                assert (await http.get(path)).status_code == 401, path

    run(story, token="a token")
