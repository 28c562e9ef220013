"""The OpenAPI document and the table of routes: complete, and true."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from fastapi.routing import APIRoute

from jobsvc import http_views
from jobsvc.errors import REFUSALS
from jobsvc.http_operations import OPERATIONS
from jobsvc.jobs import Outcome, State

from .http_world import Replica, run

METHODS_WITH_A_KEY = {"PUT", "POST", "PATCH"}


def document_of(**settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def story(replica: Replica) -> None:
        found.update((await replica.http.get("/openapi.json")).json())
        served = {
            (method, route.path)
            for route in replica.app.routes
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }
        assert served == {(operation.method, operation.path) for operation in OPERATIONS}

    run(story, **settings)
    return found


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return document_of()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_route_says_what_it_takes_and_gives(document: dict[str, Any]) -> None:
    assert len(operations(document)) == len(OPERATIONS)
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"] and operation["description"] and operation["tags"], where
        names = [each["name"] for each in operation["parameters"]]
        assert len(names) == len(set(names)), where
        assert set(re.findall(r"{(\w+)}", path)) <= set(names), where
        assert all(each["schema"] and each["description"] for each in operation["parameters"]), where
        if method in METHODS_WITH_A_KEY:
            assert "Idempotency-Key" in names, where
        for status, response in operation["responses"].items():
            assert response["description"], f"{where} {status}"
            assert response["content"], f"{where} {status}"
            for kind, content in response["content"].items():
                assert content["schema"], f"{where} {status}"
                if int(status) >= 400:
                    assert kind == "application/problem+json", f"{where} {status}"
                    assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                    for code, example in content["examples"].items():
                        assert REFUSALS[code].status == int(status) == example["value"]["status"]
        assert "500" in operation["responses"]
        if path not in ("/healthz", "/readyz"):
            assert {"401", "403"} <= operation["responses"].keys(), where
        assert any(int(status) < 300 for status in operation["responses"]), where
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert content["schema"], where
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = msgspec.json.encode(document).decode()
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert name in document["components"]["schemas"], name


def test_bounds_and_names_of_a_job_are_in_the_schema(document: dict[str, Any]) -> None:
    job = document["components"]["schemas"]["JobRequest"]
    assert job["required"] == ["task"] and job["additionalProperties"] is False
    attempts = next(each for each in job["properties"]["max_attempts"]["anyOf"] if "maximum" in each)
    assert (attempts["minimum"], attempts["maximum"]) == (1, 1000)
    assert job["properties"]["args"]["type"] == "array"
    batch = document["paths"]["/v1/jobs:batch"]["post"]["requestBody"]["content"]
    assert set(batch) == {"application/json", "application/x-ndjson"}
    raw = {each["name"] for each in document["paths"]["/v1/jobs"]["post"]["parameters"]}
    assert job["properties"].keys() - {"args", "call"} <= raw


def test_the_words_of_the_state_machine_are_those_of_the_api() -> None:
    assert {state.value for state in State} == set(http_views.StateName.__args__)  # type: ignore[attr-defined]
    assert {outcome.value for outcome in Outcome} == set(http_views.OutcomeName.__args__)  # type: ignore[attr-defined]


def test_the_token_is_in_the_document_if_there_is_one() -> None:
    async def story(replica: Replica) -> None:
        answer = await replica.http.get("/openapi.json", headers={"Authorization": "Bearer t"})
        document = answer.json()
        assert document["security"] == [{"token": []}]
        assert document["paths"]["/healthz"]["get"]["security"] == []

    run(story, token="t")


def test_the_page_for_people_names_every_route_and_loads_nothing() -> None:
    async def story(replica: Replica) -> None:
        page = await replica.http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        for operation in OPERATIONS:
            assert f"<code>{operation.path}</code>" in page.text
        assert not re.search(r"<script|src=|https?://", page.text)

    run(story)
