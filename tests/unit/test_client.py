"""The Python client: over HTTP against the real app, and against a server that misbehaves as it is told."""

from __future__ import annotations

import asyncio
import datetime
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import jobsvc
from jobsvc import client as client_module
from jobsvc.client import Client, _batches
from jobsvc.client_calls import document as job_document
from jobsvc.client_core import Request, Talk, Wait
from jobsvc.client_http import find_addresses
from jobsvc.client_jobs import FeedItem, JobSet
from jobsvc.discovery import ServiceInfo, secret_file, write_down
from jobsvc.errors import InvalidRequest, JobFailed, Refused, Unavailable, WaitTimedOut

from .local_service import HANG_UP, Asked, LocalService, Reply, ScriptedServer, answer, unused_url

SECONDS = 20.0


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService(data="memory") as started:
        yield started


@pytest.fixture
def client(service: LocalService) -> Iterator[Client]:
    service.working = True
    with Client(service.url) as connected:
        yield connected


@pytest.fixture
def idle(service: LocalService, client: Client) -> Iterator[Client]:
    """Nothing is run until `working` is set."""
    service.rest()
    yield client
    service.working = True


def scripted(*replies: Reply, seconds: float = 2.0) -> tuple[ScriptedServer, Client]:
    server = ScriptedServer(*replies)
    return server, Client(server.url, deadline_seconds=seconds)


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


JOB = {"id": "j1", "state": "queued"}
BUSY = answer(
    {"code": "overloaded", "detail": "busy", "retryable": True},
    503,
    **{"Content-Type": "application/problem+json"},
)


# --- one job --------------------------------------------------------------------------------------


def test_a_job_comes_back_with_its_result(client: Client) -> None:
    job = client.enqueue("jobsvc.echo", {"a": [1, None, "ü"]})
    assert job.result(SECONDS) == {"a": [1, None, "ü"]}
    assert job.state == "succeeded"
    assert [attempt["outcome"] for attempt in job.attempts] == ["succeeded"]
    assert job.wait(SECONDS)["task"] == "jobsvc.echo"


def test_a_result_of_none_is_a_result(client: Client) -> None:
    assert client.enqueue("jobsvc.echo", None).result(SECONDS) is None
    assert client.map("jobsvc.echo", [None, None]).results(SECONDS) == [None, None]


def test_bytes_travel_as_they_are(client: Client) -> None:
    data = bytes(range(256))
    assert client.enqueue_bytes("jobsvc.echo", data).result(SECONDS) == data
    hashed = client.enqueue_bytes("jobsvc.sha512", b"hello", iterations=1000, priority=5, labels={"a": "ü"})
    assert hashed.result(SECONDS)[:16] == "2f0d1593c9d82cc0"
    assert hashed.refresh()["priority"] == 5 and hashed.refresh()["labels"] == {"a": "ü"}


def test_a_failed_job_raises_with_its_error(client: Client) -> None:
    job = client.enqueue("jobsvc.sha512", "x", iterations=0, max_attempts=1)
    with pytest.raises(JobFailed, match="InvalidRequest: iterations: must be") as caught:
        job.result(SECONDS)
    assert caught.value.state == "failed" and isinstance(caught.value.error, dict)
    assert "Traceback of the task" in caught.value.__notes__[0]
    assert job.state == "failed"
    # and it can be put back
    assert job.retry() == "queued"
    with pytest.raises(JobFailed):
        job.result(SECONDS)


def test_a_cancelled_job_says_so(idle: Client) -> None:
    job = idle.enqueue("jobsvc.echo", 1)
    assert job.cancel() == "cancelled"
    with pytest.raises(JobFailed, match="was cancelled") as caught:
        job.result(SECONDS)
    assert caught.value.state == "cancelled"
    assert job.cancel() == "cancelled", "once more is no error"


def test_a_job_that_has_ended_cannot_be_cancelled(client: Client) -> None:
    job = client.enqueue("jobsvc.echo", 1)
    job.wait(SECONDS)
    for change in (job.cancel, job.retry):
        with pytest.raises(Refused) as refused:
            change()
        assert refused.value.refusal.code == "wrong_state"


def test_waiting_ends_and_the_job_goes_on(idle: Client, service: LocalService) -> None:
    job = idle.enqueue("jobsvc.echo", 1)
    for wait in (job.result, job.wait, idle.map("jobsvc.echo", [1]).wait):
        with pytest.raises(WaitTimedOut):
            wait(0.1)
    service.working = True
    assert job.result(SECONDS) == 1


def test_a_key_makes_one_job_of_two_calls(client: Client) -> None:
    first = client.enqueue("jobsvc.echo", 1, key="once")
    assert client.enqueue("jobsvc.echo", 1, key="once").id == first.id
    with pytest.raises(Refused) as refused:
        client.enqueue("jobsvc.echo", 2, key="once")
    assert refused.value.refusal.code == "key_reused"


@pytest.mark.parametrize("key", ["", "~mine", "with\nlines", "ä", "x" * 256])
def test_a_key_that_cannot_be_sent_is_refused_here(client: Client, key: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.enqueue("jobsvc.echo", 1, key=key)
    assert caught.value.field == "key"


def test_errors_name_what_to_fix(client: Client) -> None:
    def invalid(field: str, call: Callable[[], Any]) -> None:
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert caught.value.field == field
        assert f"{field}: {field}:" not in str(caught.value), "the field is named once"

    invalid("task", lambda: client.enqueue("no.such.task"))
    invalid("priority", lambda: client.enqueue("jobsvc.echo", priority=10_000))
    invalid("priority", lambda: client.enqueue_bytes("jobsvc.echo", b"", priority=10_000))
    invalid("args[0]", lambda: client.enqueue("jobsvc.echo", object()))
    invalid("args[1]", lambda: client.enqueue("jobsvc.echo", 1, b"bytes"))
    invalid("kwargs.a", lambda: client.enqueue("jobsvc.echo", a=b"bytes"))
    invalid("task", lambda: client.enqueue(print, 1))
    invalid("batch_jobs", lambda: client.map("jobsvc.echo", [1], batch_jobs=0))
    invalid("url", lambda: Client("localhost:8000"))
    invalid("url", lambda: Client([]))
    invalid("token", lambda: Client("http://127.0.0.1:1", "a\nb"))
    with pytest.raises(Refused) as refused:
        client.job("../queues").refresh()
    assert refused.value.refusal.code == "not_found"


def test_logs_are_read_and_followed(idle: Client, service: LocalService) -> None:
    job = idle.enqueue("jobsvc.echo", "spoken")
    threading.Timer(0.2, lambda: setattr(service, "working", True)).start()
    followed = "".join(job.follow())
    assert followed == job.logs() == 'given: {"args":["spoken"],"kwargs":{}}\n'
    assert job.logs(tail=0) == ""


def test_a_job_that_never_ran_has_nothing_to_follow(idle: Client) -> None:
    job = idle.enqueue("jobsvc.echo", 1)
    job.cancel()
    assert list(job.follow()) == []


# --- options and arguments ------------------------------------------------------------------------


@jobsvc.task(name="jobsvc.echo", queue="images", max_attempts=5, timeout=60, labels={"team": "a"})
def decorated(url: str, width: int) -> dict[str, Any]:
    return {"url": url, "width": width}


def test_a_decorated_function_is_sent_by_name_with_its_options(client: Client) -> None:
    job = client.enqueue(decorated, "s3://x", width=300, priority=5, max_attempts=7)
    document = job.wait(SECONDS)
    assert (document["task"], document["queue"]) == ("jobsvc.echo", "images")
    assert (document["max_attempts"], document["priority"]) == (7, 5)
    assert (document["timeout_seconds"], document["labels"]) == (60.0, {"team": "a"})
    assert job.result() == {"args": ["s3://x"], "kwargs": {"width": 300}}


def test_arguments_that_are_called_like_options_go_through_kwargs() -> None:
    document = job_document(
        "t", {"priority": "mine", "timeout": 1}, {"priority": 3, "timeout": 9, "other": 2}
    )
    assert document == {
        "task": "t",
        "kwargs": {"priority": "mine", "timeout": 1, "other": 2},
        "priority": 3,
        "timeout_seconds": 9,
    }


def test_times_may_be_said_in_python(client: Client) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    for when in (later, later.timestamp(), later.astimezone().replace(tzinfo=None), later.isoformat()):
        job = client.enqueue("jobsvc.echo", 1, run_at=when)
        shown = datetime.datetime.fromisoformat(job.refresh()["run_at"])
        assert abs((shown - later).total_seconds()) < 0.01
        raw = client.enqueue_bytes("jobsvc.echo", b"", run_at=when)
        assert raw.refresh()["run_at"] == job.refresh()["run_at"]
    delayed = client.enqueue("jobsvc.echo", 1, delay=datetime.timedelta(minutes=2), timeout=3)
    assert delayed.state == "scheduled" and delayed.refresh()["timeout_seconds"] == 3.0


# --- many jobs ------------------------------------------------------------------------------------


def test_map_gives_results_in_the_order_of_the_items(client: Client) -> None:
    jobs = client.map("jobsvc.echo", (number for number in range(5_000)), batch_jobs=700, progress=False)
    assert jobs.results(SECONDS) == list(range(5_000))
    assert jobs.counts() == {"open": 0, "succeeded": 5_000}
    assert len(jobs) == 5_000 and jobs[7].result() == 7


def test_map_sends_bytes_as_bytes_in_between(client: Client) -> None:
    jobs = client.map("jobsvc.echo", [1, b"\xff", 2, bytearray(b"x"), b"y"])
    assert jobs.results(SECONDS) == [1, b"\xff", 2, b"x", b"y"]


def test_map_of_nothing_is_an_empty_set(client: Client) -> None:
    jobs = client.map("jobsvc.echo", [])
    assert jobs.wait(1) == {} and list(jobs.as_completed(1)) == [] and jobs.results(1) == []


def test_map_with_a_key_may_be_repeated(client: Client) -> None:
    first = client.map("jobsvc.echo", range(25), batch_jobs=10, key="nightly")
    again = client.map("jobsvc.echo", range(25), batch_jobs=10, key="nightly")
    assert again.ids == first.ids


def test_a_set_waits_by_the_feed_and_asks_for_no_job(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    exchange = client.talks.exchange

    def counted(request: Request, now: float, wait: Wait | None = None) -> Talk[Any]:
        asked.append(request.path)
        return exchange(request, now, wait)

    monkeypatch.setattr(client.talks, "exchange", counted)
    jobs = client.map("jobsvc.echo", range(1_000))
    assert sorted(job.result() for job in jobs.as_completed(SECONDS)) == list(range(1_000))
    assert set(asked) == {"/v1/jobs:batch", "/v1/completions"}
    assert len(asked) < 60


def test_jobs_are_awaited_in_async_code(client: Client) -> None:
    async def story() -> None:
        # one, several at once, a whole set
        assert await client.enqueue("jobsvc.echo", 1) == 1
        several = [client.enqueue("jobsvc.echo", number) for number in range(3)]
        assert await asyncio.gather(*several) == [0, 1, 2]
        jobs = client.map("jobsvc.echo", range(20), progress=False)
        assert sorted([await job async for job in jobs]) == list(range(20))
        with pytest.raises(JobFailed):
            await client.enqueue("jobsvc.sha512", "x", iterations=0, max_attempts=1)

    asyncio.run(story())


def test_whoever_stops_awaiting_is_not_held_up(idle: Client) -> None:
    # given a job that does not end
    job = idle.enqueue("jobsvc.echo", 1)

    async def story() -> None:
        for waiting in (job, anext(aiter(idle.map("jobsvc.echo", [1], progress=False)))):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0.5)

    # when its caller gives up, then no thread keeps the program
    began = time.monotonic()
    asyncio.run(story())
    assert time.monotonic() - began < 10
    assert job.state == "queued"


def test_a_set_with_failures(client: Client) -> None:
    jobs = client.enqueue_many(
        [
            {"task": "jobsvc.sha512", "args": ["x"], "kwargs": {"iterations": count}, "max_attempts": 1}
            for count in (1, 0, 2)
        ]
    )
    assert jobs.wait(SECONDS) == {"succeeded": 2, "failed": 1}
    assert [job.id for job in jobs.failures()] == [jobs.ids[1]]
    with pytest.raises(JobFailed) as caught:
        jobs.results(SECONDS)
    assert "Traceback of the task" in caught.value.__notes__[0]
    found = jobs.results(SECONDS, return_exceptions=True)
    assert isinstance(found[1], JobFailed) and len(found[0]) == len(found[2]) == 128


def test_a_result_too_large_for_the_feed_is_fetched(client: Client) -> None:
    jobs = client.map("jobsvc.echo", [b"raw", b"more"])
    assert sorted(job.result(SECONDS) for job in jobs.as_completed(SECONDS)) == [b"more", b"raw"]


def test_a_set_is_read_by_several_threads_at_once(client: Client) -> None:
    jobs = client.map("jobsvc.echo", range(2_000))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: {job.id for job in jobs.as_completed(SECONDS)}, range(4)))
    assert found == [set(jobs.ids)] * 4


def test_a_batch_is_found_again_by_its_name(idle: Client, service: LocalService) -> None:
    sent = idle.map("jobsvc.echo", range(30), batch="night-1")
    assert idle.batch("night-1").ids == sent.ids
    service.working = True
    sent.wait(SECONDS)
    again = idle.batch("night-1")
    assert again.counts() == {"open": 0, "succeeded": 30}
    assert again.results(SECONDS) == list(range(30))


def test_a_set_is_cancelled_as_a_whole(idle: Client) -> None:
    jobs = idle.map("jobsvc.echo", range(20))
    jobs[3].cancel()
    jobs.cancel()
    assert jobs.wait(SECONDS) == {"cancelled": 20}


def test_the_feed_goes_on_from_a_place(client: Client) -> None:
    client.map("jobsvc.echo", range(10)).wait(SECONDS)
    end = client.feed_end()
    assert list(client.completions(end)) == []
    ids = client.map("jobsvc.echo", range(5)).ids
    found = []
    for entry in client.completions(end, follow=True):
        found.append(entry)
        if len(found) == 5:
            break
    assert {entry.id for entry in found} == set(ids)
    assert [entry.id for entry in client.completions(found[1].seq)][:3] == [entry.id for entry in found[2:]]


def test_queues_workers_tasks_status(client: Client) -> None:
    assert client.pause("later")["paused"] is True
    assert client.enqueue("jobsvc.echo", 1, queue="later").state == "queued"
    assert client.resume("later")["paused"] is False
    assert "later" in {queue["name"] for queue in client.queues()}
    assert client.workers()[0]["name"] == "w"
    assert "jobsvc.echo" in {task["name"] for task in client.tasks()}
    assert client.status()["leader"] == "manager-a"
    client.enqueue_bytes("jobsvc.sha512", b"hello", iterations=1).wait(SECONDS)
    assert client.pull(1)[0]["value"].startswith("9b71d224bd62f378")


def test_batches_are_bounded_in_jobs_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BATCH_BYTES", 1_000)
    batches = list(_batches(b'{"args":[', ["x" * 400] * 5 + ["y"] * 7, 4))
    assert [len(batch) for batch in batches] == [2, 2, 4, 4]
    decoded = [msgspec.json.decode(line) for batch in batches for line in batch]
    assert len(decoded) == 12
    taken: list[int] = []
    numbers = (taken.append(number) or number for number in range(10_000))
    next(_batches(b'{"args":[', numbers, 10))
    assert len(taken) <= 11, "a generator is read as its items are sent"


# --- a service that misbehaves --------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [HANG_UP, BUSY, (502, {}, b"<html>bad gateway</html>"), (404, {}, b"Path not found"), (500, {}, b"")],
    ids=["hang up", "busy", "no gateway", "starting", "proxy"],
)
def test_a_write_is_sent_again_under_the_same_key(trouble: Reply) -> None:
    server, client = scripted(trouble, trouble, answer(JOB, 202), seconds=SECONDS)
    with server, client:
        assert client.enqueue("t", 1).id == "j1"
    keys = {asked.headers["Idempotency-Key"] for asked in server.asked}
    assert len(server.asked) == 3 and len(keys) == 1
    assert len({asked.body for asked in server.asked}) == 1


def test_a_defect_of_the_service_is_not_asked_for_twice() -> None:
    server, client = scripted(answer({"code": "internal", "detail": "a defect", "retryable": False}, 500))
    with server, client, pytest.raises(Refused, match="a defect"):
        client.enqueue("t", 1)
    assert len(server.asked) == 1


def test_retry_after_is_kept_to() -> None:
    status, headers, body = BUSY
    server, client = scripted((status, {**headers, "Retry-After": "0.3"}, body), answer(JOB, 202))
    with server, client:
        began = time.monotonic()
        client.enqueue("t", 1)
        assert time.monotonic() - began >= 0.3


def test_a_retry_after_beyond_the_deadline_ends_it_at_once() -> None:
    status, headers, body = BUSY
    server, client = scripted((status, {**headers, "Retry-After": "600"}, body))
    with server, client, pytest.raises(Unavailable, match="busy"):
        began = time.monotonic()
        client.enqueue("t", 1)
    assert time.monotonic() - began < 2


def test_nobody_there_is_unavailable_after_the_deadline() -> None:
    with Client(unused_url(), deadline_seconds=0.3) as client, pytest.raises(Unavailable, match="refused"):
        client.status()


def test_the_next_address_is_tried_at_once() -> None:
    server = ScriptedServer(answer(JOB, 202))
    with server, Client([unused_url(), server.url, unused_url()], deadline_seconds=SECONDS) as client:
        for _ in range(5):
            client.enqueue("t", 1)
    assert len(server.asked) == 5, "and the one that answered is kept"


def test_many_threads_and_one_address_that_fails() -> None:
    """Moving on must not lose an address while another thread looks."""
    flaky = 0

    def reply(asked: Asked) -> Reply:
        nonlocal flaky
        flaky += 1
        return answer(JOB, 202) if flaky % 3 == 0 else BUSY

    with ScriptedServer(reply=reply) as server, Client(server.url, deadline_seconds=SECONDS) as client:
        with ThreadPoolExecutor(8) as pool:
            jobs = list(pool.map(lambda number: client.enqueue("t", number).id, range(60)))
        assert jobs == ["j1"] * 60


def feed_page(entries: list[dict[str, Any]], **more: Any) -> Reply:
    shown = [{"task": "t", "finished_at": None, "batch": None, "error": None, **each} for each in entries]
    return answer({"entries": shown, "next": 9, "oldest": 1, "newest": 9, "truncated": False, **more})


def test_a_set_that_was_away_too_long_asks_for_its_jobs() -> None:
    def reply(asked: Asked) -> Reply:
        if asked.path.startswith("/v1/completions"):
            return feed_page([], truncated=True)
        if asked.path.endswith("gone"):
            return answer({"code": "expired_job", "detail": "long ago"}, 410)
        state = "running" if asked.path.endswith("running") else "succeeded"
        return answer(
            {"id": asked.path[9:], "state": state, "task": "t", "error": None, "result": {"value": 5}}
        )

    with ScriptedServer(reply=reply) as server, Client(server.url) as client:
        jobs = JobSet(client, ["done", "gone", "running"], 1)
        assert jobs.counts() == {"open": 1, "succeeded": 1, "expired": 1}
        assert jobs.job("done").result() == 5
        with pytest.raises(Refused):
            list(client.completions(after=1))


def test_logs_go_on_when_the_stream_is_closed_early() -> None:
    streams = 0

    def event(name: str, **data: Any) -> bytes:
        return f"event: {name}\ndata: {msgspec.json.encode(data).decode()}\n\n".encode()

    def reply(asked: Asked) -> Reply:
        nonlocal streams
        if "/logs" not in asked.path:
            return answer({"id": "j1", "state": "running", "attempt": 1, "finished_at": None})
        streams += 1
        if streams == 2:
            return BUSY
        parts = [event("open", attempt=1), event("log", text="one\n"), event("log", text="two\n")]
        if streams == 3:
            parts += [event("log", text="three\n"), event("end", attempt=1, state="running")]
        return 200, {"Content-Type": "text/event-stream"}, b"retry: 1\n\n" + b"".join(parts)

    with ScriptedServer(reply=reply) as server, Client(server.url) as client:
        assert list(client.job("j1").follow(attempt=1)) == ["one\n", "two\n", "three\n"]


# --- finding the service --------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOBSVC_RUN_DIR", str(tmp_path))
    monkeypatch.delenv("JOBSVC_URL", raising=False)
    monkeypatch.delenv("JOBSVC_TOKEN", raising=False)
    return tmp_path


def test_argument_before_environment_before_file(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="jobsvc up"):
        Client()
    token = secret_file(run_dir / "jobsvc.token", "secret")
    write_down(ServiceInfo("jobsvc", ["http://127.0.0.1:8000"], None, "", "d", token_file=token), run_dir)
    assert find_addresses(None) == (["http://127.0.0.1:8000"], "secret")
    monkeypatch.setenv("JOBSVC_URL", "http://a:1/, http://b:2")
    assert find_addresses(None) == (["http://a:1", "http://b:2"], None), "a local secret goes nowhere else"
    assert find_addresses("https://c") == (["https://c"], None)


def test_the_token_of_the_file_is_sent(run_dir: Path) -> None:
    server = ScriptedServer(answer({"queues": []}))
    with server:
        token = secret_file(run_dir / "jobsvc.token", "secret")
        write_down(ServiceInfo("jobsvc", [server.url], None, "", "d", token_file=token), run_dir)
        with Client() as client:
            client.queues()
    assert server.asked[0].headers["Authorization"] == "Bearer secret"


def test_a_proxy_of_the_environment_is_not_used_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", unused_url())
    monkeypatch.setenv("ALL_PROXY", unused_url())
    server, client = scripted(answer({"queues": []}))
    with server, client:
        assert client.queues() == []


# --- what it needs, how it shows itself -----------------------------------------------------------


@pytest.mark.parametrize("statement", ["import jobsvc", "import jobsvc.client", "import jobsvc.cli"])
def test_importing_is_light(statement: str) -> None:
    heavy = ["ray", "boto3", "botocore", "fastapi", "starlette"] + (
        ["httpx"] if "client" not in statement else []
    )
    code = f"import sys; {statement}; print(*[name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_public_names_are_there() -> None:
    for name in jobsvc.__all__:
        assert getattr(jobsvc, name) is not None
    assert jobsvc.Client is Client and jobsvc.JobSet is JobSet
    with pytest.raises(AttributeError):
        _ = jobsvc.nothing  # type: ignore[attr-defined]


def test_tables_are_escaped_and_ask_nobody(service: LocalService) -> None:
    client = Client(unused_url())
    job = client.job("<img onerror=alert(1)>")
    assert "<img" not in job._repr_html_() and "&lt;img" in job._repr_html_()
    assert "not asked yet" in job._repr_html_() and "not asked yet" in repr(job)
    jobs = JobSet(client, ["a", "b"], 0)
    assert "<td>2</td>" in jobs._repr_html_() and repr(jobs) == "<JobSet of 2, 2 open>"


def test_progress_is_a_line_of_html_in_a_notebook(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Cell:
        def update(self, text: str) -> None:
            shown.append(text)

    kernel = SimpleNamespace(kernel=object())
    display = SimpleNamespace(HTML=str, display=lambda first, display_id: Cell())
    fake = SimpleNamespace(get_ipython=lambda: kernel, display=display)
    monkeypatch.setitem(sys.modules, "IPython", fake)
    jobs = client.map("jobsvc.echo", range(30))
    assert "enqueued: 30 of 30" in shown[-1]
    assert jobs.progress(SECONDS) == {"succeeded": 30}
    assert "jobs: 30 of 30" in shown[-1] and "✓ succeeded" in shown[-1]


def test_nothing_is_shown_where_nobody_looks(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    client.map("jobsvc.echo", range(3)).progress(SECONDS)
    assert capfd.readouterr() == ("", "")


def test_who_looks_at_a_set_does_not_wait_for_who_waits_for_it(idle: Client, service: LocalService) -> None:
    # given a thread that waits for the rest of a set, and a job of it that has ended
    jobs = idle.map("jobsvc.echo", range(2), progress=False)
    jobs[0].cancel()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(jobs.wait, SECONDS)
        while not jobs._reading.locked():
            time.sleep(0.001)
        time.sleep(0.1)
        # when others look, then they are told at once, what they know themselves included
        began = time.monotonic()
        assert jobs.counts() == {"open": 1, "cancelled": 1}
        with pytest.raises(WaitTimedOut, match="1 of 2"):
            jobs.wait(0)
        assert [job.id for job in take(jobs.as_completed(0), 1)] == [jobs.ids[0]]
        jobs[1].cancel()
        assert jobs.wait(0) == {"cancelled": 2}
        assert jobs.retry_failed() == 2
        assert time.monotonic() - began < 5
        service.working = True
        waiting.result()
        assert jobs.results(SECONDS) == [0, 1]


def test_a_set_in_which_a_job_is_twice_ends_all_the_same(client: Client) -> None:
    job = client.enqueue("jobsvc.echo", 1)
    jobs = JobSet(client, [job.id, job.id], 0)
    assert jobs.wait(SECONDS) == {"succeeded": 1}
    assert [each.id for each in jobs.as_completed(SECONDS)] == [job.id]
    assert jobs.results(SECONDS) == [1, 1]


def test_jobs_that_are_put_back_amid_as_completed_come_once_more_and_no_other_is_passed(
    idle: Client, service: LocalService
) -> None:
    # given jobs of which the first are given as cancelled
    jobs = idle.map("jobsvc.echo", range(20), progress=False)
    for job in jobs:
        if job.id < jobs.ids[8]:
            job.cancel()
    given = jobs.as_completed(SECONDS)
    first = [job.id for job in take(given, 5)]
    # when all that were cancelled are put back, and all end
    assert jobs.retry_failed() == 8
    service.working = True
    rest = [job.id for job in given]
    # then each comes, and those that had come come once more
    assert sorted(rest) == jobs.ids and set(first) <= set(rest)
    assert jobs.results(SECONDS) == list(range(20))


def test_a_set_whose_jobs_are_forgotten_may_be_cancelled_and_put_back(
    idle: Client, service: LocalService
) -> None:
    # given a set of which one job has been cancelled, one is open, one is long gone
    jobs = idle.map("jobsvc.echo", range(2), progress=False)
    gone = "00000000-0000-7000-8000-000000000000"
    jobs = JobSet(idle, [*jobs.ids, gone], jobs._ends.after)
    jobs[0].cancel()
    # then both work for the others
    jobs.cancel()
    assert jobs.counts() == {"open": 1, "cancelled": 2}
    jobs._ends.add([FeedItem(0, gone, "failed", "jobsvc.echo")])
    assert jobs.retry_failed() == 3
    service.working = True
    assert jobs.wait(SECONDS) == {"succeeded": 2, "expired": 1}


@pytest.mark.parametrize("job_id", ["", ".", "..", None, 7, b"x"])
def test_what_is_no_id_is_refused_before_anybody_is_asked(job_id: Any) -> None:
    job = Client(unused_url()).job(job_id)
    for ask in (job.refresh, job.result, job.wait, job.cancel, job.logs, lambda: list(job.follow())):
        with pytest.raises(InvalidRequest) as raised:
            ask()
        assert raised.value.field == "id"


def test_a_set_without_jobs_asks_nobody() -> None:
    jobs = JobSet(Client(unused_url()), [], 0)
    assert jobs.wait() == {} and jobs.results(0) == [] and list(jobs.as_completed(0)) == []
    assert jobs.counts() == {"open": 0} and jobs.retry_failed() == 0 and list(jobs.failures()) == []
    jobs.cancel()

    async def story() -> list[Any]:
        return [job async for job in jobs]

    assert asyncio.run(story()) == []


def take(jobs: Iterator[Any], count: int) -> list[Any]:
    return [next(jobs) for _ in range(count)]
