"""Marking functions as tasks, and finding them again."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from jobsvc.errors import InvalidRequest
from jobsvc.tasks import (
    Registry,
    TasksNotLoaded,
    builtin_registry,
    default_name,
    definition_of,
    load_tasks,
    task,
)


def test_a_bare_task_stays_the_function_it_was() -> None:
    @task
    def add(a: int, b: int) -> int:
        return a + b

    assert add(1, 2) == 3
    definition = definition_of(add)
    assert definition is not None
    assert definition.name == "test_tasks.add" == default_name(add)
    assert definition.function is add


def test_options_become_the_options_of_its_jobs() -> None:
    @task(queue="images", priority=4, max_attempts=5, max_crashes=2, timeout=60, labels={"b": "2", "a": "1"})
    def thumbnail(url: str) -> None: ...

    definition = definition_of(thumbnail)
    assert definition is not None
    options = definition.job_options(pool="gpu")
    assert (options.task, options.queue, options.pool) == ("test_tasks.thumbnail", "images", "gpu")
    assert (options.priority, options.max_attempts, options.max_crashes) == (4, 5, 2)
    assert options.timeout_seconds == 60
    assert options.labels == (("a", "1"), ("b", "2"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"max_crashes": -1}, "max_crashes"),
        ({"priority": "high"}, "priority"),
        ({"priority": True}, "priority"),
        ({"timeout": 0}, "timeout_seconds"),
        ({"timeout": -1}, "timeout_seconds"),
        ({"timeout": float("nan")}, "timeout_seconds"),
        ({"timeout": 1, "timeout_seconds": 1}, "timeout"),
        ({"backoff_base_seconds": "1"}, "backoff_base_seconds"),
        ({"name": ""}, "name"),
        ({"name": "two words"}, "name"),
        ({"labels": {"a": 1}}, "labels"),
        ({"colour": "red"}, "task"),
    ],
)
def test_what_the_service_would_refuse_is_refused_at_once(options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        task(**options)(lambda: None)  # type: ignore[call-overload]
    assert caught.value.field == field


def test_what_is_no_task_has_no_definition() -> None:
    assert definition_of(print) is None
    assert definition_of(None) is None


def test_a_module_gives_its_tasks_and_those_it_imports() -> None:
    registry = load_tasks(["tests.unit.nasty_tasks"])
    assert "nasty_tasks.segfault" in registry
    assert "jobsvc.sha512" in registry
    assert registry.get("nasty_tasks.nothing") is None
    assert registry.names() == sorted(registry.names())


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(
        TasksNotLoaded, match=r"'tests.unit.fails_on_import'.*there_is_no_such_module"
    ) as caught:
        load_tasks(["tests.unit.nasty_tasks", "tests.unit.fails_on_import"])
    assert caught.value.module == "tests.unit.fails_on_import"
    with pytest.raises(TasksNotLoaded, match="'no.such.module'"):
        load_tasks(["no.such.module"])


def test_a_module_without_tasks_is_refused() -> None:
    with pytest.raises(TasksNotLoaded, match="has no function marked with @task"):
        load_tasks(["json"])


def test_two_tasks_of_one_name_are_refused() -> None:
    @task(name="one.name")
    def first() -> None: ...

    @task(name="one.name")
    def second() -> None: ...

    module = types.ModuleType("module_with_two")
    module.__dict__.update(first=first, second=second)
    sys.modules["module_with_two"] = module
    try:
        with pytest.raises(TasksNotLoaded, match="two tasks are named 'one.name'"):
            Registry().add_module("module_with_two")
    finally:
        del sys.modules["module_with_two"]


def test_the_shell_is_refused_unless_it_is_allowed() -> None:
    refused, allowed = builtin_registry(False).get("jobsvc.shell"), builtin_registry(True).get("jobsvc.shell")
    assert refused is not None and allowed is not None
    assert refused.refused is not None and "allow_shell" in refused.refused
    assert allowed.refused is None


def test_importing_the_package_is_light() -> None:
    heavy = "{'ray', 'boto3', 'fastapi', 'httpx', 'numpy'}"
    code = f"import sys, jobsvc, jobsvc.tasks; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
