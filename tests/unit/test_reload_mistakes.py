"""A mistake at `reload` is one line, at once, and what runs is left alone."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from jobsvc.deployed import Deployed, write_deployed
from jobsvc.discovery import ServiceInfo, write_down
from jobsvc.gone_tasks import words_about_gone_tasks
from jobsvc.ray_head import service_environment
from jobsvc.service_code import ServiceCode
from jobsvc.settings import PoolSettings, Settings
from jobsvc.task_check import check_tasks

from .local_service import Asked, Reply, ScriptedServer, answer, unused_url
from .test_operator_mistakes import (
    MISTAKES_WITH_TASKS,
    TASK,
    Mistake,
    Run,
    folder,
    jobsvc,
    made,
    refused_in_one_line,
)

__all__ = ["folder", "jobsvc"]

READY = answer({"ready": True})
NO_JOBS = answer({"jobs": [], "cursor": None})


def ready_and_empty(asked: Asked) -> Reply:
    return NO_JOBS if asked.path.startswith("/v1/jobs") else READY


class Running(NamedTuple):
    """What `up` has left in the run folder, and what stands for its Ray and its way in."""

    info: ServiceInfo
    run_dir: Path
    ray: socket.socket

    def is_untouched(self) -> bool:
        """Nobody has asked its Ray for anything, and what `up` wrote down is as it was."""
        try:
            self.ray.accept()[0].close()
        except BlockingIOError:
            return (self.run_dir / "jobsvc.json").exists() and (self.run_dir / "jobsvc.deployed").exists()
        return False


@pytest.fixture
def ray() -> Iterator[socket.socket]:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        yield listening


@pytest.fixture
def way_in() -> Iterator[ScriptedServer]:
    with ScriptedServer(reply=ready_and_empty) as server:
        yield server


@pytest.fixture
def running(folder: Path, ray: socket.socket, way_in: ScriptedServer) -> Running:
    return started(folder, ray, way_in.url)


def started(folder: Path, ray: socket.socket, url: str, **chosen: object) -> Running:
    """A service of this folder with the task `t.work`."""
    run_dir = folder.parent / "run"
    run_dir.mkdir(exist_ok=True)
    made({"t.py": TASK}, folder)
    settings = msgspec.structs.replace(Settings(data=str(folder / "data"), tasks=("t",)), **chosen)
    code = ServiceCode({"t": "as it was"}, ["t.work"])
    address = f"127.0.0.1:{ray.getsockname()[1]}"
    info = ServiceInfo("jobsvc", [url], None, address, settings.data)
    write_down(info, run_dir)
    write_deployed(info, Deployed(settings, code, str(folder)), run_dir)
    return Running(info, run_dir, ray)


def with_tasks(running: Running, folder: Path, modules: tuple[str, ...]) -> None:
    settings = Settings(data=running.info.data, tasks=modules)
    code = ServiceCode({}, ["t.work"])
    write_deployed(running.info, Deployed(settings, code, str(folder)), running.run_dir)


IN_FILES = {
    case: mistake
    for case, mistake in MISTAKES_WITH_TASKS.items()
    if mistake.words  # the others are in what `up` alone reads
}


@pytest.mark.parametrize("case", IN_FILES)
def test_what_the_files_have_is_refused_and_nothing_is_touched(
    case: str, jobsvc: Run, running: Running, folder: Path
) -> None:
    # given a service that runs, and files that have become what cannot be imported
    mistake = IN_FILES[case]
    (folder / "t.py").unlink()
    with_tasks(running, folder, tuple(word for word in mistake.words if word != "--tasks"))
    before = (running.run_dir / "jobsvc.deployed").read_bytes()
    # when they are to be brought in
    said = jobsvc("reload", mistake._replace(words=()))
    # then one line names it, and the service is as it was
    refused_in_one_line(said, mistake)
    assert running.is_untouched()
    assert (running.run_dir / "jobsvc.deployed").read_bytes() == before


POOLS = '{"default":{"max_workers":7}}'
ELSEWHERE = {"JOBSVC_RUN_DIR": "nowhere"}
REFUSED = {
    "another service": Mistake(("--service", "other"), ("other", "there is jobsvc")),
    "a name that is none": Mistake(("--service", "../jobsvc"), ("service", "'../jobsvc'")),
    "another run folder": Mistake((), ("jobsvc", "here/nowhere", "jobsvc up"), {}, ELSEWHERE),
    "a file for the run folder": Mistake(
        (), ("JOBSVC_RUN_DIR", "here/t.py"), {}, {"JOBSVC_RUN_DIR": "t.py"}
    ),
    "other pools": Mistake((), ("JOBSVC_POOLS", "jobsvc down"), {}, {"JOBSVC_POOLS": POOLS}),
    "other queues": Mistake((), ("JOBSVC_QUEUES",), {}, {"JOBSVC_QUEUES": '{"q":"default"}'}),
    "pools that are no JSON": Mistake((), ("JOBSVC_POOLS", "JSON"), {}, {"JOBSVC_POOLS": "{default}"}),
    "a queue without a pool": Mistake((), ("queues", "'no'"), {}, {"JOBSVC_QUEUES": '{"q":"no"}'}),
    "a time that is none": Mistake((), ("JOBSVC_LEASE_SECONDS",), {}, {"JOBSVC_LEASE_SECONDS": "x"}),
    "a grace without end": Mistake(("--grace", "inf"), ("grace",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_operator_says_is_refused_and_nothing_is_touched(
    case: str, jobsvc: Run, running: Running
) -> None:
    said = jobsvc("reload", REFUSED[case])
    refused_in_one_line(said, REFUSED[case])
    assert running.is_untouched()


def test_the_same_settings_said_again_are_no_mistake(
    running: Running, folder: Path, ray: socket.socket, way_in: ScriptedServer, jobsvc: Run
) -> None:
    # given a service of other pools, with a folder that was said as the operator stood
    environment = {"default": {"max_workers": 3, "runtime_env": {"working_dir": "."}}}
    pools = {"default": PoolSettings(max_workers=3, runtime_env={"working_dir": str(folder)})}
    started(folder, ray, way_in.url, pools=pools)
    variables = {"JOBSVC_POOLS": json.dumps(environment), "JOBSVC_DATA": "/elsewhere", "JOBSVC_PORT": "8123"}
    (folder / "t.py").write_text("f(")
    # when it is reloaded with the same words, then they are not what is wrong
    said = jobsvc("reload", Mistake((), (), {}, variables))
    refused_in_one_line(said, Mistake((), ("SyntaxError",)))


def test_an_unknown_variable_is_named(running: Running, jobsvc: Run, folder: Path) -> None:
    (folder / "t.py").write_text("f(")
    said = jobsvc("reload", Mistake((), (), {}, {"JOBSVC_POOL": "{}"}))
    assert "did you mean JOBSVC_POOLS" in said.stderr.splitlines()[0]


GONE = {
    "nobody answers": (None, ("does not answer",)),
    "no leader": (answer({"detail": "no manager leads"}, 503), ("is not ready", "no manager leads")),
}


@pytest.mark.parametrize("case", GONE)
def test_a_service_that_is_not_there_is_named(
    case: str, folder: Path, ray: socket.socket, jobsvc: Run
) -> None:
    reply, names = GONE[case]
    with ScriptedServer(reply or READY) as server:
        running = started(folder, ray, server.url if reply else unused_url())
        said = jobsvc("reload", Mistake())
    refused_in_one_line(said, Mistake((), ("jobsvc", *names)))
    assert running.is_untouched()


def test_a_service_whose_ray_has_died_is_named(running: Running, jobsvc: Run) -> None:
    # given a service with a Ray of its own, of which nothing lives but what answers HTTP
    write_down(msgspec.structs.replace(running.info, instance="of no process"), running.run_dir)
    said = jobsvc("reload", Mistake())
    refused_in_one_line(said, Mistake((), ("does not run any more", "jobsvc up")))


def test_a_service_of_an_older_version_is_named(running: Running, jobsvc: Run) -> None:
    (running.run_dir / "jobsvc.deployed").write_text("{}")
    refused_in_one_line(jobsvc("reload", Mistake()), Mistake((), ("another version",)))


def test_a_folder_that_is_gone_is_named(running: Running, folder: Path, jobsvc: Run) -> None:
    with_tasks(running, folder / "gone", ("t",))
    refused_in_one_line(jobsvc("reload", Mistake()), Mistake((), ("here/gone", "no folder any more")))
    assert running.is_untouched()


def test_modules_are_looked_for_where_the_service_was_started(
    running: Running, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobsvc: Run
) -> None:
    # given an operator who stands elsewhere, where there is another module of this name
    elsewhere = tmp_path / "elsewhere"
    made({"t.py": "raise RuntimeError('the wrong one')\n"}, elsewhere)
    monkeypatch.chdir(elsewhere)
    # when the service is reloaded, then its own file is what counts
    (folder / "t.py").write_text("f(")
    refused_in_one_line(jobsvc("reload", Mistake()), Mistake((), (str(folder / "t.py"), "SyntaxError")))
    settings = Settings(tasks=("t",))
    code = check_tasks_after_mending(folder, settings)
    assert code.tasks == ["t.work"]


def check_tasks_after_mending(folder: Path, settings: Settings) -> ServiceCode:
    (folder / "t.py").write_text(TASK)
    code = check_tasks(settings, service_environment(str(folder)), folder=str(folder))
    return msgspec.structs.replace(code, tasks=[each for each in code.tasks if each.startswith("t.")])


def test_a_ray_that_has_ended_is_named(running: Running, jobsvc: Run) -> None:
    running.ray.close()
    refused_in_one_line(jobsvc("reload", Mistake()), Mistake((), (running.info.ray_address, "has ended")))


def test_waiting_jobs_of_a_task_that_goes_are_said_and_what_to_do() -> None:
    jobs = {"jobs": [{"task": "t.old", "content": "json"}], "cursor": None}
    with ScriptedServer(answer(jobs)) as server:
        (word,) = words_about_gone_tasks([server.url], None, {"t.work"})
    assert all(each in word for each in ("'t.old'", "(2)", "go on waiting", "jobsvc cancel --task t.old"))
