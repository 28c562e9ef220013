"""Functions that travel by value: those that a notebook or a script defines, and no service can import.

A function of `__main__` is pickled by cloudpickle with all that it uses of its notebook, and runs in a job's
process. The service takes it only where the operator has allowed code; elsewhere it says so, and how that is
switched on. A task that was given a name of its own (`@task(name=…)`) still goes by that name.

What a function imports must be there where it runs. Python must be the same, to the minor version.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .code_calls import BYTECODE, PYTHON
from .errors import InvalidRequest
from .tasks import default_name, definition_of


def goes_by_value(task: str | Callable[..., Any]) -> bool:
    """Whether this is a function whose code must be sent."""
    if isinstance(task, str) or not callable(task) or getattr(task, "__module__", None) != "__main__":
        return False
    definition = definition_of(task)
    return definition is None or definition.name == default_name(task)


class Code:
    """A function, pickled once for all jobs that call it."""

    def __init__(self, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        self.name = shown_name(function)
        self._function = _Pickled(_dumps(function))
        self._kwargs = dict(kwargs)
        self._cloudpickle = _cloudpickle().__version__

    def call(self, args: Sequence[Any]) -> dict[str, Any]:
        """The `call` of a job document."""
        data = _dumps((self._function, tuple(args), self._kwargs))
        return {"pickle": data, "python": PYTHON, "bytecode": BYTECODE, "cloudpickle": self._cloudpickle}


def shown_name(function: Callable[..., Any]) -> str:
    """What the jobs of this function are called. It has no spaces, and is no name of a registered task."""
    name = getattr(function, "__name__", type(function).__name__)
    return f"__main__.{name}"[:200].replace(" ", "_")


class _Pickled:
    """Bytes that become what they are a pickle of, when what contains them is unpickled."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (self._data,)


def _cloudpickle() -> Any:
    import cloudpickle  # here: most clients never need it

    return cloudpickle


def _dumps(value: Any) -> bytes:
    try:
        data: bytes = _cloudpickle().dumps(value)
    except Exception as error:  # whatever the __reduce__ of anything in it raises
        raise InvalidRequest(f"cannot be pickled: {type(error).__name__}: {error}", "task") from error
    return data
