"""Real waits past every limit on the way, side by side, while nothing happens; then the leader is killed.

The limits: 10 s (the feed's sign of life), 15 s (a replica looks for a leader), 20 s (a client's long poll),
30 s (a stream is taken for dead), 60 s (the service's longest wait), 60 + 20 s (a client sends again). Hours
and days are in `tests/simulation`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobsvc import service
from jobsvc.client import Client
from jobsvc.errors import WaitTimedOut
from jobsvc.settings import Settings

from .conftest import RunningService, start, wait_until

JOB_SECONDS = 100.0
QUIET_SECONDS = 84.0  # then the leader is killed
SLOW_SECONDS = 12.0  # of a busy machine, and of a failover
AWAITED = 200


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with the times of every service."""
    default = Settings()
    times = {name: getattr(default, name) for name in ("lease_seconds", "heartbeat_seconds")}
    started = start(tmp_path_factory.mktemp("quiet"), **times)
    yield started
    started.client.close()
    service.down(run_dir=started.run_dir, say=lambda _: None)


class Waits:
    """All that wait for one job, each with a client of its own as another program would have."""

    def __init__(self, running: RunningService, run_dir: Path, job_id: str, after: Any) -> None:
        self._running = running
        self._environment = {**os.environ, "JOBSVC_URL": running.url, "JOBSVC_RUN_DIR": str(run_dir)}
        self.job_id = job_id
        self.after = after

    def client(self) -> Client:
        return Client(self._running.urls)

    def times_out(self, wait: Callable[[float], Any], seconds: float) -> str:
        began = time.monotonic()
        with pytest.raises(WaitTimedOut):
            wait(seconds)
        took = time.monotonic() - began
        assert seconds <= took < seconds + SLOW_SECONDS
        return "timed out"

    def over_http(self, path: str, seconds: float, status: int = 200) -> str:
        began = time.monotonic()
        and_ = "&" if "?" in path else "?"
        answer = httpx.get(f"{self._running.url}{path}{and_}wait={seconds}", timeout=100.0)
        took = time.monotonic() - began
        assert answer.status_code == status, answer.text
        assert min(seconds, 60.0) - 0.1 <= took < min(seconds, 60.0) + SLOW_SECONDS
        return "timed out"

    def stream(self, path: str, last: str) -> str:
        """Until the event that ends it comes; it must not break before, nor be silent as long as 30 s."""
        with httpx.stream(
            "GET",
            f"{self._running.url}{path}",
            headers={"Accept": "text/event-stream"},
            timeout=httpx.Timeout(30.0),
        ) as answer:
            for line in answer.iter_lines():
                if last in line:
                    return "ended"
        raise AssertionError(f"{path} was closed before {last}")

    def followed(self, end: int) -> str:
        """The feed, until the job is in it; another one may end before."""
        found = any(each.id == self.job_id for each in self.client().completions(end, follow=True))
        return "ended" if found else "missing"

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "jobsvc", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return "ended"

    def awaited(self) -> str:
        client = self.client()

        async def one(job: Any) -> Any:
            return await job

        async def all_of_set() -> list[Any]:
            return [await job async for job in self.set_of(client)]

        async def story() -> None:
            jobs = [client.job(self.job_id) for _ in range(AWAITED)]
            found = await asyncio.gather(*(one(job) for job in jobs), all_of_set())
            assert found == [None] * AWAITED + [[None]]

        asyncio.run(story())
        return "ended"

    def set_of(self, client: Client) -> Any:
        from jobsvc.client_jobs import JobSet

        return JobSet(client, [self.job_id], self.after)


def test_whoever_waits_on_a_quiet_service_is_told_the_truth_in_time(
    quiet: RunningService, tmp_path: Path
) -> None:
    quiet.whole_pair()
    # given one job that takes longer than every limit, and nothing else
    began = time.monotonic()
    jobs = quiet.client.map("jobsvc.sleep", [JOB_SECONDS], progress=False)
    end = quiet.client.feed_end()
    waits = Waits(quiet, tmp_path, jobs.ids[0], jobs._ends.after)
    job, job_id = (lambda: waits.client().job(waits.job_id)), waits.job_id
    of_set = lambda: waits.set_of(waits.client())  # noqa: E731 - one of many short calls
    calls: dict[str, Callable[[], Any]] = {
        "results": lambda: of_set().results() == [None] and "ended",
        "as_completed": lambda: len(list(of_set().as_completed())) == 1 and "ended",
        "wait": lambda: of_set().wait() == {"succeeded": 1} and "ended",
        "Job.wait": lambda: job().wait()["state"] == "succeeded" and "ended",
        "Job.result": lambda: job().result() is None and "ended",
        "completions": lambda: waits.followed(end),
        "await": waits.awaited,
        "logs -f": lambda: waits.command("logs", "-f", job_id),
        "jobsvc wait": lambda: waits.command("wait", job_id),
        "jobsvc result": lambda: waits.command("result", job_id, "--timeout", "600"),
        "enqueue --wait": lambda: waits.command("enqueue", "jobsvc.sleep", "90", "--wait"),
        "logs as events": lambda: waits.stream(f"/v1/jobs/{job_id}/logs", "event: end"),
        "feed as events": lambda: waits.stream(f"/v1/completions?after={end}", job_id),
    }
    for seconds in (14.0, 16.0, 20.0, 30.0, 61.0):
        calls[f"completions?wait={seconds:g}"] = _of(waits.over_http, f"/v1/completions?after={end}", seconds)
        calls[f"job?wait={seconds:g}"] = _of(waits.over_http, f"/v1/jobs/{job_id}", seconds)
        calls[f"result?wait={seconds:g}"] = _of(waits.over_http, f"/v1/jobs/{job_id}/result", seconds, 202)
    for seconds in (16.0, 20.0, 81.0):
        calls[f"JobSet.wait({seconds:g})"] = _of(waits.times_out, of_set().wait, seconds)
        calls[f"Job.result({seconds:g})"] = _of(waits.times_out, job().result, seconds)
    with ThreadPoolExecutor(len(calls)) as pool:
        asked = {name: pool.submit(call) for name, call in calls.items()}
        # when the leader is killed, after a silence that is longer than them all
        time.sleep(max(0.0, began + QUIET_SECONDS - time.monotonic()))
        os.kill(quiet.managers()["leader"]["pid"], signal.SIGKILL)
        # then each has ended as it should, none by an error
        found = {name: _outcome(each) for name, each in asked.items()}
    assert found == {name: "timed out" if "?" in name or "(" in name else "ended" for name in calls}
    wait_until(lambda: {"leader", "standby"} <= quiet.managers().keys(), "the pair to be whole again")


def _of(call: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: call(*arguments)


def _outcome(asked: Any) -> Any:
    try:
        return asked.result()
    except BaseException as error:
        return repr(error)
