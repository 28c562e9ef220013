"""What a call of the client becomes: documents that `POST /v1/jobs` takes, and arguments as they are sent.

A task that is given as a function has its signature at hand: arguments that do not fit are refused before
anything is sent, and values that its annotations name are sent as JSON that becomes them again. Of a task
that is given by name nothing is known: what is sent must arrive as it is.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from .client_code import Code, goes_by_value, shown_name
from .errors import InvalidRequest
from .signatures import encode_call, named_place
from .tasks import TaskDefinition, definition_of
from .value_types import ValueType, result_type
from .values import at_place, encode_json, encode_value

OPTIONS = {  # as callers say it -> as the API does
    "queue": "queue",
    "priority": "priority",
    "max_attempts": "max_attempts",
    "max_crashes": "max_crashes",
    "timeout": "timeout_seconds",
    "timeout_seconds": "timeout_seconds",
    "delay": "delay_seconds",
    "delay_seconds": "delay_seconds",
    "run_at": "run_at",
    "labels": "labels",
    "batch": "batch",
    "retention_seconds": "retention_seconds",
    "backoff_base_seconds": "backoff_base_seconds",
    "backoff_cap_seconds": "backoff_cap_seconds",
}
_TEXTS = ("task", "queue", "batch")
BYTES = (bytes, bytearray, memoryview)


class Calling:
    """A task with its options and named arguments, to be called with any arguments."""

    def __init__(
        self,
        task: str | Callable[..., Any],
        kwargs: Mapping[str, Any] | None,
        named: Mapping[str, Any],
    ) -> None:
        self._options = document(task, kwargs, named)
        self._kwargs: dict[str, Any] = self._options.pop("kwargs")
        definition = None if isinstance(task, str) else definition_of(task)
        self.code: Code | None = None
        self.signature = None
        self.returns: ValueType | None = None
        if goes_by_value(task) and not isinstance(task, str):
            self.code = Code(task, self._kwargs)
            self.returns = result_type(task)
        elif definition is not None:
            self.signature = definition.signature
            self.returns = self.signature.returns

    def document(self, args: Sequence[Any]) -> bytes:
        """The document of a job with these arguments. Raises InvalidRequest."""
        head = self._head()
        if self.code is not None:
            return b'%b,"call":%b}' % (head, encode_json(self.code.call(args)))
        sent, named = (encode_call if self.signature is None else self.signature.encode_call)(
            args, self._kwargs
        )
        return b'%b,"kwargs":%b,"args":%b}' % (head, encode_json(named), encode_json(sent))

    def line_head(self) -> bytes:
        """What all jobs of a `map` begin with, up to the item. Raises InvalidRequest."""
        if self.code is not None:
            return self._head() + b',"call":'
        return b'%b,"kwargs":%b,"args":[' % (self._head(), encode_json(self._named()))

    def line_end(self) -> Callable[[Any, int], bytes]:
        """How a line goes on from there, for an item and its number. Raises InvalidRequest with the place."""
        if (code := self.code) is not None:
            return lambda item, _number: encode_json(code.call((item,))) + b"}"
        kind = None if self.signature is None else self.signature.by_place(0)
        if kind is None or (self.signature is not None and self.signature.loose):
            return plain_line_end

        def end(item: Any, number: int) -> bytes:
            try:
                return kind.encode(item) + b"]}"
            except InvalidRequest as error:
                raise at_place(error, _item_place(number)) from error

        return end

    def parameters(self) -> dict[str, str]:
        """The same as parameters of an address, for a job whose one argument is a body."""
        found = {"kwargs": encode_json(self._named()).decode()}
        for name, value in self._options.items():
            text = _option_json(name, value).decode()
            found[name] = value if isinstance(value, str) else text
        return found

    def _head(self) -> bytes:
        options = {name: Raw(_option_json(name, value)) for name, value in self._options.items()}
        return encode_json(options)[:-1]

    def _named(self) -> dict[str, Raw]:
        if self.signature is None:
            return encode_call((), self._kwargs)[1]
        self.signature.check_call(1, self._kwargs)
        return self.signature.encode_all((), self._kwargs)[1]


def document(
    task: str | Callable[..., Any], kwargs: Mapping[str, Any] | None, named: Mapping[str, Any]
) -> dict[str, Any]:
    """The document of a job, all but its positional arguments, as the API takes it."""
    definition = None if isinstance(task, str) else definition_of(task)
    if isinstance(task, str):
        task_name = task
    elif definition is not None:
        task_name = definition.name
    elif goes_by_value(task):
        task_name = shown_name(task)
    else:
        raise InvalidRequest(f"{task!r} is neither a name nor a function with @jobsvc.task", "task")
    options = {} if definition is None else _decorated(definition)
    own = dict(kwargs or {})
    for name, value in named.items():
        if name not in OPTIONS:
            own[name] = value
        elif value is not None:
            options[OPTIONS[name]] = _option(name, value)
    encode_value(dict.fromkeys(own), "kwargs")  # their names are texts
    return {"task": task_name, "kwargs": own, **options}


def plain_line_end(item: Any, number: int) -> bytes:
    """The rest of a line for an item that arrives as it is. Raises InvalidRequest with the place."""
    try:
        return encode_value(item) + b"]}"
    except InvalidRequest as error:
        raise at_place(error, _item_place(number)) from error


def _item_place(number: int) -> str:
    return f"items[{number}].args[0]"


def document_lines(jobs: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """Job documents as the caller wrote them. Raises InvalidRequest with the place."""
    for number, job in enumerate(jobs):
        try:
            yield encode_value(dict(job))
        except (InvalidRequest, TypeError, ValueError):
            yield _line(job, number)


def _line(job: Mapping[str, Any], number: int) -> bytes:
    """A document in which something is not JSON's own: a time, a tuple, code, or a fault."""
    if not isinstance(job, Mapping):
        raise InvalidRequest(f"must be a document of a job, not {job!r}", f"jobs[{number}]")
    place = f"jobs[{number}]."
    found: dict[str, Any] = {}
    for name, value in job.items():
        if name == "kwargs" and isinstance(value, Mapping) and all(isinstance(each, str) for each in value):
            found[name] = {
                each: Raw(encode_value(inner, f"{place}{named_place(each)}")) for each, inner in value.items()
            }
        elif name == "call":
            found[name] = value  # bytes of a pickle, which the API takes as text
        else:
            found[name] = Raw(encode_value(_option(name, value), f"{place}{name}"))
    try:
        return encode_json(found)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"cannot be sent as JSON: {error}", f"jobs[{number}]") from error


def _option_json(name: str, value: Any) -> bytes:
    if name in _TEXTS and not isinstance(value, str):
        raise InvalidRequest(f"must be a text, not {value!r}", name)
    return encode_value(value, name)


def _decorated(definition: TaskDefinition) -> dict[str, Any]:
    """What the decorator says beyond the defaults: it holds even if the service has older code."""
    options: dict[str, Any] = {}
    for field in msgspec.structs.fields(TaskDefinition):
        value = getattr(definition, field.name)
        if field.name in OPTIONS and value != field.default:
            options[field.name] = dict(value) if field.name == "labels" else value
    return options


def _option(name: str, value: Any) -> Any:
    """An option as JSON has it. A time without a zone is local time; a number is seconds since 1970."""
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if name != "run_at":
        return value
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = datetime.datetime.fromtimestamp(value, datetime.UTC)
        return value.astimezone().isoformat() if isinstance(value, datetime.datetime) else value
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidRequest(f"is no time: {error}", name) from error
