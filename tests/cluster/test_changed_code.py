"""Code that changes under a real service: a module that cannot be imported for a while, an edit, a reload."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobsvc.client import Client
from jobsvc.ports import free_ports

from .conftest import wait_until

TASKS = """
import os, time, jobsvc
if os.path.exists(os.environ["NO_DATABASE"]): raise ConnectionError("no database")
VERSION = 1
@jobsvc.task(max_attempts=3, backoff_base_seconds=0.2)
def work(seconds):
    time.sleep(seconds)
    return VERSION
@jobsvc.task(max_attempts=1)
def die(): os._exit(1)
"""


class Project:
    """A folder with tasks, and the command line as its owner uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flag = folder / "no-database"
        (folder / "run").mkdir()
        self.write(TASKS)
        own = {"JOBSVC_RUN_DIR": str(folder / "run"), "NO_DATABASE": str(self.flag)}
        pools = '{"default": {"min_workers": 2, "max_workers": 2}}'
        own |= {"JOBSVC_POOLS": pools, "PYTHONDONTWRITEBYTECODE": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBSVC_")}
        self.environment = kept | own

    def write(self, text: str) -> None:
        path = self.folder / "changing.py"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def jobsvc(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobsvc", *words, "--service", "changing"]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def up(self) -> subprocess.CompletedProcess[str]:
        self.port = getattr(self, "port", None) or free_ports(1)[0]
        words = ("--data", str(self.folder / "data"), "--tasks", "changing", "--port", str(self.port))
        return self.jobsvc("up", *words)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    try:
        yield made
    finally:
        made.jobsvc("down")


def states(client: Client) -> Counter[str]:
    return Counter(worker["state"] for worker in client.workers())


class Callers:
    """Somebody who goes on enqueueing, and what was answered."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ended = threading.Event()
        self.jobs: list[Any] = []
        self.errors: list[Exception] = []
        self._thread = threading.Thread(target=self._go)
        self._thread.start()

    def _go(self) -> None:
        while not self._ended.wait(0.02):
            try:
                self.jobs.append(self._client.enqueue("changing.work", 0.01))
            except Exception as error:
                self.errors.append(error)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def test_what_changes_under_a_service_costs_no_job(project: Project) -> None:
    started = project.up()
    assert started.returncode == 0, started.stderr
    with Client(f"http://127.0.0.1:{project.port}") as client:
        wait_until(lambda: states(client)["idle"] == 2, "two workers")
        # given a process that starts anew while its module cannot be imported
        project.flag.touch()
        client.enqueue("changing.die").wait(30)
        held_back = wait_until(
            lambda: [each for each in client.workers() if each["state"] == "held_back"], "it to be held back"
        )[0]
        assert "ConnectionError: no database" in held_back["held_back"] and held_back["held_back_since"]
        [pool] = client.status()["pools"]
        assert pool["held_back"] == 1 and "held back since" in pool["waiting"]
        # when it can be imported again, all jobs succeed, and no attempt was spent
        jobs = client.map("changing.work", [0.05] * 200, progress=False)
        time.sleep(2)
        project.flag.unlink()
        assert jobs.wait(120) == {"succeeded": 200}
        assert {job.refresh()["failures"] for job in jobs} <= {0}
        wait_until(lambda: states(client)["idle"] == 2, "both workers to work again")

        # given an edit, and one process that would have to load it: one version runs
        project.write(TASKS.replace("VERSION = 1", "VERSION = 2"))
        client.enqueue("changing.die").wait(30)
        assert Counter(client.map("changing.work", [0.05] * 40, progress=False).results(60)) == {1: 40}
        assert states(client)["held_back"] == 1
        # a broken file in between changes nothing, and a reload of it is refused with a line
        project.write(TASKS + "f(\n")
        refused = project.jobsvc("reload")
        assert refused.returncode != 0 and refused.stderr.count("\n") == 1, refused.stderr
        assert all(word in refused.stderr for word in ("'changing'", "changing.py, line", "SyntaxError"))
        # what is as it was heals by itself
        project.write(TASKS)
        wait_until(lambda: states(client)["held_back"] == 0, "the file that is as it was to be taken", 90)

        # given callers who never stop; when the new code is brought in
        project.write(TASKS.replace("VERSION = 1", "VERSION = 2"))
        again = project.up()
        assert again.returncode == 0 and "`jobsvc reload` brings it in" in again.stderr, again.stderr
        callers = Callers(client)
        reloaded = project.jobsvc("reload")
        callers.end()
        # then nobody was refused, no job was lost, and the new version runs
        assert reloaded.returncode == 0, reloaded.stderr
        assert callers.errors == []
        results = [job.result(60) for job in callers.jobs]
        assert results == sorted(results) and set(results) <= {1, 2} and results[-1] == 2
        assert Counter(client.map("changing.work", [0.05] * 40, progress=False).results(60)) == {2: 40}
        assert states(client)["held_back"] == 0
