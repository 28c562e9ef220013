"""A way in that starts anew beside files in the middle of an edit takes what the workers take."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobsvc.client_tables import status_rows
from jobsvc.door_tasks import LOOK_SECONDS, DoorTasks
from jobsvc.errors import InvalidRequest
from jobsvc.http_views import status_document
from jobsvc.project_code import digest_of
from jobsvc.service_code import ServiceCode
from jobsvc.tasks import TasksNotLoaded

MODULE = "edited_tasks"
TASKS = "import jobsvc\n@jobsvc.task(queue='q')\ndef work(count: int): pass\n"
EDITED = TASKS.replace("count: int", "count: str")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / f"{MODULE}.py"
    sys.modules.pop(MODULE, None)


def write(file: Path, text: str) -> None:
    file.write_text(text)
    importlib.invalidate_caches()


def of(file: Path) -> ServiceCode:
    """The service's code, if the file is its module."""
    return ServiceCode({MODULE: digest_of(file)}, [f"{MODULE}.work", "jobsvc.echo"])


def takes(door: DoorTasks, task: str, args: bytes) -> bool:
    definition = door.registry.get(task)
    assert definition is not None, f"{task} is not known"
    try:
        definition.signature.read("json", b'{"args":%b,"kwargs":{}}' % args)
    except InvalidRequest:
        return False
    return True


def test_the_services_own_code_is_checked_by_its_annotations(file: Path) -> None:
    write(file, TASKS)
    door = DoorTasks([MODULE], False, of(file), Clock())
    assert takes(door, f"{MODULE}.work", b"[1]") and not takes(door, f"{MODULE}.work", b'["a"]')
    assert door.problem() is None


def test_an_edit_before_a_new_start_refuses_nothing_that_workers_take(file: Path) -> None:
    # given a service whose file was edited and not reloaded
    write(file, TASKS)
    code = of(file)
    write(file, EDITED + "@jobsvc.task\ndef more(): pass\n")
    # when a way in starts anew
    door = DoorTasks([MODULE], False, code, Clock())
    # then it takes what the running code takes, and what only the edit would take is the workers' business
    assert takes(door, f"{MODULE}.work", b"[1]") and takes(door, f"{MODULE}.work", b'["a"]')
    definition = door.registry.get(f"{MODULE}.work")
    assert definition is not None and definition.queue == "q"
    # a task that no worker has yet is not known
    assert door.registry.get(f"{MODULE}.more") is None
    assert "jobsvc.echo" in door.registry
    problem = door.problem()
    assert problem is not None and MODULE in problem and "`jobsvc reload` brings it in" in problem


@pytest.mark.parametrize("text", ["f(\n", "raise ConnectionError('no database')\n", "", "import jobsvc\n"])
def test_a_file_that_cannot_be_loaded_keeps_no_way_in_from_starting(file: Path, text: str) -> None:
    write(file, TASKS)
    code = of(file)
    write(file, text)
    door = DoorTasks([MODULE], False, code, Clock())
    assert takes(door, f"{MODULE}.work", b"[1]")
    problem = door.problem()
    assert problem is not None and f"'{MODULE}'" in problem and "jobsvc reload" in problem
    # where nobody knows what the service's code is, nothing can be taken
    with pytest.raises(TasksNotLoaded):
        DoorTasks([MODULE], False, None, Clock())


def test_an_edit_under_a_way_in_is_told_until_it_is_taken_back(file: Path) -> None:
    # given a way in that has the service's code
    clock = Clock()
    write(file, TASKS)
    door = DoorTasks([MODULE], False, of(file), clock)
    # when the file is edited, then it goes on as it was, and says so
    write(file, EDITED)
    clock.now += LOOK_SECONDS
    assert not takes(door, f"{MODULE}.work", b'["a"]')
    problem = door.problem()
    assert problem is not None and MODULE in problem
    document = status_document("s", 1.0, [], None, 1.0, None, problem)
    assert document.code_problem == problem
    shown = {"ready": True, "managers": [], "commits": {"age_seconds": None}, "counts": {}}
    rows = status_rows(shown | {"pools": [], "workers": [], "code_problem": problem})
    assert ("code", problem) in list(rows)
    # also when it is gone
    file.unlink()
    clock.now += LOOK_SECONDS
    assert door.problem() is not None
    # and when it is what it was, all is well
    write(file, TASKS)
    clock.now += LOOK_SECONDS
    assert door.problem() is None
