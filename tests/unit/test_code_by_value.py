"""Functions of a notebook, sent by value: taken where the operator allows code, refused elsewhere."""

from __future__ import annotations

import asyncio
import base64
import pickle
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

import jobsvc
from jobsvc.client import Client
from jobsvc.client_code import PYTHON, goes_by_value
from jobsvc.code_calls import BYTECODE, PickledBy, payload_of
from jobsvc.errors import InvalidRequest, JobFailed, Refused
from jobsvc.job_frames import ReadyJob
from jobsvc.jobs import Outcome
from jobsvc.tasks import definition_of

from .job_desk import desk, told
from .local_service import LocalService

SECONDS = 20.0
NOTEBOOK = """
import jobsvc

FACTOR = 3

def times(number):
    "Uses a name of its notebook."
    return FACTOR * number

def length(data, *, more=b""):
    return len(data) + len(more)

@jobsvc.task(priority=7, max_attempts=1)
def marked(number):
    return times(number)

def spread(number: int) -> set[int]:
    return set(range(number))

def bare(number):
    return set(range(number))

@jobsvc.task(name="jobsvc.echo")
def known_by_name(value): ...
"""


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    """What a notebook has defined: its module is `__main__`."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(NOTEBOOK, names)
    return names


@pytest.fixture(scope="module")
def open_service() -> Iterator[LocalService]:
    with LocalService(data="memory", allow_code=True) as started:
        yield started


@pytest.fixture(scope="module")
def client(open_service: LocalService) -> Iterator[Client]:
    with Client(open_service.url) as connected:
        yield connected


def test_what_goes_by_value(notebook: dict[str, Any]) -> None:
    assert goes_by_value(notebook["times"]) and goes_by_value(notebook["marked"])
    # what has a name that a service may know goes by that name, and what can be imported is to be marked
    assert not goes_by_value(notebook["known_by_name"])
    assert not goes_by_value("times") and not goes_by_value(wait_for_nothing)


def wait_for_nothing() -> None: ...


def test_a_function_runs_with_what_it_uses_of_its_notebook(client: Client, notebook: dict[str, Any]) -> None:
    job = client.enqueue(notebook["times"], 14)
    assert job.result(SECONDS) == 42
    found = job.refresh()
    assert (found["task"], found["content"]) == ("__main__.times", "pickle")
    # arguments are pickled too, so bytes are no trouble
    assert client.enqueue(notebook["length"], b"\x00\xff", more=b"x").result(SECONDS) == 3
    assert client.enqueue_bytes(notebook["length"], b"\x00\xff").result(SECONDS) == 2


def test_the_decorator_and_the_options_hold(client: Client, notebook: dict[str, Any]) -> None:
    job = client.enqueue(notebook["marked"], 2, queue="q", labels={"a": "b"}, key="marked once")
    assert job.result(SECONDS) == 6
    found = job.refresh()
    assert (found["task"], found["priority"], found["queue"]) == ("__main__.marked", 7, "q")
    assert (found["max_attempts"], found["labels"]) == (1, {"a": "b"})


def test_a_map_sends_the_function_once_a_job_in_batches(
    client: Client, open_service: LocalService, notebook: dict[str, Any]
) -> None:
    assert client.map(notebook["times"], range(50), batch_jobs=20).results(SECONDS) == [
        3 * number for number in range(50)
    ]
    assert client.map(notebook["length"], [b"a", b"bc"], more=b"!").results(SECONDS) == [2, 3]
    assert client.map(lambda_of(notebook), range(3)).results(SECONDS) == [0, 1, 4]


def lambda_of(notebook: dict[str, Any]) -> Callable[[int], int]:
    square: Callable[[int], int] = eval("lambda number: number**2", notebook)
    return square


def test_elsewhere_code_is_refused_and_the_way_out_is_said(notebook: dict[str, Any]) -> None:
    # given a service as it is by default
    with LocalService(data="memory") as service, Client(service.url) as client:
        # when a notebook sends it a function
        for send in (
            lambda: client.enqueue(notebook["times"], 1),
            lambda: client.map(notebook["times"], [1, 2], progress=False),
        ):
            with pytest.raises(Refused) as refused:
                send()
            # then the message says what the operator has to switch on, and what goes without it
            assert refused.value.refusal.code == "not_allowed"
            assert "--allow-code" in str(refused.value) and "--tasks" in str(refused.value)
        # and nothing was enqueued
        assert list(client.jobs()) == []


def test_what_cannot_be_pickled_is_told_before_anything_is_sent(
    client: Client, notebook: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="cannot be pickled"):
        client.enqueue(notebook["times"], (each for each in ()))
    with pytest.raises(InvalidRequest, match=r"@jobsvc.task"):
        client.enqueue(wait_for_nothing)


GOOD = {"pickle": "gAR9lC4=", "python": PYTHON}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"call": {**GOOD, "python": "2.7"}}, "call.python"),
        ({"call": {**GOOD, "python": None}}, "call.python"),
        ({"call": {**GOOD, "pickle": "no base64!"}}, "call.pickle"),
        ({"call": {**GOOD, "pickle": ""}}, "call.pickle"),
        ({"call": {**GOOD, "more": 1}}, "call.more"),
        ({"call": {**GOOD, "bytecode": 1}}, "call.bytecode"),
        ({"call": {**GOOD, "bytecode": "1"}}, "call.bytecode"),
        ({"call": {**GOOD, "cloudpickle": 3}}, "call.cloudpickle"),
        ({"call": GOOD, "args": [1]}, "call"),
        ({"call": GOOD, "kwargs": {"a": 1}}, "call"),
        ({"call": GOOD, "task": "jobsvc.echo"}, "task"),
        ({"call": GOOD, "task": "two words"}, "task"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_call_is_named(
    open_service: LocalService, document: dict[str, Any], field: str
) -> None:
    body = msgspec.json.encode({"task": "__main__.f", **document})
    answer = open_service.ask("POST", "/v1/jobs", body=body)
    assert answer is not None and answer.status in (400, 422), answer
    assert msgspec.json.decode(answer.body)["field"] == field


def test_code_of_two_pythons_in_one_batch_is_refused_whole(open_service: LocalService) -> None:
    before = open_service.jobs()
    lines = [{"task": "__main__.f", "call": {**GOOD, "python": python}} for python in (PYTHON, "2.7")]
    answer = open_service.ask("POST", "/v1/jobs:batch", body=b"\n".join(map(msgspec.json.encode, lines)))
    assert answer is not None and answer.status == 400
    assert msgspec.json.decode(answer.body)["field"] == "jobs[1].call.python"
    assert open_service.jobs() == before


def test_a_page_of_another_site_cannot_send_code(open_service: LocalService) -> None:
    before = open_service.jobs()
    body = msgspec.json.encode({"task": "__main__.f", "call": GOOD})
    for header in ((b"origin", b"http://elsewhere.example"), (b"sec-fetch-site", b"cross-site")):
        answer = open_service.ask("POST", "/v1/jobs", headers=(header,), body=body)
        assert answer is not None and answer.status == 403
    assert open_service.jobs() == before


def test_a_large_call_is_stored_like_any_payload(client: Client, notebook: dict[str, Any]) -> None:
    job = client.enqueue(notebook["length"], b"x" * 100_000)
    assert job.result(SECONDS) == 100_000
    # who asks for what it was given gets bytes to keep, which no browser would run
    answer = client.request("GET", f"/v1/jobs/{job.id}/payload")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment" and len(answer.content) > 100_000
    # and they are the pickle, without the line that says what pickled it; so they are if it is small
    small = client.enqueue(notebook["length"], b"x")
    for content in (answer.content, client.request("GET", f"/v1/jobs/{small.id}/payload").content):
        function, args, kwargs = pickle.loads(content)
        assert function(*args, **kwargs) == len(args[0])


def test_a_job_with_code_says_what_pickled_it(open_service: LocalService, client: Client) -> None:
    # given callers of today and of version 0.1, which said less
    before = open_service.jobs()
    data = base64.b64encode(pickle.dumps((len, ("abc",), {}))).decode()
    for more in ({}, {"bytecode": BYTECODE, "cloudpickle": "3.1.3"}):
        body = {"task": "__main__.f", "call": {"pickle": data, "python": PYTHON, **more}}
        answer = open_service.ask("POST", "/v1/jobs", body=msgspec.json.encode(body))
        assert answer is not None and answer.status == 202
        assert client.job(msgspec.json.decode(answer.body)["id"]).result(SECONDS) == 3
    assert open_service.jobs() == before + 2


def test_results_of_code_are_what_its_annotation_names(client: Client, notebook: dict[str, Any]) -> None:
    # given functions of a notebook whose results are more than JSON, when they run elsewhere
    assert client.enqueue(notebook["spread"], 3).result(SECONDS) == {0, 1, 2}
    assert client.map(notebook["spread"], [1, 2], progress=False).results(SECONDS) == [{0}, {0, 1}]
    # then what has no annotation is refused at once
    with pytest.raises(JobFailed, match="ResultNotStorable"):
        client.enqueue(notebook["bare"], 3).result(SECONDS)


def test_a_function_whose_signature_was_looked_at_can_still_be_sent(
    client: Client, notebook: dict[str, Any]
) -> None:
    definition = definition_of(notebook["marked"])
    assert definition is not None and definition.signature is definition.signature
    assert client.enqueue(notebook["marked"], 2).result(SECONDS) == 6


def test_the_client_does_not_need_cloudpickle_until_then() -> None:
    import subprocess

    code = "import sys, jobsvc.client; sys.exit('cloudpickle' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert jobsvc.__doc__


# --- code of nobody knows which Python ------------------------------------------------------------------


def sent_by_version_0_1(payload: bytes) -> ReadyJob:
    return ReadyJob(uuid.uuid4().bytes, 1, "__main__.old", "pickle", payload)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_old_code_that_ends_its_process_runs_once_and_says_why(number: int) -> None:
    async def story() -> None:
        async with desk(allow_code=True) as here:
            payload = pickle.dumps((signal.raise_signal, (number,), {}))
            old = await here.run_one(sent_by_version_0_1(payload))
            assert (old.outcome, old.final) == (Outcome.CRASHED, True)
            assert old.error is not None and "does not say what Python" in old.error.message
            # and: of code that says it, a crash is a crash
            known = payload_of(PickledBy(PYTHON), payload)
            new = await here.run_one(sent_by_version_0_1(known))
            assert (new.outcome, new.final) == (Outcome.CRASHED, False)

    asyncio.run(story())


@told
async def test_old_code_that_python_cannot_follow_runs_once_and_says_why() -> None:
    async with desk(allow_code=True) as here:
        payload = pickle.dumps((exec, ("raise SystemError('unknown opcode')",), {}))
        end = await here.run_one(sent_by_version_0_1(payload))
        assert (end.outcome, end.final) == (Outcome.RAISED, True)
        assert end.error is not None and "does not say what Python" in end.error.message


class LeavesAsItIsLoaded:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


@pytest.mark.parametrize("payload", [b"no pickle", b"{no json}\n", pickle.dumps(LeavesAsItIsLoaded())])
def test_code_that_cannot_be_loaded_ends_its_job(payload: bytes) -> None:
    async def story() -> None:
        async with desk(allow_code=True) as here:
            end = await here.run_one(sent_by_version_0_1(payload))
            assert (end.outcome, end.final) == (Outcome.RAISED, True)
            assert end.error is not None and end.error.type == "CodeNotLoaded"

    asyncio.run(story())
