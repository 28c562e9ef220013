"""Code that changes while the service runs: nobody runs another version unnoticed; a reload brings it in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jobsvc import commands as c
from jobsvc.jobs import TASK_UNKNOWN, ErrorInfo, Finished, Outcome
from jobsvc.ray_head import service_environment
from jobsvc.service_code import ServiceCode
from jobsvc.settings import Settings
from jobsvc.task_check import check_tasks

from .job_desk import Desk, desk, job, until
from .manager_world import START, Pair, run
from .manager_world import until as until_virtually
from .test_worker import World, told

TASKS = """
import os, time, jobsvc
from shop import prices
VERSION = 1
@jobsvc.task
def version(): return [VERSION, prices.VERSION]
@jobsvc.task
def wait(path):
    while not os.path.exists(path): time.sleep(0.02)
    return VERSION
@jobsvc.task(max_attempts=1)
def die(): os._exit(1)
"""


class Project:
    """A project's folder: the module of tasks, and a package that it imports from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shop").mkdir()
        (folder / "shop" / "__init__.py").write_text("")
        self.write("shop/prices.py", "VERSION = 1\n")
        self.write("shop_tasks.py", TASKS)

    def write(self, name: str, text: str) -> None:
        """As an editor does it; compiled code of before must not pass for it."""
        path = self.folder / name
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)
        for compiled in self.folder.rglob("*.pyc"):
            compiled.unlink()

    def edit(self, name: str, before: str, after: str) -> None:
        text = (self.folder / name).read_text()
        assert before in text
        self.write(name, text.replace(before, after))

    def code(self) -> ServiceCode:
        return check_tasks(Settings(tasks=("shop_tasks",)), service_environment())

    @asynccontextmanager
    async def desk(self, **settings: Any) -> AsyncIterator[Desk]:
        async with desk(tasks=("shop_tasks",), **settings) as here:
            here.runner.use_code(self.code())
            yield here


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return Project(tmp_path)


def real(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


# --- what the code is -----------------------------------------------------------------------------


def test_the_code_is_the_tasks_and_what_they_import_from_the_project(project: Project) -> None:
    code = project.code()
    assert sorted(code.modules) == ["shop", "shop.prices", "shop_tasks"], "nothing that is installed"
    assert {"shop_tasks.version", "jobsvc.echo"} <= set(code.tasks)
    assert project.code().digest == code.digest
    # and any edit of it shows, and no other
    project.write("notes.py", "not imported")
    assert project.code().digest == code.digest
    project.edit("shop/prices.py", "1", "2")
    assert project.code().digest != code.digest
    assert code.differing(project.code().modules) == ["shop.prices"]


def test_what_differs_is_named_and_what_is_loaded_in_one_place_alone_is_no_difference() -> None:
    code = ServiceCode({"a": "1", "b": "2", "only.here": "3"}, ["a.work"])
    assert code.problem_of({"a": "1", "b": "2", "only.there": "4"}, ["a.work", "more"]) is None
    problem = code.problem_of({"a": "1", "b": "x"}, ["a.work"])
    assert problem == "code differs from the service's (b): `jobsvc reload` brings it in"
    many = ServiceCode({str(n): "1" for n in range(9)}, [])
    assert "(0, 1, 2 and 6 more)" in str(many.problem_of({str(n): "2" for n in range(9)}, []))
    assert "no task 'a.work'" in str(code.problem_of({"a": "1"}, ["other"]))
    assert code.is_like(ServiceCode(code.modules, code.tasks, edition="another"))
    assert code.digest == ServiceCode(dict(reversed(code.modules.items())), ["a.work"], 5.0).digest


# --- job processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["shop_tasks.py", "shop/prices.py"])
def test_a_process_with_other_code_than_the_services_runs_no_job(file: str, project: Project) -> None:
    async def story() -> None:
        async with project.desk() as here:
            assert (await here.run_one(job("shop_tasks.version"))).data == b"[1,1]"
            # given files that were edited: what runs goes on with what it has loaded
            project.edit(file, "VERSION = 1", "VERSION = 2")
            assert (await here.run_one(job("shop_tasks.version"))).data == b"[1,1]"
            # and a process that has to load them anew is of no use
            dead, behind = await here.run(job("shop_tasks.die"), job("shop_tasks.version"))
            assert (dead.outcome, behind.outcome) == (Outcome.CRASHED, Outcome.RELEASED)
            await here.until_held_back("code differs from the service's")
            # a file in the middle of an edit says so, and heals with it
            project.edit(file, "VERSION = 2", "VERSION = (")
            await here.until_held_back("SyntaxError")
            project.edit(file, "VERSION = (", "VERSION = 1")
            await here.until_able()
            assert (await here.run_one(job("shop_tasks.version"))).data == b"[1,1]"

    real(story())


def test_a_reload_renews_the_process_between_two_jobs(project: Project, tmp_path: Path) -> None:
    async def story() -> None:
        async with project.desk() as here:
            running, behind = job("shop_tasks.wait", str(tmp_path / "go")), job("shop_tasks.version")
            here.submit(running, behind)
            await here.until_running(running)
            project.edit("shop_tasks.py", "VERSION = 1", "VERSION = 2")
            here.runner.use_code(project.code())
            (tmp_path / "go").touch()
            assert (await here.end_of(running)).data == b"1", "what runs ends with the code it began with"
            assert (await here.end_of(behind)).data == b"[2,1]"
            assert here.runner.held_back is None
            # and when nothing runs, at once; the same code again changes nothing
            project.edit("shop_tasks.py", "VERSION = 2", "VERSION = 3")
            here.runner.use_code(project.code())
            assert (await here.run_one(job("shop_tasks.version"))).data == b"[3,1]"
            process = here.runner._child.pid  # type: ignore[attr-defined]
            here.runner.use_code(project.code())
            await here.run_one(job("shop_tasks.version"))
            assert here.runner._child.pid == process  # type: ignore[attr-defined]
            # and a reload of it renews the process, for what it has loaded since, or from elsewhere
            here.runner.use_code(msgspec.structs.replace(project.code(), edition="another"))
            assert (await here.run_one(job("shop_tasks.version"))).data == b"[3,1]"
            assert here.runner._child.pid != process  # type: ignore[attr-defined]

    real(story())


def test_what_outlasts_the_grace_of_a_reload_is_given_back(project: Project) -> None:
    async def story() -> None:
        async with project.desk(kill_grace_seconds=0.2) as here:
            running = job("shop_tasks.wait", "/nowhere/at/all")
            here.submit(running)
            await here.until_running(running)
            project.edit("shop_tasks.py", "VERSION = 1", "VERSION = 2")
            code = project.code()
            here.runner.use_code(ServiceCode(code.modules, code.tasks, 0.1))
            assert (await here.end_of(running)).outcome is Outcome.RELEASED
            assert (await here.run_one(job("shop_tasks.version"))).data == b"[2,1]"

    real(story())


def test_a_reload_ends_a_long_pause(project: Project) -> None:
    async def story() -> None:
        async with project.desk() as here:
            await here.run_one(job("shop_tasks.version"))
            project.edit("shop_tasks.py", "VERSION = 1", "VERSION = 2")
            here.submit(job("shop_tasks.die"))
            await until(lambda: here.runner._hold.pause_seconds > 3, 60)  # type: ignore[attr-defined]
            here.runner.use_code(project.code())
            await here.until_able()
            assert (await here.run_one(job("shop_tasks.version"))).data == b"[2,1]"

    real(story())


# --- leader and workers ---------------------------------------------------------------------------

OLD = ServiceCode({"t": "1"}, ["demo.task"])
NEW = ServiceCode({"t": "2"}, ["other.task"])


def test_nobody_gets_jobs_who_does_not_know_the_services_code() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        a.use_code(OLD)
        await pair.enqueue(a, 1, 2)
        # who asks without it is told at once, and gets nothing
        orders = await pair.report(a, can_take=1, wait_seconds=100.0)
        assert (orders.code, orders.grants) == (OLD, [])
        await pair.enqueue(a, 3)
        assert len(a.state.leases) == 0
        orders = await pair.report(a, can_take=1, code=OLD.digest)
        assert orders.code is None and len(orders.grants) == 1
        # a reload reaches who waits
        waiting = asyncio.create_task(
            pair.report(a, "w2", wait_seconds=100.0, code=OLD.digest, held_back="no database")
        )
        await asyncio.sleep(1.0)
        a.use_code(NEW)
        b.use_code(NEW)
        assert (await asyncio.wait_for(waiting, 1.0)).code == NEW
        # and the next leader knows it
        pair.kill("manager-a")
        await until_virtually(lambda: b.role == "leader")
        assert (await pair.report(b, "w2", code=OLD.digest)).code == NEW

    run(story, heartbeat_seconds=100.0, lease_seconds=1000.0)


def test_a_job_whose_task_the_code_does_not_have_says_so() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        a.use_code(OLD)
        [job_id] = await pair.enqueue(a, 1)
        a.use_code(NEW)
        waits = "for its task: the service's code has none named 'demo.task'; it is looked for each minute"
        [found] = await pair.ask(a, c.GetJobs([job_id]))
        assert found.items[0].waiting == waits
        orders = await pair.report(a, can_take=1, code=NEW.digest)
        error = ErrorInfo(TASK_UNKNOWN, "no task is named 'demo.task' here")
        back = Finished(job_id, orders.grants[0].attempt, Outcome.RELEASED, START, START, error=error)
        await pair.report(a, finished=[back], code=NEW.digest)
        [page] = await pair.ask(a, c.ListJobs())
        assert page.jobs[0].waiting == waits

    run(story)


@told
async def test_a_worker_takes_the_code_that_it_is_told_and_says_so() -> None:
    world = World()
    (first,) = world.leader.enqueue("quick")
    await world.until_completed(first)
    world.leader.code = OLD
    (job_id,) = world.leader.enqueue("quick")
    await world.until_completed(job_id)
    assert world.runner.code == OLD
    assert world.leader.reports[-1].code == OLD.digest
