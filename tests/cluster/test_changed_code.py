"""Code that changes under a real service: a module that cannot be imported for a while, an edit, a reload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobsvc.client import Client
from jobsvc.discovery import find_service
from jobsvc.ports import free_ports
from jobsvc.service_processes import service_processes

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


POOLS = '{"default": {"min_workers": 2, "max_workers": 2}}'


class Project:
    """A folder with tasks, and the command line as its owner uses it."""

    def __init__(self, folder: Path, pools: str = POOLS, **own: str) -> None:
        self.folder = folder
        self.flag = folder / "no-database"
        (folder / "run").mkdir()
        self.write(TASKS)
        own |= {"JOBSVC_RUN_DIR": str(folder / "run"), "NO_DATABASE": str(self.flag)}
        own |= {"JOBSVC_POOLS": pools, "PYTHONDONTWRITEBYTECODE": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBSVC_")}
        self.environment = kept | own

    def write(self, text: str) -> None:
        path = self.folder / "changing.py"
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def jobsvc(self, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobsvc", *words, "--service", "changing"]
        return subprocess.run(
            command,
            cwd=folder or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
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


PACKING = {
    "default": {"min_workers": 1, "max_workers": 1, "num_cpus": 0.5},
    "packed": {"min_workers": 1, "max_workers": 1, "num_cpus": 0.5, "runtime_env": {"working_dir": "packed"}},
}
PACKED_TASKS = """
import jobsvc
@jobsvc.task(max_attempts=1)
def work(seconds: float): return seconds
@jobsvc.task(queue="packed", max_attempts=1)
def packed():
    import helper
    return helper.VALUE
"""


@pytest.fixture
def packing(tmp_path: Path) -> Iterator[Project]:
    """A pool that packs a folder, and one way in alone."""
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "helper.py").write_text("VALUE = 1\n")
    queues = {"JOBSVC_QUEUES": '{"packed": "packed"}', "JOBSVC_REPLICAS": "1"}
    made = Project(tmp_path, json.dumps(PACKING), **queues)
    made.write(PACKED_TASKS)
    try:
        yield made
    finally:
        made.jobsvc("down")


def test_a_reload_packs_anew_and_a_way_in_takes_what_the_workers_take(packing: Project) -> None:
    started = packing.up()
    assert started.returncode == 0, started.stderr
    with Client(f"http://127.0.0.1:{packing.port}") as client:
        assert client.enqueue("changing.packed").result(90) == 1
        assert client.status()["code_problem"] is None
        # given edits of the tasks and of what a pool packs, and the one way in dies
        packing.write(PACKED_TASKS.replace("seconds: float", "seconds: str"))
        (packing.folder / "packed" / "helper.py").write_text("VALUE = 2\n")
        wait_until(lambda: "changing" in (client.status()["code_problem"] or ""), "the edit to be told")
        [way_in] = processes_named(packing, "ServeReplica")
        way_in.kill()
        # then the new one takes what the running code takes
        wait_until(lambda: processes_named(packing, "ServeReplica") not in ([], [way_in]), "a new way in", 60)
        assert client.enqueue("changing.work", 0.25).result(60) == 0.25
        assert client.enqueue("changing.packed").result(60) == 1
        assert "`jobsvc reload` brings it in" in client.status()["code_problem"]
        # also one that starts while the file cannot be imported
        packing.write(PACKED_TASKS + "f(\n")
        [way_in] = processes_named(packing, "ServeReplica")
        way_in.kill()
        wait_until(lambda: processes_named(packing, "ServeReplica") not in ([], [way_in]), "a new way in", 60)
        assert client.enqueue("changing.work", 0.5).result(60) == 0.5
        # when all is brought in, from another folder, beside callers who never stop
        packing.write(PACKED_TASKS.replace("float", "float | str"))
        callers = Callers(client)
        reloaded = packing.jobsvc("reload", folder=packing.folder / "packed")
        callers.end()
        # then nobody was refused, and the new files are those that run
        assert reloaded.returncode == 0, reloaded.stderr
        assert "packages of pool packed" in reloaded.stderr
        assert callers.errors == []
        assert {job.result(60) for job in callers.jobs} == {0.01}
        assert client.enqueue("changing.packed").result(90) == 2
        assert client.enqueue("changing.work", "x").result(60) == "x"
        assert client.status()["code_problem"] is None


def processes_named(project: Project, name: str) -> list[psutil.Process]:
    info = find_service("changing", project.folder / "run")
    assert info is not None
    found = []
    for process in service_processes(info):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found
