"""What a job calls, and what becomes of its result: between a payload and a function, in the job's process.

Some ends are the same in every run: arguments that do not fit, code that came with the job and cannot be
loaded, a result that has no JSON or is too large. They are raised as `NoSecondRun`, and end the job at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeAlias

import msgspec

from .code_calls import CodeNotLoaded, load_call
from .errors import InvalidRequest
from .tasks import TaskDefinition
from .value_types import ValueType, result_type
from .values import encode_value

_BYTES = (bytes, bytearray, memoryview)


class JobKilled(SystemExit):
    """The worker has asked this job to end: it was cancelled, or its time is over.

    A SystemExit, because that is what event loops let through.
    """


class NoSecondRun(Exception):
    """This job would end so in every run. `kind` is the type that its error shows."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


# function, arguments, named arguments, what the annotation says of the result; plain, as each job has one
Call: TypeAlias = tuple[Callable[..., Any], Sequence[Any], dict[str, Any], ValueType | None]


def call_of_task(definition: TaskDefinition, content: str, payload: bytes) -> Call:
    """The call of a registered task. Raises NoSecondRun."""
    signature = definition.signature
    try:
        args, kwargs = signature.read(content, payload)
    except InvalidRequest as error:
        raise NoSecondRun(_kind_of(error), str(error)) from error
    return definition.function, args, kwargs, signature.returns


def _kind_of(error: BaseException) -> str:
    """What msgspec raised if it did; what does not fit otherwise is a TypeError, as in any call."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"msgspec.{type(error).__name__}" if isinstance(error, msgspec.MsgspecError) else "TypeError"


def call_by_value(payload: bytes) -> Call:
    """The call of code that came with its job. Raises NoSecondRun."""
    try:
        function, args, kwargs = load_call(payload)
        return function, args, kwargs, result_type(function)
    except CodeNotLoaded as error:
        raise NoSecondRun("CodeNotLoaded", str(error)) from error
    except (JobKilled, MemoryError):
        raise
    except BaseException as error:  # a module that leaves as it is imported
        detail = f"the code that came with this job cannot be loaded here: {type(error).__name__}"
        raise NoSecondRun("CodeNotLoaded", detail) from error


def check_fits(call: Call, error: TypeError, inside: TracebackType | None) -> None:
    """Raise NoSecondRun for a call that failed because it does not fit. `inside`: frames of the function."""
    if inside is not None:
        return
    function, args, kwargs, _ = call
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        raise NoSecondRun("TypeError", str(error)) from error
    except ValueError:
        return  # a callable that does not tell: the error may be its own


def write_result(value: Any, bytes_max: int, returns: ValueType | None = None) -> tuple[str, bytes]:
    """Content and bytes of what a task returned. Raises NoSecondRun."""
    content = "json"
    try:
        if isinstance(value, _BYTES):
            content, data = "raw", bytes(value)
        else:
            data = encode_value(value) if returns is None else returns.encode_result(value)
    except InvalidRequest as error:
        raise _not_storable(value, error) from error
    except (JobKilled, MemoryError):
        raise
    except BaseException as error:  # of the value's own code
        raise _not_storable(value, InvalidRequest(f"{type(error).__name__} as it was written")) from error
    if len(data) > bytes_max:
        detail = f"the result has {len(data)} bytes, more than the {bytes_max} that are allowed"
        raise NoSecondRun("ResultNotStorable", detail)
    return content, data


def _not_storable(value: Any, error: InvalidRequest) -> NoSecondRun:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    detail = f"the task returned something that cannot be stored as JSON: {name}"
    return NoSecondRun("ResultNotStorable", f"{detail} (result{error.field or ''}: {error.detail})")
