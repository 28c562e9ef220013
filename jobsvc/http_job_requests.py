"""Job documents: from a body to the options and jobs of one enqueue, or an error that names what to fix.

This is the hot path of a batch, so it is one pass: `msgspec` checks types and bounds while it parses,
arguments stay the bytes that they came as, and jobs with the same options share one `JobOptions`, which is
checked once.

Arguments are put into the payload as they were received. They are read once by the task's annotations, to
refuse now what it could not be called with: a number out of range, a wrong type, an argument too many. Those
that are very large are read by the worker alone.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Raw

from .code_calls import BYTECODE, PYTHON, PickledBy, payload_of
from .errors import InvalidRequest, Refusal, Refused
from .http_errors import InvalidItem, RefusedItem, cut
from .jobs import HASH_TASK, JobOptions, NewJob
from .settings import MIB, Settings
from .settings_bounds import is_queue_name
from .signatures import TaskSignature
from .tasks import CODE_REFUSED, Registry, TaskDefinition, is_name

NAME_LENGTH_MAX = 128  # of a queue or a batch
TASK_LENGTH_MAX = 200
YEARS_10_SECONDS = 10 * 366 * 86_400.0
CHECKED_BYTES_MAX = MIB  # arguments above this are not looked into
OBJECTS_PER_JOB = 8  # in a batch that is decoded without counting its items first
ITERATIONS_MAX = 10_000_000

T = TypeVar("T")

_NO_ARGS = Raw(b"[]")
_NO_KWARGS = Raw(b"{}")

Attempts = Annotated[int, Meta(ge=1, le=1000)]
Seconds = Annotated[float, Meta(ge=0, le=YEARS_10_SECONDS)]
QueueName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@+-]{1,128}\Z")]


def _no_args() -> Raw:
    return _NO_ARGS


def _no_kwargs() -> Raw:
    return _NO_KWARGS


class CallRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A function sent by value with its arguments, where the operator allows code."""

    pickle: Annotated[bytes, Meta(min_length=1, description="cloudpickle's of (function, args, kwargs)")]
    python: Annotated[str, Meta(max_length=20, description="that pickled it: 3.11, for example")]
    bytecode: Annotated[int, Meta(ge=0, le=65_535, description="of that Python: its magic number")] | None = (
        None
    )
    cloudpickle: Annotated[str, Meta(max_length=40, description="its version")] | None = None


class JobRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One job to enqueue. Everything but `task` may be left out: the task's own defaults hold."""

    task: Annotated[str, Meta(min_length=1, max_length=TASK_LENGTH_MAX, description="name of the task")]
    args: Annotated[
        Raw, Meta(extra_json_schema={"type": "array", "description": "positional arguments, any JSON"})
    ] = msgspec.field(default_factory=_no_args)
    kwargs: Annotated[
        Raw, Meta(extra_json_schema={"type": "object", "description": "keyword arguments, any JSON"})
    ] = msgspec.field(default_factory=_no_kwargs)
    queue: QueueName | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000, description="higher runs first")] | None = None
    max_attempts: Attempts | None = None
    max_crashes: Attempts | None = None
    timeout_seconds: Annotated[float, Meta(gt=0, le=YEARS_10_SECONDS)] | None = None
    retention_seconds: Seconds | None = None
    backoff_base_seconds: Seconds | None = None
    backoff_cap_seconds: Seconds | None = None
    run_at: Annotated[datetime.datetime, Meta(tz=True, description="not before this time")] | None = None
    delay_seconds: Seconds | None = None
    batch: Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH_MAX)] | None = None
    labels: dict[str, str] | None = None
    call: CallRequest | None = None


class NewJobs(NamedTuple):
    """What one request wants to enqueue."""

    options: list[JobOptions]
    jobs: list[NewJob]
    delays: list[tuple[int, float]] = []


RAW_OPTIONS = frozenset(JobRequest.__struct_fields__) - {"args", "call"}

_one = msgspec.json.Decoder(JobRequest)
_many = msgspec.json.Decoder(list[JobRequest])
_unknown_field = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL).fullmatch
_item = re.compile(r"\[(\d+)\]\.?(.*)", re.DOTALL).fullmatch


class JobReader:
    """Reads job documents for one service."""

    def __init__(
        self, registry: Registry, settings: Settings, new_id: Callable[[], bytes], wall: Callable[[], float]
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._new_id = new_id
        self._wall = wall

    def one(self, body: bytes) -> NewJobs:
        """The job of a JSON body. Raises InvalidRequest, Refused."""
        request = _decoded(lambda: _one.decode(body))
        options, job = self._options(request), self._job(request, 0, self._signature(request))
        return NewJobs([options], [job], _delays([request]))

    def many(self, body: bytes, is_lines: bool) -> NewJobs:
        """The jobs of an array or of lines; errors name the item. Raises InvalidRequest, Refused."""
        requests = self._decode_many(body, is_lines)
        if not requests:
            raise InvalidRequest("at least one job is needed", "jobs")
        if len(requests) > self._settings.batch_jobs_max:
            raise self._too_many()
        options: list[JobOptions] = []
        signatures: list[TaskSignature | None] = []
        places: dict[tuple[object, ...], int] = {}
        jobs: list[NewJob] = []
        try:
            for request in requests:
                key = _options_key(request)
                place = places.get(key)
                if place is None:
                    place = places[key] = len(options)
                    options.append(self._options(request))
                    signatures.append(self._signature(request))
                jobs.append(self._job(request, place, signatures[place]))
        except InvalidRequest as error:
            raise InvalidItem(error.detail, error.field, len(jobs)) from error
        except Refused as error:
            raise RefusedItem(error.refusal, len(jobs)) from error
        return NewJobs(options, jobs, _delays(requests))

    def raw(self, values: Mapping[str, str], body: bytes) -> NewJobs:
        """A job whose one positional argument is the body; everything else is in the query."""
        document: dict[str, Any] = dict(values)
        kwargs = _one_line(values.get("kwargs", "{}"))
        document["kwargs"] = Raw(kwargs)
        if "labels" in values:
            document["labels"] = _json_value(values["labels"], "labels")
        try:
            request = msgspec.convert(document, JobRequest, strict=False)
        except msgspec.ValidationError as error:
            raise _invalid(error) from error
        _check_finite(request)
        options = msgspec.structs.replace(self._options(request), content="raw")
        payload = kwargs + b"\n" + body
        if len(payload) <= CHECKED_BYTES_MAX and (signature := self._signature(request)) is not None:
            _check_arguments(signature, "raw", payload)
        job = NewJob(self._new_id(), 0, payload, self._run_at(request))
        return NewJobs([options], [job], _delays([request]))

    def hash_job(self, iterations: int, body: bytes) -> NewJobs:
        """The old system's job: SHA-512 over the body, so many times."""
        definition = self._definition(HASH_TASK)
        options = definition.job_options(self._settings.pool_of(definition.queue))
        options = msgspec.structs.replace(options, content="raw")
        return NewJobs([options], [NewJob(self._new_id(), 0, b'{"iterations":%d}\n%b' % (iterations, body))])

    # --- documents ---

    def _decode_many(self, body: bytes, is_lines: bool) -> list[JobRequest]:
        if is_lines:
            if body.count(b"\n") > 2 * self._settings.batch_jobs_max:
                raise self._too_many()
            return _decoded(lambda: _one.decode_lines(body))
        if body.count(b"{") > OBJECTS_PER_JOB * self._settings.batch_jobs_max:
            self._count_items(body)
        return _decoded(lambda: _many.decode(body))

    def _count_items(self, body: bytes) -> None:
        """Refuse a batch of too many items before it is made into objects. Only for suspicious ones."""
        text = _text(body)
        scan = json.JSONDecoder().raw_decode
        place = text.find("[") + 1
        try:
            for _ in range(self._settings.batch_jobs_max):
                _, place = scan(text, place + _blank(text, place))
                place += _blank(text, place)
                if text[place : place + 1] != ",":
                    return
                place += 1
        except (ValueError, RecursionError):
            return  # the real decoder will say what is wrong
        raise self._too_many()

    def _too_many(self) -> Refused:
        detail = f"a batch has at most {self._settings.batch_jobs_max} jobs"
        return Refused(Refusal("too_large", detail, "jobs"))

    # --- one job ---

    def _signature(self, request: JobRequest) -> TaskSignature | None:
        """What the task takes, if it is known here."""
        definition = None if request.call is not None else self._registry.get(request.task)
        return None if definition is None else definition.signature

    def _job(self, request: JobRequest, place: int, signature: TaskSignature | None) -> NewJob:
        args, kwargs = bytes(request.args), bytes(request.kwargs)
        if request.call is not None:
            if (args, kwargs) != (b"[]", b"{}"):
                raise InvalidRequest("has its arguments in itself: leave out args and kwargs", "call")
            return NewJob(self._new_id(), place, _payload(request.call), self._run_at(request))
        if args[0] != 0x5B:
            raise InvalidRequest("must be an array", "args")
        if kwargs[0] != 0x7B:
            raise InvalidRequest("must be an object", "kwargs")
        payload = b'{"args":%b,"kwargs":%b}' % (args, kwargs)
        if len(payload) <= CHECKED_BYTES_MAX and signature is not None:
            _check_arguments(signature, "json", payload, args)
        run_at = None if request.run_at is None else self._run_at(request)
        return NewJob(self._new_id(), place, payload, run_at)

    def _run_at(self, request: JobRequest) -> float | None:
        """The wall-clock time before which the job does not run. A delay counts from the leader's time."""
        if request.run_at is None:
            return None
        if request.delay_seconds is not None:
            raise InvalidRequest("say run_at or delay_seconds, not both", "delay_seconds")
        run_at = request.run_at.timestamp()
        if run_at > self._wall() + YEARS_10_SECONDS:
            raise InvalidRequest("is more than ten years ahead", "run_at")
        return run_at

    def _definition(self, name: str) -> TaskDefinition:
        definition = self._registry.get(name)
        if definition is None:
            detail = f"no task is named {cut(name, 100)!r}; GET /v1/tasks lists those that are known"
            raise Refused(Refusal("unknown_task", detail, "task"))
        if definition.refused is not None:
            raise Refused(Refusal("not_allowed", definition.refused, "task"))
        return definition

    def _function_by_value(self, request: JobRequest, call: CallRequest) -> TaskDefinition:
        """The options of code that came along. It is loaded in a job's process, and nowhere else."""
        if not self._settings.allow_code:
            raise Refused(Refusal("not_allowed", CODE_REFUSED, "call"))
        if call.python != PYTHON:
            detail = f"code of Python {cut(call.python, 20)!r} cannot run on {PYTHON}"
            raise InvalidRequest(detail, "call.python")
        if call.bytecode not in (None, BYTECODE):
            raise InvalidRequest(f"bytecode {call.bytecode} cannot run here: {BYTECODE}", "call.bytecode")
        if request.task in self._registry or not is_name(request.task):
            raise InvalidRequest("code needs a name of its own, without spaces", "task")
        return TaskDefinition(function=_by_value, name=request.task)

    def _options(self, request: JobRequest) -> JobOptions:
        call = request.call
        definition = (
            self._definition(request.task) if call is None else self._function_by_value(request, call)
        )
        queue = _chosen(request.queue, definition.queue)
        if request.batch is not None and not request.batch.isprintable():
            raise InvalidRequest("must be printable", "batch")
        labels = definition.labels
        if request.labels is not None:
            labels = self._labels({**dict(labels), **request.labels})
        return JobOptions(
            task=definition.name,
            queue=queue,
            pool=self._settings.pool_of(queue),
            priority=_chosen(request.priority, definition.priority),
            content="json" if call is None else "pickle",
            max_attempts=_chosen(request.max_attempts, definition.max_attempts),
            max_crashes=_chosen(request.max_crashes, definition.max_crashes),
            backoff_base_seconds=_chosen(request.backoff_base_seconds, definition.backoff_base_seconds),
            backoff_cap_seconds=_chosen(request.backoff_cap_seconds, definition.backoff_cap_seconds),
            timeout_seconds=_chosen(request.timeout_seconds, definition.timeout_seconds),
            retention_seconds=_chosen(request.retention_seconds, definition.retention_seconds),
            batch=request.batch,
            labels=labels,
        )

    def _labels(self, labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        settings = self._settings
        if len(labels) > settings.labels_max:
            raise InvalidRequest(f"a job has at most {settings.labels_max}", "labels")
        for pair in labels.items():
            for text in pair:
                if len(text.encode()) > settings.label_bytes_max or not text.isprintable():
                    detail = f"names and values are printable, {settings.label_bytes_max} bytes at most"
                    raise InvalidRequest(detail, "labels")
        if "" in labels:
            raise InvalidRequest("a label needs a name", "labels")
        return tuple(sorted(labels.items()))


def check_queue_name(name: str) -> None:
    """Raise InvalidRequest for what is not the name of a queue."""
    if not is_queue_name(name):
        raise InvalidRequest(f"has 1 to {NAME_LENGTH_MAX} letters, digits and _.:@+-", "queue")


def _check_finite(request: JobRequest) -> None:
    """Text may say `nan`, which is within any bounds; JSON cannot."""
    for field in _SECONDS:
        value = getattr(request, field)
        if value is not None and not math.isfinite(value):
            raise InvalidRequest("must be a number of seconds", field)


_SECONDS = [name for name in JobRequest.__struct_fields__ if name.endswith("_seconds")]


def _payload(call: CallRequest) -> bytes:
    return payload_of(PickledBy(call.python, call.bytecode, call.cloudpickle), call.pickle)


def _delays(requests: list[JobRequest]) -> list[tuple[int, float]]:
    return [(place, each.delay_seconds) for place, each in enumerate(requests) if each.delay_seconds]


def _by_value() -> None:
    """Stands for a function that only a job's process may look at."""


def _chosen(value: Any, default: Any) -> Any:
    return default if value is None else value


def _options_key(request: JobRequest) -> tuple[object, ...]:
    labels = request.labels
    return (
        request.task,
        request.queue,
        request.priority,
        request.max_attempts,
        request.max_crashes,
        request.timeout_seconds,
        request.retention_seconds,
        request.backoff_base_seconds,
        request.backoff_cap_seconds,
        request.batch,
        None if request.call is None else (request.call.python, request.call.bytecode),
        None if labels is None else tuple(labels.items()),
    )


def _check_arguments(signature: TaskSignature, content: str, payload: bytes, args: bytes = b"[]") -> None:
    """Refuse now what the task could not be called with."""
    try:
        signature.read(content, payload)
    except InvalidRequest as error:
        field = error.field if error.field != "args" else _which(args)
        raise InvalidRequest(cut(error.detail), field) from error


def _which(args: bytes) -> str:
    """Whether it is the positional arguments that cannot be read, or the named ones."""
    try:
        msgspec.json.decode(args)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "args"
    return "kwargs"


def _decoded(decode: Callable[[], T]) -> T:
    """What a decoder makes of a body. Raises InvalidRequest with the field, and the item of a batch."""
    try:
        return decode()
    except msgspec.ValidationError as error:
        raise _invalid(error) from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(cut(f"is not valid JSON: {error}"), "body") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("is not valid UTF-8", "body") from error
    except RecursionError as error:
        raise InvalidRequest("is nested too deeply", "body") from error


def _invalid(error: msgspec.ValidationError) -> InvalidRequest:
    """`Expected …  - at `$[3].priority`` as an error of the field `priority` of item 3."""
    text = str(error)
    message, _, path = text.rpartition(" - at `$") if " - at `$" in text else (text, "", "")
    path = path.removesuffix("`").removesuffix("[...]")  # of an object's values: the field is the object
    unknown = _unknown_field(message)
    item = _item(path)
    field = item.group(2) if item else path.lstrip(".")
    if unknown:
        field = ".".join(filter(None, [field, cut(unknown.group(1), 60)]))
    if item:
        return InvalidItem(cut(message), field or None, int(item.group(1)))
    return InvalidRequest(cut(message), field or "body")


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("is not valid UTF-8", "body") from error


def _blank(text: str, place: int) -> int:
    """How much white space there is at this place."""
    end = place
    while text[end : end + 1] in (" ", "\t", "\n", "\r"):
        end += 1
    return end - place


def _json_value(text: str, field: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(cut(f"is not valid JSON: {error}"), field) from error


def _one_line(text: str) -> bytes:
    """A JSON object on one line: in a raw payload it stands before the first newline."""
    value = _json_value(text, "kwargs")
    if not isinstance(value, dict):
        raise InvalidRequest("must be an object", "kwargs")
    return msgspec.json.format(text.encode(), indent=-1)
