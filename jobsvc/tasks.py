"""Tasks: registered Python functions, and how they are found.

`@task` marks a function and leaves it as it is: it can still be called. What it was marked with rides on
the function itself, not in a list of the process, so that importing a module changes nothing but that
module.

    @task                                   # named "<last part of the module>.<function>"
    def thumbnail(url: str, width: int) -> dict: ...

    @task(queue="images", max_attempts=5, timeout=60)
    def caption(url: str) -> str: ...

`load_tasks(["myapp.tasks"])` imports the modules and takes every marked function that it finds in them, in
what they import by name, and in the submodules that they import.
"""

from __future__ import annotations

import functools
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar, overload

import msgspec

from .errors import InvalidRequest
from .jobs import JobOptions
from .settings_bounds import check_queue_name, shown
from .signatures import TaskSignature

BUILTIN_MODULE = "jobsvc.builtin_tasks"
SHELL_TASK = "jobsvc.shell"
SHELL_REFUSED = f"{SHELL_TASK} is switched off; the operator may allow it with allow_shell"
CODE_REFUSED = (
    "no code is taken here: the operator may allow it with `jobsvc up --allow-code` (the setting allow_code);"
    " or put the function into a module that the service loads with --tasks, and mark it with @jobsvc.task"
)
_MARK = "__jobsvc_task__"
_NAME_LENGTH_MAX = 200
_WHOLE_NUMBERS = 2**31
_TOLD_LENGTH_MAX = 500  # of what an import raised
_NOT_OF_PROJECT = (
    *(sysconfig.get_path(each) for each in ("stdlib", "purelib", "platlib")),
    __file__.removesuffix("tasks.py"),
)

F = TypeVar("F", bound=Callable[..., Any])


class TasksNotLoaded(InvalidRequest):
    """A module of tasks could not be imported, or what it defines is not valid. `module` is its name."""

    def __init__(self, detail: str, module: str) -> None:
        super().__init__(detail, "tasks")
        self.module = module


class TaskDefinition(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A task: its function, its name, and the options its jobs have unless the caller says otherwise."""

    function: Callable[..., Any]
    name: str
    queue: str = "default"
    priority: int = 0
    max_attempts: int = 3
    max_crashes: int = 3
    timeout_seconds: float | None = None
    backoff_base_seconds: float = 1.0
    backoff_cap_seconds: float = 300.0
    retention_seconds: float | None = None
    labels: tuple[tuple[str, str], ...] = ()
    refused: str | None = None  # why no job of this task may run here

    @functools.cached_property
    def signature(self) -> TaskSignature:
        """What its annotations say. Looked at when it is needed: names may be defined after the function."""
        return TaskSignature(self.function)

    def job_options(self, pool: str) -> JobOptions:
        """The options of a job that is enqueued with nothing but arguments."""
        return JobOptions(
            self.name,
            queue=self.queue,
            pool=pool,
            priority=self.priority,
            max_attempts=self.max_attempts,
            max_crashes=self.max_crashes,
            backoff_base_seconds=self.backoff_base_seconds,
            backoff_cap_seconds=self.backoff_cap_seconds,
            timeout_seconds=self.timeout_seconds,
            retention_seconds=self.retention_seconds,
            labels=self.labels,
        )


@overload
def task(function: F, /) -> F: ...


@overload
def task(
    *,
    name: str | None = None,
    queue: str = "default",
    priority: int = 0,
    max_attempts: int = 3,
    max_crashes: int = 3,
    timeout: float | None = None,
    timeout_seconds: float | None = None,
    backoff_base_seconds: float = 1.0,
    backoff_cap_seconds: float = 300.0,
    retention_seconds: float | None = None,
    labels: Mapping[str, str] | None = None,
) -> Callable[[F], F]: ...


def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout: float | None = None,
    timeout_seconds: float | None = None,
    labels: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """Mark a function as a task. `timeout` is short for `timeout_seconds`."""
    if timeout is not None and timeout_seconds is not None:
        raise InvalidRequest("say timeout or timeout_seconds, not both", "timeout")

    def mark(marked: F) -> F:
        definition = _definition(
            marked,
            name=name if name is not None else default_name(marked),
            timeout_seconds=timeout if timeout is not None else timeout_seconds,
            labels=tuple(sorted((labels or {}).items())),
            **options,
        )
        setattr(marked, _MARK, definition)
        return marked

    return mark if function is None else mark(function)


def default_name(function: Callable[..., Any]) -> str:
    """`images.thumbnail` for the function `thumbnail` of the module `myapp.images`."""
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def definition_of(function: object) -> TaskDefinition | None:
    """What `@task` said of this function, or None if it is no task."""
    definition = getattr(function, _MARK, None)
    return definition if isinstance(definition, TaskDefinition) else None


def is_name(text: str) -> bool:
    """Whether a task may be called this."""
    return 0 < len(text) <= _NAME_LENGTH_MAX and text.isprintable() and " " not in text


def _definition(function: Callable[..., Any], **options: Any) -> TaskDefinition:
    try:
        definition = TaskDefinition(function=function, **options)
    except TypeError as error:
        raise InvalidRequest(str(error), "task") from error
    _check(definition)
    return definition


def _check(definition: TaskDefinition) -> None:
    """Refuse at the decorator what the service would refuse with every job."""
    name = definition.name
    _require(
        is_name(name), "name", f"{shown(name)} is not a name of 1 to {_NAME_LENGTH_MAX} printable characters"
    )
    for field in ("priority", "max_attempts", "max_crashes"):
        value = getattr(definition, field)
        whole = type(value) is int and abs(value) < _WHOLE_NUMBERS
        _require(whole, field, f"must be a whole number, not {shown(value)}")
    check_queue_name(definition.queue, "queue")
    for field in ("max_attempts", "max_crashes"):
        _require(getattr(definition, field) >= 1, field, "must be at least 1")
    for field in ("timeout_seconds", "backoff_base_seconds", "backoff_cap_seconds", "retention_seconds"):
        value = getattr(definition, field)
        if value is not None:
            number = type(value) in (int, float) and 0 <= value < float("inf")
            _require(number, field, f"must be a number of seconds, not {value!r}")
    _require(definition.timeout_seconds != 0, "timeout_seconds", "must be more than 0")
    for pair in definition.labels:
        _require(all(type(part) is str for part in pair), "labels", "must be texts by name")


def _require(good: bool, field: str, detail: str) -> None:
    if not good:
        raise InvalidRequest(detail, field)


class Registry:
    """The tasks that are known here, by name."""

    def __init__(self) -> None:
        self._definitions: dict[str, TaskDefinition] = {}

    def add(self, definition: TaskDefinition) -> None:
        known = self._definitions.get(definition.name)
        if known is not None and known.function is not definition.function:
            raise TasksNotLoaded(
                f"two tasks are named {definition.name!r}: {_place_of(known)} and {_place_of(definition)};"
                " give one of them another name",
                definition.function.__module__,
            )
        self._definitions[definition.name] = definition

    def add_module(self, name: str) -> None:
        """Import one module and take its tasks. Raises TasksNotLoaded, which names it."""
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever its code raises, the module is what is wrong
            raise TasksNotLoaded(
                f"the module {shown(name)} cannot be imported: {_told(error, name)}", name
            ) from error
        found = list(_marked_in(module))
        if not found:
            place = getattr(module, "__file__", None)
            where = f", which is {place}," if place else ""
            raise TasksNotLoaded(f"the module {name!r}{where} has no function marked with @task", name)
        for definition in found:
            self.add(definition)

    def get(self, name: str) -> TaskDefinition | None:
        return self._definitions.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._definitions

    def __len__(self) -> int:
        return len(self._definitions)

    def names(self) -> list[str]:
        return sorted(self._definitions)


def _place_of(definition: TaskDefinition) -> str:
    code = getattr(definition.function, "__code__", None)
    line = f", line {code.co_firstlineno}" if code is not None else ""
    return f"in {definition.function.__module__}{line}"


def _told(error: BaseException, module: str) -> str:
    """What Python says, on one line, and where in the project's own code."""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}: " if error.filename else ""
        return f"{where}{type(error).__name__}: {error.msg}"
    text = _cut(" ".join(f"{type(error).__name__}: {error}".split()))
    if module.startswith(".") or (module.endswith(".py") or "/" in module) and _is_not_found(error, module):
        return f"{text}; name the module as Python imports it, package.module, not the file"
    if _is_not_found(error, module):
        return f"{text}; Python looks in the folder where jobsvc is run, and in PYTHONPATH"
    places = [each for each in traceback.extract_tb(error.__traceback__) if _is_of_project(each.filename)]
    return f"{places[-1].filename}, line {places[-1].lineno}: {text}" if places else text


def _is_not_found(error: BaseException, module: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")


def _cut(text: str) -> str:
    return text if len(text) <= _TOLD_LENGTH_MAX else f"{text[:_TOLD_LENGTH_MAX]} ..."


def _is_of_project(filename: str) -> bool:
    return not filename.startswith(("<", *_NOT_OF_PROJECT))


def _marked_in(module: ModuleType) -> Iterator[TaskDefinition]:
    prefix = module.__name__ + "."
    inside = [each for name, each in sorted(sys.modules.items()) if name.startswith(prefix) and each]
    for each in [module, *inside]:
        for value in list(vars(each).values()):
            definition = definition_of(value) if callable(value) else None
            if definition is not None:
                yield definition


def builtin_registry(allow_shell: bool) -> Registry:
    """The tasks that every service has."""
    registry = Registry()
    registry.add_module(BUILTIN_MODULE)
    shell = registry.get(SHELL_TASK)
    if shell is not None and not allow_shell:
        registry.add(msgspec.structs.replace(shell, refused=SHELL_REFUSED))
    return registry


def load_tasks(modules: Sequence[str], allow_shell: bool = False) -> Registry:
    """The built-in tasks and those of the modules. Raises TasksNotLoaded, which names the module."""
    registry = builtin_registry(allow_shell)
    for name in modules:
        registry.add_module(name)
    return registry
