"""The HTTP API over real managers: what each address does, and what it refuses."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import httpx
import pytest

from jobsvc.client_tables import status_rows
from jobsvc.http_api import build_app
from jobsvc.jobs import BlobRef, ErrorInfo, Outcome, Result, State
from jobsvc.object_store import StoreError
from jobsvc.tasks import builtin_registry

from .http_world import Replica, Stream, run
from .manager_world import until

MISSING = "00000000-0000-7000-8000-000000000000"


def is_problem(answer: httpx.Response, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code, document
    assert document["type"] == f"urn:jobsvc:problem:{code}"
    assert document["status"] == status
    assert document["title"] and document["detail"]
    assert document["request_id"] == answer.headers["x-request-id"]
    assert document["instance"] == answer.request.url.path
    assert isinstance(document["retryable"], bool)
    assert document.get("field") == field, document
    return document


# --- the old system's two endpoints ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (None, b""),
        ("text/plain", b"hello"),
        ("application/octet-stream", bytes(range(256)) * 64),
        ("application/json", b'{"task": "not looked into",'),
        ("application/x-www-form-urlencoded", b"a=1&b=%zz"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n1\r\n--x--',
        ),
        ("text/plain; charset=utf-16", b"\xff\xfe\x00\xd8"),
    ],
)
def test_old_enqueue_takes_the_raw_bytes_of_any_type(content_type: str | None, body: bytes) -> None:
    async def story(replica: Replica) -> None:
        headers = {"Content-Type": content_type} if content_type else {}
        answer = await replica.http.put(
            "/enqueue", params={"iterations": 1000}, content=body, headers=headers
        )
        assert answer.status_code == 200
        job_id = answer.json()["id"]
        assert answer.json() == {"id": job_id}
        assert answer.headers["location"] == f"/v1/jobs/{job_id}"
        # what the worker gets is those bytes
        [grant] = await replica.take()
        given = grant.payload
        given = await replica.gateway.read_blob(given) if isinstance(given, BlobRef) else given
        assert given == b'{"iterations":1000}\n' + body
        payload = await replica.http.get(f"/v1/jobs/{job_id}/payload")
        assert payload.content == body
        assert payload.headers["content-type"] == "application/octet-stream"

    run(story)


@pytest.mark.parametrize(
    "query",
    ["", "iterations=", "iterations=0", "iterations=-1", "iterations=1.5", "iterations=1e3",
     "iterations=%2B5", "iterations=10000001", "iterations=" + "9" * 5000, "iterations=NaN",
     "iterations=%D9%A3", "iterations=1_0",
     "iterations=1&iterations=2", "iterations=0x10", "iterations=true", "iterations=%201"],
)  # fmt: skip
def test_old_enqueue_names_the_field_when_iterations_are_wrong(query: str) -> None:
    async def story(replica: Replica) -> None:
        answer = await replica.http.put(f"/enqueue?{query}", content=b"x")
        is_problem(answer, 400, "invalid", "iterations")
        assert replica.jobs == 0

    run(story)


@pytest.mark.parametrize("top", ["0", "-1", "1001", "1.5", "many", "", "9" * 400, "1&top=2"])
def test_old_pull_names_the_field_when_top_is_wrong(top: str) -> None:
    async def story(replica: Replica) -> None:
        is_problem(await replica.http.post(f"/pullCompleted?top={top}"), 400, "invalid", "top")

    run(story)


def test_old_pull_gives_each_result_once_and_the_latest_first() -> None:
    async def story(replica: Replica) -> None:
        ids = []
        for n in range(3):
            answer = await replica.http.put("/enqueue?iterations=1", content=bytes([n]))
            ids.append(answer.json()["id"])
            [grant] = await replica.take()
            digest = hashlib.sha512(bytes([n])).hexdigest()
            await replica.finish(grant, f'"{digest}"'.encode())
        first = (await replica.http.post("/pullCompleted")).json()
        assert first == [{"id": ids[2], "value": hashlib.sha512(b"\x02").hexdigest()}]
        rest = (await replica.http.post("/pullCompleted?top=5")).json()
        assert [each["id"] for each in rest] == [ids[1], ids[0]]
        assert (await replica.http.post("/pullCompleted?top=5")).json() == []
        # a pulled result stays readable, and a pull is told apart from its repetition by the key
        assert (await replica.http.get(f"/v1/jobs/{ids[0]}")).json()["pulled"] is True
        assert (await replica.http.get(f"/v1/jobs/{ids[0]}/result")).json() == rest[1]["value"]

    run(story)


def test_a_pull_that_is_sent_again_under_its_key_gets_the_same_answer() -> None:
    async def story(replica: Replica) -> None:
        await replica.http.put("/enqueue?iterations=1", content=b"a")
        await replica.run_all(b'"abc"')
        headers = {"Idempotency-Key": "pull-1"}
        first = await replica.http.post("/pullCompleted", headers=headers)
        assert len(first.json()) == 1
        assert (await replica.http.post("/pullCompleted", headers=headers)).json() == first.json()
        assert (await replica.http.post("/pullCompleted")).json() == []

    run(story)


# --- enqueue --------------------------------------------------------------------------------------------


def test_a_job_is_accepted_with_all_that_was_said_of_it() -> None:
    async def story(replica: Replica) -> None:
        asked = {
            "task": "jobsvc.echo", "args": [1, "ü", None], "kwargs": {"a": 1.5}, "queue": "q-1",
            "priority": -7,
            "max_attempts": 9, "max_crashes": 2, "timeout_seconds": 1.5, "retention_seconds": 60,
            "backoff_base_seconds": 0, "backoff_cap_seconds": 8, "labels": {"run": "42"}, "batch": "b 1",
            "delay_seconds": 10,
        }  # fmt: skip
        answer = await replica.http.post("/v1/jobs", json=asked)
        assert answer.status_code == 202
        job = answer.json()
        for name in set(asked) - {"args", "kwargs", "delay_seconds"}:
            assert job[name] == asked[name], name
        assert answer.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
        assert (job["state"], job["created"], job["waiting"]) == ("scheduled", True, "for its time to come")
        assert job["created_at"].endswith("Z") and job["run_at"] > job["created_at"]
        payload = (await replica.http.get(job["links"]["payload"])).json()
        assert payload == {"args": [1, "ü", None], "kwargs": {"a": 1.5}}

    run(story)


def test_the_tasks_own_options_hold_where_the_request_says_nothing() -> None:
    async def story(replica: Replica) -> None:
        body = {"task": "images.caption", "args": ["s3://x"], "labels": {"b": "2"}}
        answer = await replica.http.post("/v1/jobs", json=body)
        job = answer.json()
        assert (job["queue"], job["max_attempts"]) == ("images", 7)
        assert job["labels"] == {"team": "a", "b": "2"}

    run(story)


def test_arguments_are_kept_as_the_bytes_that_came() -> None:
    async def story(replica: Replica) -> None:
        body = b'{"task":"jobsvc.echo","args":[1.0,  12345678901234567890, "\\u00fc"],"kwargs":{"a":1,"a":2}}'
        await replica.http.post("/v1/jobs", content=body)
        [grant] = await replica.take()
        assert grant.payload == b'{"args":[1.0,  12345678901234567890, "\\u00fc"],"kwargs":{"a":1,"a":2}}'

    run(story)


def test_raw_bytes_are_the_tasks_argument() -> None:
    async def story(replica: Replica) -> None:
        query = {"task": "jobsvc.echo", "kwargs": '{"a":\n [1]}', "priority": "5", "labels": '{"x": "y"}',
                 "timeout_seconds": "2.5"}  # fmt: skip
        headers = {"Content-Type": "application/octet-stream"}
        answer = await replica.http.post("/v1/jobs", params=query, content=b"\n\xff{", headers=headers)
        job = answer.json()
        assert (job["priority"], job["labels"], job["content"]) == (5, {"x": "y"}, "raw")
        [grant] = await replica.take()
        assert grant.payload == b'{"a":[1]}\n\n\xff{'

    run(story)


@pytest.mark.parametrize(
    ("change", "status", "code", "field"),
    [
        ({"task": None}, 400, "invalid", "task"),
        ({"task": ""}, 400, "invalid", "task"),
        ({"task": 5}, 400, "invalid", "task"),
        ({"task": "no.such"}, 422, "unknown_task", "task"),
        ({"task": "jobsvc.shell"}, 403, "not_allowed", "task"),
        ({"args": {}}, 400, "invalid", "args"),
        ({"args": "x"}, 400, "invalid", "args"),
        ({"kwargs": []}, 400, "invalid", "kwargs"),
        ({"kwargs": 3}, 400, "invalid", "kwargs"),
        ({"queue": ""}, 400, "invalid", "queue"),
        ({"queue": "a/b"}, 400, "invalid", "queue"),
        ({"queue": "q\n"}, 400, "invalid", "queue"),
        ({"queue": "q" * 129}, 400, "invalid", "queue"),
        ({"priority": 1001}, 400, "invalid", "priority"),
        ({"priority": "high"}, 400, "invalid", "priority"),
        ({"priority": 1.5}, 400, "invalid", "priority"),
        ({"priority": True}, 400, "invalid", "priority"),
        ({"max_attempts": 0}, 400, "invalid", "max_attempts"),
        ({"max_attempts": 1001}, 400, "invalid", "max_attempts"),
        ({"max_crashes": 0}, 400, "invalid", "max_crashes"),
        ({"timeout_seconds": 0}, 400, "invalid", "timeout_seconds"),
        ({"timeout_seconds": -1}, 400, "invalid", "timeout_seconds"),
        ({"retention_seconds": -1}, 400, "invalid", "retention_seconds"),
        ({"delay_seconds": 1e12}, 400, "invalid", "delay_seconds"),
        ({"delay_seconds": 1, "run_at": "2030-01-01T00:00:00Z"}, 400, "invalid", "delay_seconds"),
        ({"run_at": "2030-01-01"}, 400, "invalid", "run_at"),
        ({"run_at": "2030-01-01T00:00:00"}, 400, "invalid", "run_at"),
        ({"run_at": "9999-01-01T00:00:00Z"}, 400, "invalid", "run_at"),
        ({"labels": {"a": 1}}, 400, "invalid", "labels"),
        ({"labels": {"": "x"}}, 400, "invalid", "labels"),
        ({"labels": {"a": "x" * 200}}, 400, "invalid", "labels"),
        ({"labels": {str(n): "x" for n in range(40)}}, 400, "invalid", "labels"),
        ({"batch": "\x00"}, 400, "invalid", "batch"),
        ({"prioritee": 1}, 400, "invalid", "prioritee"),
    ],
)
def test_what_is_wrong_with_a_job_is_named(
    change: dict[str, Any], status: int, code: str, field: str
) -> None:
    async def story(replica: Replica) -> None:
        job = {"task": "jobsvc.echo", **change}
        if change.get("task", "") is None:
            del job["task"]
        is_problem(await replica.http.post("/v1/jobs", json=job), status, code, field)
        # in a batch, the item is named too, and its good neighbours are not taken
        batch = [{"task": "jobsvc.echo"}, job, {"task": "jobsvc.echo"}]
        problem = is_problem(
            await replica.http.post("/v1/jobs:batch", json=batch), status, code, f"jobs[1].{field}"
        )
        assert problem["index"] == 1
        assert replica.jobs == 0

    run(story)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"null", "body"),
        (b"[]", "body"),
        (b'"task"', "body"),
        (b'{"task":"jobsvc.echo"} trailing', "body"),
        (b'{"task":"\xff"}', "body"),
        (b'{"task":"\\ud800"}', "body"),
        (b'{"task":"jobsvc.echo","args":[NaN]}', "body"),
        (b'{"task":"jobsvc.echo","args":[' + b"[" * 100_000 + b"]" * 100_000 + b"]}", "body"),
        (b'{"task":"jobsvc.echo","args":["\xff"]}', "args"),
        (b'{"task":"jobsvc.echo","args":[1e999999]}', "args"),
        (b'{"task":"jobsvc.echo","kwargs":{"a":' + b"9" * 5000 + b"}}", "kwargs"),
        (b'{"task":"jobsvc.echo","priority":' + b"9" * 5000 + b"}", "priority"),
        (b'\xef\xbb\xbf{"task":"jobsvc.echo"}', "body"),
    ],
)
def test_json_that_cannot_be_read_is_refused(body: bytes, field: str) -> None:
    async def story(replica: Replica) -> None:
        is_problem(await replica.http.post("/v1/jobs", content=body), 400, "invalid", field)
        assert replica.jobs == 0

    run(story)


@pytest.mark.parametrize(
    "field", ["delay_seconds", "timeout_seconds", "backoff_cap_seconds", "retention_seconds"]
)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "x"])
def test_text_that_is_no_number_is_refused_in_a_query_too(field: str, text: str) -> None:
    async def story(replica: Replica) -> None:
        answer = await replica.http.post(
            "/v1/jobs",
            params={"task": "jobsvc.echo", field: text},
            content=b"x",
            headers={"Content-Type": "application/octet-stream"},
        )
        is_problem(answer, 400, "invalid", field)
        assert replica.jobs == 0

    run(story)


def test_content_types_that_make_no_sense_are_refused() -> None:
    async def story(replica: Replica) -> None:
        post = replica.http.post
        for kind in (
            "text/plain",
            "multipart/form-data; boundary=x",
            "application/x-www-form-urlencoded",
            "x",
        ):
            answer = await post("/v1/jobs", content=b'{"task":"jobsvc.echo"}', headers={"Content-Type": kind})
            is_problem(answer, 415, "unsupported_type", "Content-Type")
        good = {"Content-Type": "application/vnd.x+json; charset=utf-8"}
        assert (await post("/v1/jobs", content=b'{"task":"jobsvc.echo"}', headers=good)).status_code == 202
        for path in ("/v1/jobs", "/enqueue?iterations=1"):
            method = "PUT" if path.startswith("/enqueue") else "POST"
            answer = await replica.http.request(
                method, path, content=b"x", headers={"Content-Encoding": "gzip"}
            )
            is_problem(answer, 415, "unsupported_type", "Content-Encoding")

    run(story)


# --- batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["array", "lines", "lines by content"])
def test_a_batch_is_one_command_with_its_ids_in_order(shape: str) -> None:
    async def story(replica: Replica) -> None:
        jobs = [f'{{"task":"jobsvc.echo","args":[{n}],"priority":{n % 3}}}'.encode() for n in range(500)]
        if shape == "array":
            body, kind = b" [" + b",\n".join(jobs) + b"]", "application/json"
        else:
            body, kind = b"\n".join(jobs) + b"\n\n", "application/x-ndjson"
            kind = "application/json" if shape == "lines by content" else kind
        answer = await replica.http.post("/v1/jobs:batch", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 202
        document = answer.json()
        assert (document["count"], document["created"], len(set(document["ids"]))) == (500, True, 500)
        assert replica.jobs == 500
        sent = [request for flight in replica.managers.flights for request in flight.requests]
        assert len(sent) == 1 and len(sent[0].options) == 3  # type: ignore[union-attr]
        third = await replica.http.get(f"/v1/jobs/{document['ids'][2]}/payload")
        assert third.json() == {"args": [2], "kwargs": {}}

    run(story)


def test_a_batch_is_bounded_and_empty_ones_are_refused() -> None:
    async def story(replica: Replica) -> None:
        post = replica.http.post
        is_problem(await post("/v1/jobs:batch", json=[]), 400, "invalid", "jobs")
        is_problem(await post("/v1/jobs:batch", content=b"\n\n"), 400, "invalid", "jobs")
        is_problem(
            await post("/v1/jobs:batch", json=[{"task": "jobsvc.echo"}] * 21), 413, "too_large", "jobs"
        )
        lines = b'{"task":"jobsvc.echo"}\n' * 21
        is_problem(await post("/v1/jobs:batch", content=lines), 413, "too_large", "jobs")
        # also when counting would be dear
        hostile = b"[" + b'{"task":"jobsvc.echo","args":[{},{},{},{},{},{},{},{},{}]},' * 200_000
        is_problem(await post("/v1/jobs:batch", content=hostile + b"{}]"), 413, "too_large", "jobs")
        is_problem(await post("/v1/jobs:batch", content=b"{}\n" * 1_000_000), 413, "too_large", "jobs")
        assert replica.jobs == 0
        nested = [{"task": "jobsvc.echo", "args": [{}] * 30}] * 20
        assert (await post("/v1/jobs:batch", json=nested)).status_code == 202

    run(story, batch_jobs_max=20)


def test_a_batch_with_wrong_json_says_where() -> None:
    async def story(replica: Replica) -> None:
        lines = b'{"task":"jobsvc.echo"}\n{"task":"jobsvc.echo","priority":"x"}\n'
        is_problem(
            await replica.http.post("/v1/jobs:batch", content=lines), 400, "invalid", "jobs[1].priority"
        )
        is_problem(await replica.http.post("/v1/jobs:batch", content=b"[1]"), 400, "invalid", "jobs[0]")
        is_problem(await replica.http.post("/v1/jobs:batch", content=b'[{"task":'), 400, "invalid", "body")

    run(story)


# --- bodies and their bounds ----------------------------------------------------------------------------


def test_a_body_above_the_bound_is_refused_while_it_streams() -> None:
    async def story(replica: Replica) -> None:
        sent = 0

        class Endless(httpx.AsyncByteStream):
            def __aiter__(self) -> Any:
                return self

            async def __anext__(self) -> bytes:
                nonlocal sent
                sent += 10_000
                return b"x" * 10_000

        url = "http://localhost:8000/enqueue?iterations=1"
        answer = await replica.http.send(httpx.Request("PUT", url, stream=Endless()))
        is_problem(answer, 413, "too_large", "body")
        assert sent <= 130_000
        # and before anything is read, if it says so itself
        answer = await replica.http.put("/enqueue?iterations=1", content=b"x" * 100_001)
        is_problem(answer, 413, "too_large", "body")
        assert (await replica.http.put("/enqueue?iterations=1", content=b"x" * 100_000)).status_code == 200
        assert replica.jobs == 1

    run(story, request_bytes_max=100_000)


@pytest.mark.parametrize("declared", ["5", "50", "-1", "x", "9" * 30])
def test_a_content_length_that_lies_takes_nothing(declared: str) -> None:
    async def story(replica: Replica) -> None:
        answer = await replica.http.put(
            "/enqueue?iterations=1", content=b"0123456789", headers={"Content-Length": declared}
        )
        assert answer.status_code in (400, 413)
        assert answer.json()["field"] in ("Content-Length", "body")
        assert replica.jobs == 0

    run(story)


def test_large_payloads_go_through_the_store_and_come_back_whole() -> None:
    async def story(replica: Replica) -> None:
        body = bytes(range(256)) * 40_000
        answer = await replica.http.put("/enqueue?iterations=1", content=body)
        assert answer.status_code == 200
        payload = await replica.http.get(f"/v1/jobs/{answer.json()['id']}/payload")
        assert payload.content == body
        assert int(payload.headers["content-length"]) == len(body)
        assert len([key for key in replica.pair.store._objects if key.startswith("payloads/")]) == 1

    run(story)


# --- idempotency ----------------------------------------------------------------------------------------


def test_the_same_key_with_the_same_request_makes_one_job() -> None:
    async def story(replica: Replica) -> None:
        headers = {"Idempotency-Key": "order 66"}
        send = replica.http.request
        for method, path, body, key in (
            ("POST", "/v1/jobs", b'{"task": "jobsvc.echo", "args": [1]}', "order 66"),
            ("PUT", "/enqueue?iterations=1", b"x", "k2"),
            ("POST", "/v1/jobs:batch", b'[{"task": "jobsvc.echo"}, {"task": "jobsvc.echo"}]', "k3"),
        ):
            first, second = [
                await send(method, path, content=body, headers={"Idempotency-Key": key}) for _ in range(2)
            ]
            assert first.status_code == second.status_code
            assert first.json().get("created", True) is True
            assert second.json().get("created", False) is False
            for name in ("id", "ids"):
                assert first.json().get(name) == second.json().get(name)
        assert replica.jobs == 4
        # another request under the key: refused, whatever differs
        is_problem(
            await replica.http.post("/v1/jobs", json={"task": "jobsvc.echo", "args": [2]}, headers=headers),
            409, "key_reused", "Idempotency-Key",
        )  # fmt: skip
        for query in ("iterations=2", "iterations=1&x=1"):
            answer = await replica.http.put(
                f"/enqueue?{query}", content=b"x", headers={"Idempotency-Key": "k2"}
            )
            is_problem(answer, 409, "key_reused", "Idempotency-Key")
        assert replica.jobs == 4

    run(story)


@pytest.mark.parametrize("key", ["", "~mine", "x" * 256, "a\tb", "ü"])
def test_keys_are_checked(key: str) -> None:
    async def story(replica: Replica) -> None:
        headers = httpx.Headers(
            [("Idempotency-Key", key.encode("latin-1").decode("latin-1"))], encoding="latin-1"
        )
        answer = await replica.http.post("/v1/jobs", json={"task": "jobsvc.echo"}, headers=headers)
        is_problem(answer, 400, "invalid", "Idempotency-Key")
        assert replica.jobs == 0

    run(story)


def test_a_handler_whose_client_hangs_up_still_commits() -> None:
    async def story(replica: Replica) -> None:
        replica.pair.store.open.clear()
        request = asyncio.get_running_loop().create_task(
            replica.http.post("/v1/jobs", json={"task": "jobsvc.echo"}, headers={"Idempotency-Key": "k"})
        )
        await asyncio.sleep(0.05)
        request.cancel()
        replica.pair.store.open.set()
        await until(lambda: replica.jobs == 1)
        again = await replica.http.post(
            "/v1/jobs", json={"task": "jobsvc.echo"}, headers={"Idempotency-Key": "k"}
        )
        assert again.json()["created"] is False
        assert replica.jobs == 1

    run(story)


# --- one job --------------------------------------------------------------------------------------------


def test_a_job_shows_its_attempts_and_its_end() -> None:
    async def story(replica: Replica) -> None:
        job_id = await replica.enqueue(max_attempts=2, backoff_base_seconds=0)
        [grant] = await replica.take()
        running = (await replica.http.get(f"/v1/jobs/{job_id}")).json()
        assert (running["state"], running["running"]["worker"], running["attempts"]) == ("running", "w1", [])
        assert running["running"]["log_url"] == f"/v1/jobs/{job_id}/logs?attempt=1"
        result = await replica.http.get(f"/v1/jobs/{job_id}/result")
        assert (result.status_code, result.headers["retry-after"]) == (202, "1")
        await replica.fail(grant, ErrorInfo("ValueError", "no", "Traceback…"))
        [grant] = await replica.take()
        await replica.fail(
            grant, ErrorInfo("Killed", "worse", exit_code=-9, signal="SIGKILL"), Outcome.CRASHED
        )
        job = (await replica.http.get(f"/v1/jobs/{job_id}")).json()
        assert (job["state"], job["failures"], job["crashes"]) == ("failed", 2, 1)
        assert [each["outcome"] for each in job["attempts"]] == ["raised", "crashed"]
        assert job["attempts"][0]["error"]["traceback"] == "Traceback…"
        assert job["attempts"][0]["seconds"] == 0.5
        assert job["error"]["signal"] == "SIGKILL"
        problem = is_problem(await replica.http.get(f"/v1/jobs/{job_id}/result"), 409, "job_failed")
        assert (problem["state"], problem["error"]["type"]) == ("failed", "Killed")
        # and it can be put back
        retried = await replica.http.post(f"/v1/jobs/{job_id}/retry")
        assert (retried.status_code, retried.json()["state"], retried.json()["failures"]) == (
            202,
            "queued",
            0,
        )
        is_problem(await replica.http.post(f"/v1/jobs/{job_id}/retry"), 409, "wrong_state", "state")

    run(story)


@pytest.mark.parametrize(
    ("result", "content_type", "body"),
    [
        (Result("json", b'{"a": 1}'), "application/json", b'{"a": 1}'),
        (Result("json", b"null"), "application/json", b"null"),
        (Result("raw", b"\x00\xff"), "application/octet-stream", b"\x00\xff"),
        (Result("raw", b""), "application/octet-stream", b""),
    ],
)
def test_a_result_is_given_as_it_is(result: Result, content_type: str, body: bytes) -> None:
    async def story(replica: Replica) -> None:
        job_id = await replica.enqueue()
        [grant] = await replica.take()
        await replica.finish(grant, result=result)
        answer = await replica.http.get(f"/v1/jobs/{job_id}/result")
        assert (answer.status_code, answer.headers["content-type"], answer.content) == (
            200,
            content_type,
            body,
        )
        shown = (await replica.http.get(f"/v1/jobs/{job_id}")).json()["result"]
        assert (shown["content_type"], shown["bytes"], "value" in shown) == (
            content_type, len(body), result.content == "json",
        )  # fmt: skip

    run(story)


def test_a_large_result_is_streamed_from_the_store() -> None:
    async def story(replica: Replica) -> None:
        job_id = await replica.enqueue()
        [grant] = await replica.take()
        data = b"0123456789" * 1_000_000
        ref = await replica.store_object("results/x/1", data)
        await replica.finish(grant, result=Result("raw", ref=ref))
        answer = await replica.http.get(f"/v1/jobs/{job_id}/result")
        assert answer.content == data and answer.headers["content-length"] == str(len(data))
        shown = (await replica.http.get(f"/v1/jobs/{job_id}")).json()["result"]
        assert shown == {"content_type": "application/octet-stream", "bytes": len(data)}
        await replica.pair.store.delete("results/x/1")
        is_problem(await replica.http.get(f"/v1/jobs/{job_id}/result"), 404, "not_found")

    run(story)


def test_a_store_that_does_not_answer_is_503() -> None:
    async def story(replica: Replica) -> None:
        job_id = await replica.enqueue()
        [grant] = await replica.take()
        await replica.finish(
            grant, result=Result("raw", ref=await replica.store_object("results/x/1", b"abc"))
        )

        async def silent(key: str, offset: int = 0, length: int | None = None) -> bytes | None:
            raise StoreError("no answer")

        replica.pair.store.get = silent  # type: ignore[method-assign]
        answer = await replica.http.get(f"/v1/jobs/{job_id}/result")
        assert is_problem(answer, 503, "store_silent")["retryable"] is True
        assert answer.headers["retry-after"] == "1"

    run(story)


@pytest.mark.parametrize("path", ["", "/result"])
@pytest.mark.parametrize("prefer", [True, False])
def test_a_long_poll_answers_when_the_job_ends(path: str, prefer: bool) -> None:
    async def story(replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        job_id = await replica.enqueue()
        [grant] = await replica.take()
        # given somebody who waits, by header or by query, and somebody with less patience
        headers = {"Prefer": "respond-async, wait=30"} if prefer else {}
        query = "" if prefer else "?wait=30"
        waiter = loop.create_task(replica.http.get(f"/v1/jobs/{job_id}{path}{query}", headers=headers))
        began = loop.time()
        short = await replica.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=2"})
        assert 2.0 <= loop.time() - began < 2.5
        assert (short.json()["state"], short.headers["preference-applied"]) == ("running", "wait=2")
        assert short.headers["retry-after"] == "1"
        # when the job ends
        assert not waiter.done()
        await replica.finish(grant, b'"here"')
        # then the answer comes with it
        answer = await asyncio.wait_for(waiter, 0.2)
        assert answer.status_code == 200
        assert (answer.json() == "here") if path else (answer.json()["state"] == "succeeded")

    run(story)


def test_a_wait_is_bounded_and_a_strange_preference_ignored() -> None:
    async def story(replica: Replica) -> None:
        job_id = await replica.enqueue()
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await replica.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=86400"})
        assert loop.time() - began < 61 and answer.headers["preference-applied"] == "wait=60"
        began = loop.time()
        for strange in ("wait=-1", "wait=x", "wait", "wait=" + "9" * 50, ";;,,=", "wait=1e9"):
            assert (
                await replica.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": strange})
            ).status_code == 200
        assert loop.time() - began < 1
        is_problem(await replica.http.get(f"/v1/jobs/{job_id}?wait=nan"), 400, "invalid", "wait")

    run(story)


def test_a_cancel_tells_asked_for_from_done() -> None:
    async def story(replica: Replica) -> None:
        queued = await replica.enqueue()
        answer = await replica.http.post(f"/v1/jobs/{queued}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        running = await replica.enqueue()
        [grant] = await replica.take()
        answer = await replica.http.post(f"/v1/jobs/{running}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
        assert answer.json()["cancel_requested"] is True
        await replica.fail(grant, ErrorInfo("Cancelled", "killed"), Outcome.CANCELLED)
        assert (await replica.http.get(f"/v1/jobs/{running}")).json()["state"] == "cancelled"
        assert (await replica.http.post(f"/v1/jobs/{running}/cancel")).status_code == 200
        done = await replica.enqueue()
        await replica.run_all()
        is_problem(await replica.http.post(f"/v1/jobs/{done}/cancel"), 409, "wrong_state", "state")

    run(story)


@pytest.mark.parametrize(
    "job_id", [MISSING, "x", "00000000000070008000000000000000", "%00", "..", "ü", "1" * 300]
)
@pytest.mark.parametrize("part", ["", "/result", "/payload", "/logs", "/cancel", "/retry"])
def test_a_job_that_is_not_there_is_404(job_id: str, part: str) -> None:
    async def story(replica: Replica) -> None:
        method = "POST" if part in ("/cancel", "/retry") else "GET"
        answer = await replica.http.request(method, f"/v1/jobs/{job_id}{part}")
        assert answer.status_code in (404, 405) and answer.json()["code"] in ("unknown_job", "not_found")

    run(story)


def test_a_job_past_its_retention_is_410() -> None:
    async def story(replica: Replica) -> None:
        job_id = await replica.enqueue()
        await replica.run_all()
        await until(lambda: replica.jobs == 0)
        is_problem(await replica.http.get(f"/v1/jobs/{job_id}"), 410, "expired_job", "id")

    run(story, retention_seconds=1.0)


# --- lists and the feed ---------------------------------------------------------------------------------


def test_lists_are_paged_newest_first_and_filtered() -> None:
    async def story(replica: Replica) -> None:
        ids = [await replica.enqueue(queue=f"q{n % 2}", batch=f"b{n % 3}", args=[n]) for n in range(25)]
        seen: list[str] = []
        cursor: str | None = None
        while True:
            place = f"&cursor={cursor}" if cursor else ""
            page = (await replica.http.get(f"/v1/jobs?limit=10{place}")).json()
            seen += [job["id"] for job in page["jobs"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        assert seen == ids[::-1]
        for query, expected in (
            ("queue=q1", ids[1::2]),
            ("batch=b2", ids[2::3]),
            ("state=queued&task=jobsvc.echo", ids),
            ("state=failed", []),
        ):
            page = (await replica.http.get(f"/v1/jobs?{query}")).json()
            assert [job["id"] for job in page["jobs"]] == expected[::-1]
        for query, field in (("state=gone", "state"), ("limit=0", "limit"), ("limit=501", "limit"),
                             ("cursor=x", "cursor"), ("queue=", "queue"), ("colour=red", "colour"),
                             ("state=queued&state=failed", "state")):  # fmt: skip
            is_problem(await replica.http.get(f"/v1/jobs?{query}"), 400, "invalid", field)

    run(story)


def test_long_texts_are_left_out_of_lists() -> None:
    async def story(replica: Replica) -> None:
        await replica.enqueue(max_attempts=1)
        [grant] = await replica.take()
        await replica.fail(grant, ErrorInfo("E", "m" * 5_000, "t" * 5_000))
        [job] = (await replica.http.get("/v1/jobs")).json()["jobs"]
        assert job["error"]["traceback"] == "" and len(job["error"]["message"]) == 500

    run(story)


def test_the_feed_gives_every_completion_once_in_order() -> None:
    async def story(replica: Replica) -> None:
        ids = [await replica.enqueue(args=[n]) for n in range(5)]
        await replica.run_all(b'{"n":1}')
        page = (await replica.http.get("/v1/completions?limit=3")).json()
        assert [entry["id"] for entry in page["entries"]] == ids[:3]
        assert [entry["seq"] for entry in page["entries"]] == [1, 2, 3]
        assert page["entries"][0]["result"] == {"n": 1}
        rest = (await replica.http.get(f"/v1/completions?after={page['next']}")).json()
        assert [entry["id"] for entry in rest["entries"]] == ids[3:]
        end = (await replica.http.get("/v1/completions?after=-1&limit=0")).json()
        assert (end["entries"], end["next"], end["newest"]) == ([], 5, 5)
        # and a long poll waits for the next one
        loop = asyncio.get_running_loop()
        waiter = loop.create_task(replica.http.get("/v1/completions?after=5&wait=30"))
        await asyncio.sleep(3.0)
        assert not waiter.done()
        await replica.enqueue()
        await replica.run_all()
        assert [entry["seq"] for entry in (await waiter).json()["entries"]] == [6]

    run(story)


def place(event_id: str | None) -> int:
    assert event_id is not None
    return int(event_id.partition(".")[0])


def test_the_feed_says_when_part_of_it_has_gone() -> None:
    async def story(replica: Replica) -> None:
        for _ in range(3):
            await replica.enqueue()
        await replica.run_all()
        await until(lambda: replica.jobs == 0)
        page = (await replica.http.get("/v1/completions?after=0")).json()
        assert (page["truncated"], page["entries"], page["oldest"]) == (True, [], 4)
        stream = Stream(replica.app, "/v1/completions", last_event_id="1")
        assert [(place(each), name) for each, name, _ in await stream.take(2)] == [(1, "open"), (3, "reset")]
        await stream.hang_up()

    run(story, retention_seconds=1.0)


def test_a_stream_of_completions_goes_on_where_it_was_also_after_a_failover() -> None:
    async def story(replica: Replica) -> None:
        ids = [await replica.enqueue(), await replica.enqueue()]
        await replica.run_all()
        stream = Stream(replica.app, "/v1/completions")
        opened, first, second = await stream.take(3)
        assert (place(opened[0]), opened[1]) == (0, "open")
        assert [(place(each), data["id"]) for each, _, data in (first, second)] == [(1, ids[0]), (2, ids[1])]
        # what finishes later comes, also under the next leader
        standby = replica.pair.start("manager-b")
        await until(lambda: standby.role == "standby")
        replica.pair.kill("manager-a")
        standby.suspect_leader()
        await until(lambda: standby.role == "leader")
        ids.append(await replica.enqueue())
        await replica.run_all()
        [(each, name, data)] = await stream.take(1)
        assert (place(each), name, data["id"]) == (3, "completion", ids[2])
        await stream.hang_up()
        # a browser that comes back says where it was
        again = Stream(replica.app, "/v1/completions", last_event_id=second[0])
        seen = [(place(each), name) for each, name, _ in await again.take(2)]
        assert seen == [(2, "open"), (3, "completion")]
        await again.hang_up()

    run(story)


# --- logs -----------------------------------------------------------------------------------------------


async def write_log(replica: Replica, job_id: str, attempt: int, number: int, text: bytes) -> None:
    await replica.pair.store.put_new(f"logs/{job_id}/{attempt}/{number:06}", text)


def test_logs_are_text_of_the_latest_attempt_or_of_one() -> None:
    async def story(replica: Replica) -> None:
        job_id = await replica.enqueue(backoff_base_seconds=0)
        empty = await replica.http.get(f"/v1/jobs/{job_id}/logs")
        assert (empty.status_code, empty.text) == (200, "")
        [grant] = await replica.take()
        await write_log(replica, job_id, 1, 0, b"one\ntwo\n")
        await write_log(replica, job_id, 1, 2, b"three \xff\n")
        await replica.fail(grant, ErrorInfo("E", "no"))
        answer = await replica.http.get(f"/v1/jobs/{job_id}/logs")
        assert answer.content == b"one\ntwo\nthree \xff\n"
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        await replica.take()
        await write_log(replica, job_id, 2, 0, b"again\n")
        assert (await replica.http.get(f"/v1/jobs/{job_id}/logs")).text == "again\n"
        assert (
            await replica.http.get(f"/v1/jobs/{job_id}/logs?attempt=1&tail=2")
        ).content == b"two\nthree \xff\n"
        assert (await replica.http.get(f"/v1/jobs/{job_id}/logs?attempt=1&tail=0")).content == b""
        for query, field in (("attempt=0", "attempt"), ("attempt=3", "attempt"), ("tail=-1", "tail")):
            is_problem(await replica.http.get(f"/v1/jobs/{job_id}/logs?{query}"), 400, "invalid", field)

    run(story)


def test_the_end_of_a_log_is_read_from_the_pack_that_its_report_names() -> None:
    async def story(replica: Replica) -> None:
        # given an attempt with two chunks, and its end in a pack that it shares
        job_id = await replica.enqueue()
        [grant] = await replica.take()
        await write_log(replica, job_id, 1, 0, b"one\n")
        await replica.pair.store.put_new("results/pack", b"anothers" + b"two\n")
        stream = Stream(replica.app, f"/v1/jobs/{job_id}/logs")
        assert (await stream.take(2))[1] == (None, "log", {"text": "one\n"})
        await replica.finish(grant, log_bytes=8, log=BlobRef("results/pack", 8, 4))
        # then it is read whole, and who followed it gets the end, once
        assert (await replica.http.get(f"/v1/jobs/{job_id}/logs")).text == "one\ntwo\n"
        assert [event[1:] for event in await stream.take(2)] == [
            ("log", {"text": "two\n"}),
            ("end", {"attempt": 1, "state": "succeeded"}),
        ]
        await asyncio.wait([stream.task])

    run(story)


def test_a_log_is_followed_while_it_is_written_until_the_attempt_ends() -> None:
    async def story(replica: Replica) -> None:
        job_id = await replica.enqueue()
        [grant] = await replica.take()
        await write_log(replica, job_id, 1, 0, b"hello ")
        stream = Stream(replica.app, f"/v1/jobs/{job_id}/logs")
        assert (await stream.take(2))[1] == (None, "log", {"text": "hello "})
        # a character that is cut in two by the writer arrives whole
        await write_log(replica, job_id, 1, 1, "grü".encode()[:-1])
        assert await stream.take(1) == [(None, "log", {"text": "gr"})]
        await write_log(replica, job_id, 1, 2, "grü".encode()[-1:] + b"n\n")
        assert await stream.take(1) == [(None, "log", {"text": "ün\n"})]
        await replica.finish(grant)
        assert await stream.take(1) == [(None, "end", {"attempt": 1, "state": "succeeded"})]
        await asyncio.wait([stream.task])

    run(story)


# --- the service ----------------------------------------------------------------------------------------


def test_queues_are_counted_and_can_be_paused() -> None:
    async def story(replica: Replica) -> None:
        await replica.enqueue(queue="images")
        paused = await replica.http.patch("/v1/queues/images", json={"paused": True})
        assert (paused.status_code, paused.json()["paused"], paused.json()["name"]) == (200, True, "images")
        [queue] = (await replica.http.get("/v1/queues")).json()["queues"]
        assert queue["counts"]["queued"] == 1 and queue["oldest_queued_age_seconds"] >= 0
        assert await replica.take() == []
        await replica.http.patch("/v1/queues/images", content=b'{"paused": false}')
        assert len(await replica.take()) == 1
        for name, body, field in (
            ("a b", b'{"paused":true}', "queue"),
            ("x" * 200, b'{"paused":true}', "queue"),
            ("ok", b"{}", "paused"),
            ("ok", b'{"paused":1}', "paused"),
            ("ok", b'{"paused":true,"x":1}', "paused"),
            ("ok", b"", "body"),
        ):
            is_problem(await replica.http.patch(f"/v1/queues/{name}", content=body), 400, "invalid", field)
        # a queue may be paused before it has a job
        early = await replica.http.patch("/v1/queues/early", json={"paused": True})
        assert early.json()["counts"]["queued"] == 0

    run(story)


def test_status_names_managers_workers_and_commits() -> None:
    async def story(replica: Replica) -> None:
        standby = replica.pair.start("manager-b")
        await until(lambda: standby.role == "standby")
        await replica.enqueue()
        await replica.take()
        await asyncio.sleep(1.0)
        status = (await replica.http.get("/v1/status")).json()
        assert (status["ready"], status["leader"], status["epoch"]) == (True, "manager-a", 1)
        roles = {each["name"]: (each["role"], each["lag"]) for each in status["managers"]}
        assert roles == {"manager-a": ("leader", 0), "manager-b": ("standby", 0)}
        assert status["managers"][0]["applied"]["epoch"] == 1
        assert status["counts"] == {**dict.fromkeys([s.value for s in State], 0), "running": 1}
        assert status["commits"]["p99_seconds"] > 0
        [worker] = status["workers"]
        assert (worker["name"], worker["pid"], worker["node"], worker["pool"]) == ("w1", 1, "n", "default")

    run(story)


def test_parts_that_fail_are_named_and_the_service_is_ready() -> None:
    async def story(replica: Replica) -> None:
        leader = replica.pair.managers["manager-a"].leader
        assert leader is not None
        leader.bulkheads.failed("history", ZeroDivisionError("a defect"))
        leader.bulkheads.failed("history", ZeroDivisionError("a defect"))
        status = (await replica.http.get("/v1/status")).json()
        [manager] = status["managers"]
        [problem] = manager["problems"]
        assert (problem["part"], problem["times"]) == ("history", 2)
        assert problem["text"] == "ZeroDivisionError: a defect" and status["ready"]
        rows = dict(status_rows(status))
        assert rows["manager-a history"].endswith("ZeroDivisionError: a defect; the rest goes on")

    run(story)


def test_health_and_status_without_a_leader() -> None:
    async def story(replica: Replica) -> None:
        assert (await replica.http.get("/readyz")).status_code == 200
        replica.pair.kill("manager-a")
        assert (await replica.http.get("/healthz")).status_code == 200
        answer = await replica.http.get("/readyz")
        assert is_problem(answer, 503, "no_leader")["retryable"] is True
        assert int(answer.headers["retry-after"]) >= 1
        status = await replica.http.get("/v1/status")
        assert (status.status_code, status.json()["ready"], status.json()["workers"]) == (200, False, None)
        assert (await replica.http.get("/metrics")).status_code == 200
        # a write waits for its deadline, and says that its outcome is not known
        answer = await replica.http.post("/v1/jobs", json={"task": "jobsvc.echo"})
        assert is_problem(answer, 503, "unknown_outcome")["retryable"] is True

    run(story, request_deadline_seconds=2.0)


def test_a_leader_whose_commits_stand_still_is_not_ready() -> None:
    async def story(replica: Replica) -> None:
        replica.pair.store.open.clear()
        await asyncio.sleep(9.0)
        assert (await replica.http.get("/readyz")).status_code == 200
        await until(lambda: replica.leader.leader.healthy() is not None)
        is_problem(await replica.http.get("/readyz"), 503, "no_leader")

    run(story, stepdown_seconds=1_000.0)


def test_more_jobs_than_may_be_held_is_503_and_takes_nothing() -> None:
    async def story(replica: Replica) -> None:
        await replica.enqueue()
        answer = await replica.http.post("/v1/jobs:batch", json=[{"task": "jobsvc.echo"}] * 5)
        assert is_problem(answer, 503, "too_many_jobs")["retryable"] is True
        assert answer.headers["retry-after"] == "5"
        assert replica.jobs == 1

    run(story, max_jobs=5)


def test_metrics_are_what_prometheus_reads() -> None:
    async def story(replica: Replica) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        await replica.enqueue(queue="images")
        await replica.take()
        await replica.http.get("/v1/jobs/nope")
        answer = await replica.http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        assert found["jobsvc_jobs", ("queue", "images"), ("state", "running")] == 1
        assert found["jobsvc_is_leader", ("manager", "manager-a")] == 1
        assert sum(value for key, value in found.items() if key[0] == "jobsvc_jobs_enqueued_total") == 1
        names = {key[0] for key in found}
        assert {
            "jobsvc_enqueue_commit_seconds_bucket", "jobsvc_http_requests_total",
            "jobsvc_http_rejected_total",
            "jobsvc_oldest_queued_age_seconds", "jobsvc_workers", "jobsvc_store_requests_total",
            "jobsvc_journal_last_commit_timestamp_seconds", "jobsvc_build_info", "jobsvc_event_streams",
        } <= names  # fmt: skip
        assert not any("0000-" in str(key) for key in found), "no job id in a label"

    run(story)


def test_tasks_are_listed_with_their_options() -> None:
    async def story(replica: Replica) -> None:
        tasks = {each["name"]: each for each in (await replica.http.get("/v1/tasks")).json()["tasks"]}
        assert tasks["images.caption"]["queue"] == "images"
        assert tasks["jobsvc.shell"]["refused"]
        assert tasks["jobsvc.sha512"]["description"].startswith("SHA-512")

    run(story)


# --- every answer ---------------------------------------------------------------------------------------


def test_what_is_not_there_or_not_so_is_a_problem_document() -> None:
    async def story(replica: Replica) -> None:
        is_problem(await replica.http.get("/nope"), 404, "not_found")
        answer = await replica.http.delete("/v1/jobs")
        is_problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"
        is_problem(await replica.http.get("/v1/jobs/" + MISSING + "/nope"), 404, "not_found")
        is_problem(await replica.http.get("/v1/tasks?x=1"), 400, "invalid", "x")

    run(story)


def test_a_defect_is_a_problem_document_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def story(replica: Replica) -> None:
        async def broken(*requests: Any) -> Any:
            raise RuntimeError("secret detail")

        replica.gateway.ask = broken  # type: ignore[method-assign]
        answer = await replica.http.get("/v1/queues", headers={"X-Request-Id": "abc-1"})
        assert is_problem(answer, 500, "internal")["request_id"] == "abc-1"
        assert "secret" not in answer.text

    run(story)
    assert [record.request_id for record in caplog.records] == ["abc-1"]  # type: ignore[attr-defined]


def test_request_ids_are_echoed_if_they_are_decent() -> None:
    async def story(replica: Replica) -> None:
        good = await replica.http.get("/healthz", headers={"X-Request-Id": "trace-17.a:b_c"})
        assert good.headers["x-request-id"] == "trace-17.a:b_c"
        for bad in ("", "a b", "x" * 129, "<script>"):
            answer = await replica.http.get("/healthz", headers={"X-Request-Id": bad})
            assert answer.headers["x-request-id"] not in ("", bad)

    run(story)


def test_a_server_that_echoes_the_request_id_itself_is_left_to_it() -> None:
    async def story(replica: Replica) -> None:
        app = build_app(
            replica.gateway,
            replica.pair.settings,
            None,
            builtin_registry(False),
            server_echoes_request_id=True,
        )
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            answer = await http.get("/nope", headers={"X-Request-Id": "from-the-server"})
            assert "x-request-id" not in answer.headers
            assert answer.json()["request_id"] == "from-the-server"
            assert (
                "x-request-id"
                in (await http.get("/nope", headers={"X-Request-Id": "not a good one"})).headers
            )

    run(story)
