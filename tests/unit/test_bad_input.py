"""Bad input at every endpoint: never a 500, nothing half taken, and what is accepted can be read.

Two sources of requests: a grammar of nasty bytes that knows where parsers break, and the OpenAPI document
itself, which says at the same time whether the answers are the ones it promises.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .served_app import HOST, Answer, ServedApp

NOTHING = "00000000-0000-0000-0000-000000000000"
REQUEST_BYTES_MAX = 1_000_000
LONG_WAITS = (b"wait=50", b"wait=1")


def examples(count: int) -> settings:
    """The same ones each time; how long one takes is not judged."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


# --- the grammar ---------------------------------------------------------------------------------------

TEXTS = [
    b"", b"0", b"-1", b"1", b"1.5", b"9" * 400, b"nan", b"inf", b"-0", b"1e999", b"true", b"null", b"[]",
    b"{}", b'"x"', b"\xff\xfe", b"\x00", b"\xed\xa0\x80", "\u0663".encode(), b" 1", b"1_0", b"../..",
    b"%", b"a" * 5_000, b"2026-01-01T00:00:00Z", b"9999-12-31T23:59:59.999999+00:00",
    b"0001-01-01T00:00:00+14:00", b"jobsvc.echo", b"jobsvc.sha512", b"jobsvc.shell", b"queued",
    NOTHING.encode(), b"18446744073709551616", b"9007199254740993", b"-9223372036854775809", b"~key",
    b"key",
]  # fmt: skip
VALUES = [
    b"NaN", b"1e999", b"-1e999", b"9" * 4_400, b"1" + b"0" * 30, b"-1", b"0", b"1", b"1.5", b"1e3",
    b"true", b"null", b'""', b'"a"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\xff"', b'"\\u0000"', b"[]",
    b"{}", b"[1]", b'{"a":"b"}', b"[" * 2_000 + b"]" * 2_000, b"[" * 500 + b"]" * 500,
    b'{"a":' * 300 + b"1" + b"}" * 300, b'{"a":1,"a":2}', b'"' + b"x" * 9_000 + b'"',
    b'["' + b"x" * 9_000 + b'"]', b'"2026-12-01T00:00:00Z"', b'"9999-12-31T23:59:59Z"',
    b'"0001-01-01T00:00:00+14:00"', b'"jobsvc.sha512"', b'{"\\ud800":1}', b'{"":""}', b"01", b"1.",
    b"tru", b'"\\x"', b"18446744073709551616", b"[1e999]", b"[18446744073709551616]", b'["\\ud800"]',
    b'["\xff"]',
]  # fmt: skip
FIELDS = [
    b"task", b"args", b"kwargs", b"queue", b"priority", b"max_attempts", b"max_crashes",
    b"timeout_seconds", b"run_at", b"delay_seconds", b"labels", b"batch", b"backoff_base_seconds",
    b"backoff_cap_seconds", b"retention_seconds", b"paused", b"typo", b"\\ud800", b"",
]  # fmt: skip
PARAMETERS = [
    b"iterations", b"top", b"task", b"kwargs", b"state", b"queue", b"batch", b"cursor", b"limit",
    b"after", b"wait", b"attempt", b"tail", b"priority", b"labels", b"run_at", b"delay_seconds",
    b"timeout_seconds", b"\xff", b"", b"x",
]  # fmt: skip
BROKEN = [
    b"", b"\n", b"[", b"{", b"\x00", b"[" * 200_000, b'{"a":' * 200_000, b"[[" + b'{"task":[' * 3_000,
    b'\xef\xbb\xbf{"task":"jobsvc.echo"}', b'{"task":"jobsvc.echo"} x', b"x" * (REQUEST_BYTES_MAX + 1),
]  # fmt: skip
HEADERS = {
    b"idempotency-key": TEXTS,
    b"prefer": [b"wait=0", b"wait=", b"wait=-1", b"wait=nan", b"wait=\xff", b"=", b"wait", b"wait=0.01"],
    b"accept": [b"text/event-stream", b"*/*", b"\xff"],
    b"last-event-id": TEXTS,
    b"x-request-id": TEXTS,
    b"origin": [*TEXTS, b"http://127.0.0.1:8000"],
    b"host": [*TEXTS, b"127.0.0.1", b"[", b"[::1", b"127.0.0.1:99999"],
    b"authorization": TEXTS,
    b"content-length": TEXTS,
    b"content-encoding": [b"gzip", b"\xff", b"identity"],
}
TYPES = [
    b"application/json", b"application/octet-stream", b"application/x-ndjson",
    b"multipart/form-data; boundary=x", b"application/x-www-form-urlencoded", b"text/plain; charset=\xff",
    b"", b"a" * 500,
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "get", "\u00e9"]
FITTING = [
    ("PUT", "/enqueue"), ("POST", "/pullCompleted"), ("POST", "/v1/jobs"), ("POST", "/v1/jobs:batch"),
    ("GET", "/v1/jobs"), ("GET", "/v1/completions"), ("GET", "/v1/queues"), ("PATCH", "/v1/queues/{any}"),
    ("GET", "/v1/workers"), ("GET", "/v1/status"), ("GET", "/v1/tasks"), ("GET", "/metrics"),
    ("GET", "/healthz"), ("GET", "/v1/jobs/{any}"), ("GET", "/v1/jobs/{any}/result"),
    ("GET", "/v1/jobs/{any}/payload"), ("GET", "/v1/jobs/{any}/logs"), ("POST", "/v1/jobs/{any}/cancel"),
    ("POST", "/v1/jobs/{any}/retry"),
]  # fmt: skip
WRITES = [("PUT", "/enqueue"), ("POST", "/v1/jobs"), ("POST", "/v1/jobs:batch"), ("PATCH", "/v1/queues/q")]


def _document(is_job: bool, fields: list[tuple[bytes, bytes]]) -> bytes:
    pairs = [b'"task":"jobsvc.echo"'] if is_job else []
    return b"{" + b",".join([*pairs, *(b'"%b":%b' % each for each in fields)]) + b"}"


fields = st.tuples(st.sampled_from(FIELDS), st.sampled_from(VALUES))
documents = st.builds(_document, st.sampled_from([True, True, True, False]), st.lists(fields, max_size=2))
bodies = st.one_of(
    documents,
    st.lists(documents, max_size=3).map(lambda each: b"[" + b",".join(each) + b"]"),
    st.lists(documents, max_size=3).map(b"\n".join),
    st.sampled_from(VALUES),
    st.sampled_from(BROKEN),
    st.binary(max_size=100),
)
pairs = st.tuples(st.sampled_from(PARAMETERS), st.sampled_from(TEXTS), st.booleans())


def _query(parts: list[tuple[bytes, bytes, bool]]) -> bytes:
    """Percent-encoded as a client would, or as it is."""
    made = b"&".join(
        quote_from_bytes(name).encode() + b"=" + quote_from_bytes(text).encode()
        if quoted
        else name + b"=" + text
        for name, text, quoted in parts
    )
    return b"" if any(each in made for each in LONG_WAITS) else made


queries = st.lists(pairs, max_size=2).map(_query)
headers = st.one_of(
    st.just([]),
    st.sampled_from(sorted(HEADERS)).flatmap(
        lambda name: st.sampled_from(HEADERS[name]).map(lambda value: [(name, value)])
    ),
)
types = st.one_of(st.none(), st.just(b"application/json"), st.sampled_from(TYPES))


@pytest.fixture(scope="module")
def served() -> Iterator[ServedApp]:
    with ServedApp(request_bytes_max=REQUEST_BYTES_MAX, batch_jobs_max=100) as app:
        yield app


def _judge(served: ServedApp, answer: Answer, method: str, jobs_before: int) -> None:
    """No defect, and a refusal took nothing and says so as a problem document."""
    assert answer.status < 500, answer
    assert not any(sign in value for value in answer.headers.values() for sign in "\r\n\0"), answer
    if answer.status >= 400:
        assert served.jobs() == jobs_before, "something was half taken"
        if method != "HEAD":
            assert answer.headers["content-type"] == "application/problem+json"
            problem = json.loads(answer.body)
            assert problem["status"] == answer.status and problem["detail"] and problem["request_id"]
    elif served.jobs() > jobs_before:
        assert served.work() > 0 or b"scheduled" in answer.body or b"ids" in answer.body


def _target(route: tuple[str, str], text: bytes) -> tuple[str, str]:
    method, path = route
    return method, path.replace("{any}", unquote_to_bytes(text).decode("utf-8", "surrogateescape"))


@examples(3_000)
@given(st.sampled_from(FITTING), st.sampled_from(TEXTS), queries, headers, types, bodies)
def test_nasty_bytes_at_every_route(
    served: ServedApp,
    route: tuple[str, str],
    text: bytes,
    query: bytes,
    header: list[tuple[bytes, bytes]],
    kind: bytes | None,
    body: bytes,
) -> None:
    # given a request that nobody should send
    method, path = _target(route, text)
    if path == "/enqueue" and kind == b"application/json":
        query = query or b"iterations=1"
    jobs = served.jobs()
    sent = [*header, (b"content-type", kind)] if kind is not None else header
    # when it is sent, then the answer is a good one
    answer = served.ask(method, path, query, sent, body if method != "GET" else b"")
    assert answer is not None
    _judge(served, answer, method, jobs)


@examples(2_000)
@given(st.sampled_from(WRITES), documents, st.lists(documents, max_size=2), st.booleans())
def test_documents_that_are_nearly_right(
    served: ServedApp, route: tuple[str, str], document: bytes, more: list[bytes], is_array: bool
) -> None:
    # given a batch in which each document may be wrong somewhere, as lines or as an array
    method, path = route
    several = path == "/v1/jobs:batch"
    all_documents = [document, *more] if several else [document]
    body = b"[" + b",".join(all_documents) + b"]" if several and is_array else b"\n".join(all_documents)
    jobs = served.jobs()
    # when it is sent, then all of it is taken or none
    query = b"iterations=1" if path == "/enqueue" else b""
    answer = served.ask(method, path, query, [(b"content-type", b"application/json")], body)
    assert answer is not None
    _judge(served, answer, method, jobs)
    if answer.status == 202:
        assert served.jobs() == jobs + len(all_documents)
    if answer.status == 400:
        assert json.loads(answer.body)["field"]


@examples(500)
@given(st.sampled_from(METHODS), st.sampled_from(FITTING), st.sampled_from(TEXTS), bodies)
def test_methods_that_do_not_fit(
    served: ServedApp, method: str, route: tuple[str, str], text: bytes, body: bytes
) -> None:
    jobs = served.jobs()
    _, path = _target(route, text)
    answer = served.ask(method, path, b"", [(b"content-type", b"application/json")], body)
    assert answer is not None
    _judge(served, answer, method, jobs)


@examples(200)
@given(st.sampled_from(WRITES), documents)
def test_a_caller_that_hangs_up_leaves_nothing_behind(
    served: ServedApp, route: tuple[str, str], document: bytes
) -> None:
    # given a write whose body breaks off
    method, path = route
    jobs = served.jobs()
    query = b"iterations=1" if path == "/enqueue" else b""
    answer = served.ask(method, path, query, [], document, hang_up=True)
    # then nothing of it was taken, and nobody is told that it was
    assert answer is None or answer.status >= 400
    assert served.jobs() == jobs


# --- the OpenAPI document as a source -------------------------------------------------------------------

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def _operations(served: ServedApp) -> list[Any]:
    schema = schemathesis.openapi.from_dict(served.app.openapi())
    schema.config.update(base_url=f"http://{HOST}")
    return [operation.ok() for operation in schema.get_all_operations()]


def _answer_of_case(served: ServedApp, case: Any) -> tuple[Answer | None, requests.PreparedRequest]:
    transport = case.as_transport_kwargs(base_url=f"http://{HOST}")
    prepared = requests.Request(
        **{name: value for name, value in transport.items() if name in _REQUEST_ARGUMENTS}
    ).prepare()
    path, _, query = (prepared.path_url or "/").partition("?")
    body = prepared.body.encode() if isinstance(prepared.body, str) else (prepared.body or b"")
    sent = [
        (_raw(name).lower(), _raw(value))
        for name, value in prepared.headers.items()
        if _raw(name).lower() not in (b"host", b"content-length")
    ]
    query = "&".join(part for part in query.split("&") if not part.startswith("wait="))
    sent = [pair for pair in sent if pair[0] != b"prefer"]  # waiting is another story
    path_text = unquote_to_bytes(path).decode("utf-8", "surrogateescape")
    return served.ask(prepared.method or "GET", path_text, query.encode(), sent, body), prepared


_REQUEST_ARGUMENTS = frozenset({"method", "url", "headers", "params", "data", "json", "files", "cookies"})


def _raw(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1", "replace")


def test_answers_are_those_that_openapi_promises(served: ServedApp) -> None:
    for operation in _operations(served):

        @examples(60)
        @given(operation.as_strategy())
        def story(case: Any) -> None:
            # given a request made of the document, when it is sent
            jobs = served.jobs()
            answer, prepared = _answer_of_case(served, case)
            assert answer is not None
            _judge(served, answer, case.method, jobs)
            # then status, type and shape of the answer are in the document too
            request = httpx.Request(prepared.method or "GET", prepared.url or "")
            response = httpx.Response(
                answer.status, headers=answer.headers, content=answer.body, request=request
            )
            response.elapsed = datetime.timedelta()
            case.validate_response(Response.from_httpx(response, verify=False), checks=CHECKS)

        story()
