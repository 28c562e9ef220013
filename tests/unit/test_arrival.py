"""Values at every entrance: Python's enqueue, map, many and bytes, HTTP, lines, the command line."""

from __future__ import annotations

import datetime
import json
import math
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from jobsvc.cli import app
from jobsvc.client import Client
from jobsvc.errors import InvalidRequest, JobFailed

from . import typed_tasks as t
from .local_service import LocalService
from .typed_tasks import Color, Level, Move, Pair, Point, Shape

SECONDS = 20.0
NAN = float("nan")
WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
EVERYTHING = (
    Shape("s", [Point(1, 2)], {"a"}),
    Move(Point(3), WHEN),
    Color.BLUE,
    Level.HIGH,
    Pair(1, b"\x00\xff"),
    {"name": "n", "when": datetime.date(2026, 1, 2)},
    Decimal("1.50"),
    uuid.UUID(int=7),
    datetime.timedelta(days=2, microseconds=5),
    b"\x00\xff",
    {datetime.date(2026, 1, 2): [1.5, -0.0]},
)


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService(data="memory", tasks=("tests.unit.typed_tasks",)) as started:
        yield started


@pytest.fixture(scope="module")
def client(service: LocalService) -> Iterator[Client]:
    with Client(service.url) as connected:
        yield connected


@pytest.fixture(scope="module")
def http(service: LocalService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=SECONDS) as connected:
        yield connected


# --- without annotations --------------------------------------------------------------------------------


REFUSED: list[tuple[str, Callable[[Client], Any]]] = [
    ("args[0]", lambda c: c.enqueue("jobsvc.echo", NAN)),
    ('args[0]["image"]', lambda c: c.enqueue("jobsvc.echo", {"image": b"\x00\xff"})),
    ("args[1][0]", lambda c: c.enqueue("jobsvc.echo", 1, [datetime.date(2026, 1, 2)])),
    ("args[0]", lambda c: c.enqueue("jobsvc.echo", {1: "a"})),
    ("kwargs.value", lambda c: c.enqueue("jobsvc.echo", value=-math.inf)),
    ('kwargs.value["a"]', lambda c: c.enqueue("jobsvc.echo", kwargs={"value": {"a": {1, 2}}})),
    ('kwargs["two words"]', lambda c: c.enqueue("jobsvc.echo", kwargs={"two words": 1j})),
    ("kwargs", lambda c: c.enqueue("jobsvc.echo", kwargs={1: 2})),
    ('kwargs["\ud800"]', lambda c: c.enqueue("jobsvc.echo", kwargs={"\ud800": 2})),
    ("items[1].args[0]", lambda c: c.map("jobsvc.echo", [1, math.inf])),
    ('items[0].args[0]["image"]', lambda c: c.map("jobsvc.echo", [{"image": b"a"}])),
    ("items[0].args[0][1]", lambda c: c.map("jobsvc.echo", [("n", b"\x00")])),
    ("kwargs.more", lambda c: c.map("jobsvc.echo", [1], more=NAN)),
    ("kwargs.more", lambda c: c.map("jobsvc.echo", [b"a"], more=NAN)),
    ("kwargs.more[0]", lambda c: c.enqueue_bytes("jobsvc.echo", b"", more=[b"a"])),
    ("jobs[0].args[0]", lambda c: c.enqueue_many([{"task": "jobsvc.echo", "args": [b"a"]}])),
    (
        'jobs[1].kwargs.a["b"]',
        lambda c: c.enqueue_many([{"task": "x"}, {"task": "x", "kwargs": {"a": {"b": NAN}}}]),
    ),
    ("jobs[0].priority", lambda c: c.enqueue_many([{"task": "jobsvc.echo", "priority": NAN}])),
    ("priority", lambda c: c.enqueue("jobsvc.echo", priority=NAN)),
    ("delay_seconds", lambda c: c.enqueue("jobsvc.echo", delay=math.inf)),
    ("timeout_seconds", lambda c: c.map("jobsvc.echo", [1], timeout=NAN)),
    ("run_at", lambda c: c.enqueue("jobsvc.echo", run_at=NAN)),
    ("labels", lambda c: c.enqueue("jobsvc.echo", labels={1: "a"})),
    ('labels["a"]', lambda c: c.enqueue("jobsvc.echo", labels={"a": b"b"})),
    ("queue", lambda c: c.enqueue_bytes("jobsvc.echo", b"", queue=5)),
    ("batch", lambda c: c.enqueue("jobsvc.echo", batch=b"a")),
    ("key", lambda c: c.enqueue("jobsvc.echo", key=5)),  # type: ignore[arg-type]
    ("retention_seconds", lambda c: c.enqueue_bytes("jobsvc.echo", b"", retention_seconds=NAN)),
]


@pytest.mark.parametrize(
    ("place", "send"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_would_arrive_as_something_else_is_refused_with_its_place(
    client: Client, service: LocalService, place: str, send: Callable[[Client], Any]
) -> None:
    before = service.jobs()
    with pytest.raises(InvalidRequest) as refused:
        send(client)
    assert refused.value.field == place
    assert service.jobs() == before, "nothing was sent"


def test_what_json_has_arrives_equal_at_every_entrance(client: Client) -> None:
    value: Any = {"a": [1, -0.0, 2**70, None, True, "é\x00", {"b": []}], "": 1e300}
    assert client.enqueue("jobsvc.echo", value).result(SECONDS) == value
    assert client.enqueue("jobsvc.echo", a=value).result(SECONDS) == {"a": value}
    assert client.map("jobsvc.echo", [value, (1, (2,))], progress=False).results(SECONDS) == [value, [1, [2]]]
    many = client.enqueue_many(
        [{"task": "jobsvc.echo", "args": (value,)}, {"task": "jobsvc.echo", "kwargs": {"k": value}}]
    )
    assert many.results(SECONDS) == [value, {"k": value}]
    assert client.enqueue_bytes("jobsvc.echo", b"\xff").result(SECONDS) == b"\xff"


# --- with annotations -----------------------------------------------------------------------------------


def test_a_caller_with_the_function_sends_and_gets_what_it_names(client: Client) -> None:
    # given a function whose annotations say all, when it is called in any way
    expected = [repr(each) for each in EVERYTHING]
    assert client.enqueue(t.everything, *EVERYTHING).result(SECONDS) == expected
    # then the task gets what it would get in this process, and so does the caller
    shapes = [Shape(f"{n}", [Point(n, -n)], {"a"}) for n in range(5)]
    turned = [t.turned(shape) for shape in shapes]
    job = client.enqueue(t.turned, shapes[3])
    assert job.result(SECONDS) == turned[3]
    assert client.map(t.turned, shapes, progress=False).results(SECONDS) == turned
    assert [each.result(SECONDS) for each in client.map(t.turned, shapes, progress=False)] == turned
    assert client.enqueue(t.measured, 1.5).result(SECONDS) == t.measured(1.5)
    # and later, from the id and the function
    assert client.job(job.id, t.turned).result(SECONDS) == turned[3]
    assert client.job(job.id).result(SECONDS) == msgspec.to_builtins(turned[3])
    # and options and defaults are as ever
    assert (
        client.enqueue(t.kinds, WHEN, point=Point(1), priority=3).result(SECONDS)
        == "datetime Point frozenset"
    )


def test_large_results_are_what_is_named_too(client: Client) -> None:
    shape = Shape("s", [Point(n, n) for n in range(2_000)])
    assert client.enqueue(t.turned, shape).result(SECONDS) == t.turned(shape)
    assert client.map(t.turned, [shape], progress=False).results(SECONDS) == [t.turned(shape)]


@pytest.mark.parametrize(
    ("place", "send"),
    [
        ("args[1].x", lambda c: c.enqueue(t.kinds, WHEN, Point("1"))),  # type: ignore[arg-type]
        ("kwargs.point", lambda c: c.enqueue(t.kinds, WHEN)),
        ("args[3]", lambda c: c.enqueue(t.kinds, WHEN, Point(1), {1}, 4)),
        ("kwargs.idz", lambda c: c.enqueue(t.kinds, WHEN, Point(1), idz={1})),
        ("args[0]", lambda c: c.enqueue(t.plain, 5)),
        ("items[1].args[0].x", lambda c: c.map(t.shapes, [Point(1), {"x": "1"}], second=Point(1))),
        ("kwargs.second", lambda c: c.map(t.shapes, [Point(1)])),
        ("kwargs.loss", lambda c: c.enqueue(t.measured, loss=NAN)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_the_function_is_refused_before_it_is_sent(
    client: Client, service: LocalService, place: str, send: Callable[[Client], Any]
) -> None:
    before = service.jobs()
    with pytest.raises(InvalidRequest) as refused:
        send(client)
    assert refused.value.field == place and service.jobs() == before


def test_a_result_that_would_come_back_as_something_else_fails_the_job_in_one_run(client: Client) -> None:
    job = client.enqueue("typed_tasks.returned", "bytes", max_attempts=3)
    with pytest.raises(JobFailed, match=r'ResultNotStorable.*result\["a"\]'):
        job.result(SECONDS)
    document = job.refresh()
    assert (document["attempt"], document["failures"], document["max_attempts"]) == (1, 1, 3)


# --- the door -------------------------------------------------------------------------------------------

DOCUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"task": "typed_tasks.kinds", "args": ["2026-01-02", {"x": 1}]}, "args[0]"),
    ({"task": "typed_tasks.kinds", "args": ["2026-01-02T03:04:05", {"x": "a"}]}, "args[1].x"),
    ({"task": "typed_tasks.kinds", "kwargs": {"when": 5, "point": {"x": 1}}}, "kwargs.when"),
    ({"task": "typed_tasks.kinds", "args": ["2026-01-02T03:04:05"]}, "kwargs.point"),
    ({"task": "typed_tasks.kinds", "args": [1, 2, 3, 4]}, "args[3]"),
    ({"task": "typed_tasks.plain", "args": ["a"], "kwargs": {"wide": 1}}, "kwargs.wide"),
    ({"task": "typed_tasks.plain", "args": ["a"], "kwargs": {"text": "b"}}, "kwargs.text"),
    ({"task": "typed_tasks.bounded", "args": [0]}, "args[0]"),
    # what would be left out, or become another number
    ({"task": "typed_tasks.kinds", "args": ["2026-01-02T03:04:05", {"x": 1, "z": 2}]}, 'args[1]["z"]'),
    ({"task": "typed_tasks.tables", "args": [{"a": [1.5, 2**53 + 1]}]}, 'args[0]["a"][1]'),
    # the keys of dicts, at every depth
    ({"task": "typed_tasks.tables", "args": [{"a": [1], "two words": [1, "x"]}]}, 'args[0]["two words"][1]'),
    (
        {"task": "typed_tasks.tables", "args": [{}, {"s": {"name": "n", "points": [{"x": 1}, {"x": "1"}]}}]},
        'args[1]["s"].points[1].x',
    ),
    ({"task": "jobsvc.sha512", "args": ["x"], "kwargs": {"iterations": "2"}}, "kwargs.iterations"),
    ({"task": "jobsvc.sleep", "args": [1, 2]}, "args[1]"),
]


@pytest.mark.parametrize(("document", "field"), DOCUMENTS, ids=str)
def test_the_door_refuses_what_does_not_fit_with_its_path(
    http: httpx.Client, service: LocalService, document: dict[str, Any], field: str
) -> None:
    before = service.jobs()
    one = http.post("/v1/jobs", json=document)
    assert (one.status_code, one.json()["field"]) == (400, field)
    good = {"task": "jobsvc.echo", "args": [1]}
    for body in (json.dumps([good, document]), json.dumps(good) + "\n" + json.dumps(document)):
        kind = "application/json" if body.startswith("[") else "application/x-ndjson"
        many = http.post("/v1/jobs:batch", content=body, headers={"Content-Type": kind})
        assert (many.status_code, many.json()["field"], many.json()["index"]) == (400, f"jobs[1].{field}", 1)
    assert service.jobs() == before


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "[1,]", '"\xff"'])
def test_what_is_not_json_is_refused_at_the_door(http: httpx.Client, text: str) -> None:
    for body in (
        f'{{"task":"jobsvc.echo","args":[{text}]}}',
        f'{{"task":"jobsvc.echo","kwargs":{{"a":{text}}}}}',
    ):
        data = body.encode("latin-1")
        assert http.post("/v1/jobs", content=data).status_code == 400
        lines = {"Content-Type": "application/x-ndjson"}
        assert http.post("/v1/jobs:batch", content=data, headers=lines).status_code == 400


def test_a_body_of_bytes_is_looked_at_too(http: httpx.Client) -> None:
    kind = {"Content-Type": "application/octet-stream"}
    for query, field in (
        ("task=typed_tasks.plain", "args[0]"),
        ('task=jobsvc.sha512&kwargs={"iterations":"2"}', "kwargs.iterations"),
        ("task=typed_tasks.kinds", "kwargs.point"),
    ):
        answer = http.post(f"/v1/jobs?{query}", content=b"abc", headers=kind)
        assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text


def test_json_of_any_client_becomes_what_is_named(http: httpx.Client) -> None:
    document = {
        "task": "typed_tasks.kinds",
        "args": ["2026-01-02T03:04:05Z"],
        "kwargs": {"point": {"x": 1}, "ids": [1]},
    }
    job_id = http.post("/v1/jobs", json=document).json()["id"]
    found = http.get(f"/v1/jobs/{job_id}/result", headers={"Prefer": "wait=15"})
    assert found.json() == "datetime Point set"


# --- the command line -----------------------------------------------------------------------------------


def jobsvc(service: LocalService, *words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--url", service.url])


def test_the_command_line_is_no_way_around(service: LocalService) -> None:
    before = service.jobs()
    for words, place in (
        (("enqueue", "typed_tasks.plain", "5"), "args[0]"),
        (("enqueue", "typed_tasks.kinds", "2026-01-02T03:04:05", '{"x": "1"}'), "args[1].x"),
        (("enqueue", "typed_tasks.plain", "a", "--kwargs", '{"number": "b"}'), "kwargs.number"),
        (("enqueue", "jobsvc.echo", "--kwargs", '{"a": NaN}'), "--kwargs"),
        (("enqueue", "jobsvc.echo", "--delay", "nan"), "delay_seconds"),
        (("enqueue", "jobsvc.echo", "--attempt-seconds", "inf"), "timeout_seconds"),
        (("enqueue", "jobsvc.echo", "\udcff"), "args[0]"),
        (("enqueue", "jobsvc.echo", "--kwargs", '{"a": "\udcff"}'), "--kwargs"),
    ):
        result = jobsvc(service, *words)
        assert result.exit_code == 2 and f"{place}: " in result.stderr, (words, result.stderr)
    assert service.jobs() == before
    good = jobsvc(service, "enqueue", "typed_tasks.kinds", "2026-01-02T03:04:05", '{"x": 1}', "--wait")
    assert good.exit_code == 0 and "datetime Point frozenset" in good.stdout
