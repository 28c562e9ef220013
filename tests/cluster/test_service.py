"""The main job of the service on one machine, over real HTTP."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from jobsvc import service
from jobsvc.errors import JobFailed, Refused
from jobsvc.settings import Settings

from .conftest import RunningService, start, wait_until
from .tasks_under_test import double, fail, mark, nap

HASHES = [
    (b"hello", 1, "9b71d224bd62f378"),
    (b"hello", 2, "0592a10584ffabf9"),
    (b"hello", 1000, "2f0d1593c9d82cc0"),
    (b"", 1, "cf83e1357eefb8bd"),
    (bytes(range(256)) * 64, 1000, "7752bef64c723e65"),
    (b'{"json": true}', 1, hashlib.sha512(b'{"json": true}').hexdigest()[:16]),
    (b"\xff\xfe\x00", 1, hashlib.sha512(b"\xff\xfe\x00").hexdigest()[:16]),
]


@pytest.mark.parametrize(("body", "iterations", "expected"), HASHES)
def test_the_old_endpoint_hashes_the_raw_body(
    running: RunningService, body: bytes, iterations: int, expected: str
) -> None:
    # when a body is enqueued through the old endpoint
    answer = httpx.put(f"{running.url}/enqueue", params={"iterations": iterations}, content=body)
    # then its result is the hash of exactly these bytes
    assert answer.status_code == 200
    assert running.client.job(answer.json()["id"]).result(30)[:16] == expected


def test_single_enqueues_take_the_short_way_through_serve(running: RunningService) -> None:
    # when jobs are enqueued one by one, both ways in
    for number in range(10):
        httpx.put(f"{running.url}/enqueue?iterations=1", content=str(number).encode()).raise_for_status()
        running.client.enqueue("jobsvc.echo", number)
    # then whichever replica is asked, all that it took came the short way: Serve called our middleware
    own = {}
    for line in httpx.get(f"{running.url}/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if line.startswith(("jobsvc_http_express_total", "jobsvc_http_requests_total")):
            own[name] = float(value)
    express = sum(value for name, value in own.items() if "express" in name)
    enqueues = [
        value
        for name, value in own.items()
        if ('route="/enqueue"' in name and "PUT" in name) or ('route="/v1/jobs"' in name and "POST" in name)
    ]
    assert express == sum(enqueues) > 0


def test_pull_hands_out_each_result_once_latest_first(running: RunningService) -> None:
    # given nothing left to pull, then three finished hash jobs
    while httpx.post(f"{running.url}/pullCompleted?top=1000").json():
        continue
    ids = []
    for number in range(3):
        answer = httpx.put(f"{running.url}/enqueue?iterations=1", content=str(number).encode())
        ids.append(answer.json()["id"])
        running.client.job(ids[-1]).result(30)
    # when they are pulled
    first = httpx.post(f"{running.url}/pullCompleted?top=2").json()
    second = httpx.post(f"{running.url}/pullCompleted?top=2").json()
    # then the latest completion came first, each once, and by id it can still be read
    assert [item["id"] for item in first + second] == ids[::-1]
    assert first[0]["value"] == hashlib.sha512(b"2").hexdigest()
    assert running.client.job(ids[2]).result(5) == first[0]["value"]


@pytest.mark.parametrize("iterations", [None, "0", "-1", "1.5", "10000001", "many", ""])
def test_bad_iterations_are_refused_by_name(running: RunningService, iterations: str | None) -> None:
    params = {} if iterations is None else {"iterations": iterations}
    answer = httpx.put(f"{running.url}/enqueue", params=params, content=b"x")
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json()["field"] == "iterations"


def test_jobs_by_the_python_client(running: RunningService) -> None:
    # given tasks of every kind: sync, async, failing, with large argument and result
    client = running.client
    assert client.enqueue(double, 21).result(30) == 42
    assert client.enqueue(nap, 4, seconds=0.1).result(30) == 8
    large = "x" * 100_000
    assert client.enqueue("jobsvc.echo", large).result(30) == large
    # when one fails
    job = client.enqueue(fail, "no luck")
    with pytest.raises(JobFailed, match="no luck"):
        job.result(30)
    # then its attempts tell why, and what it printed is kept
    assert [attempt["outcome"] for attempt in job.attempts] == ["raised", "raised"]
    assert "about to fail" in job.logs()


def test_code_is_not_taken_unless_the_operator_says_so(running: RunningService) -> None:
    # given a service as it is by default, and a function that only a notebook has
    notebook: dict[str, Any] = {"__name__": "__main__"}
    exec("def halve(number):\n    return number / 2", notebook)
    # when it is sent, then it is refused, and the caller reads what the operator has to switch on
    with pytest.raises(Refused, match="jobsvc up --allow-code") as refused:
        running.client.enqueue(notebook["halve"], 42)
    assert refused.value.refusal.code == "not_allowed"


def test_a_map_of_many_jobs(running: RunningService) -> None:
    jobs = running.client.map(double, range(3_000))
    assert jobs.results(60) == [2 * number for number in range(3_000)]


def test_one_key_is_one_job(running: RunningService) -> None:
    # given a job enqueued under a key
    first = running.client.enqueue(double, 1, key="a-key")
    # when the same request comes again, then it is the same job; another request is refused
    assert running.client.enqueue(double, 1, key="a-key").id == first.id
    with pytest.raises(Refused) as refused:
        running.client.enqueue(double, 2, key="a-key")
    assert refused.value.refusal.code == "key_reused"


def test_a_running_job_is_cancelled(running: RunningService) -> None:
    job = running.client.enqueue("jobsvc.sleep", 60)
    wait_until(lambda: job.state == "running", "the job to run")
    job.cancel()
    assert job.wait(20)["state"] == "cancelled"


def test_status_tells_who_does_what(running: RunningService) -> None:
    pair = running.whole_pair()
    assert {manager["name"] for manager in pair.values()} == {"manager-a", "manager-b"}
    for manager in pair.values():
        assert psutil.pid_exists(manager["pid"])
        assert manager["epoch"] >= 1
    job = running.client.enqueue("jobsvc.sleep", 3)
    wait_until(lambda: job.state == "running", "the job to run")
    workers = wait_until(
        lambda: [worker for worker in running.client.workers() if worker["state"] == "busy"], "a busy worker"
    )
    assert psutil.pid_exists(workers[0]["pid"])
    assert workers[0]["pool"] == "default"


def test_a_killed_worker_costs_one_attempt(running: RunningService, tmp_path: Path) -> None:
    # given a job that runs
    marks = tmp_path / "marks"
    job = running.client.enqueue(mark, str(marks), seconds=2.0)
    wait_until(marks.exists, "the job to begin")
    name = running.client.get(f"/v1/jobs/{job.id}")["worker"]
    # when its worker is killed
    worker = next(worker for worker in running.client.workers() if worker["name"] == name)
    os.kill(worker["pid"], signal.SIGKILL)
    # then it runs again elsewhere, and the loss is in its history
    assert job.result(60) == "done"
    assert [attempt["outcome"] for attempt in job.attempts] == ["lost", "succeeded"]


def test_up_again_finds_the_service(running: RunningService) -> None:
    again = service.up(running.settings, run_dir=running.run_dir, say=lambda _: None)
    assert again.urls == running.info.urls


def test_two_services_do_not_disturb_each_other(running: RunningService, tmp_path: Path) -> None:
    # given the port of the first taken, and a stranger on the next one
    port = int(running.url.rpartition(":")[2])
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port + 1))
        stranger.listen()
        # when another service is told to use the first one's port
        other = start(tmp_path, port=port)
        try:
            # then it takes the next free one
            assert int(other.url.rpartition(":")[2]) > port + 1
            assert other.client.enqueue(double, 4).result(60) == 8
        finally:
            service.down(run_dir=other.run_dir, say=lambda _: None)
    # and its end leaves the first one alone
    assert not other.processes()
    assert running.client.enqueue(double, 5).result(30) == 10


def test_beyond_loopback_a_token_is_needed(tmp_path: Path) -> None:
    from jobsvc.errors import InvalidRequest

    with pytest.raises(InvalidRequest, match="JOBSVC_TOKEN"):
        service.up(Settings(data=str(tmp_path), host="0.0.0.0"), run_dir=tmp_path / "run", say=lambda _: None)
