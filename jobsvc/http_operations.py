"""The table of routes: what each one takes and gives. `http_docs` makes OpenAPI of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from . import http_views as v
from .http_bulk import GROUPS_DEFAULT, BulkDocument, BulkRequest, FailuresDocument
from .http_feed import CURSOR_PATTERN, FeedDocument
from .http_job_requests import ITERATIONS_MAX, RAW_OPTIONS, JobRequest
from .http_jobs import JSON_TYPE, PAGE_DEFAULT, PAGE_MAX, PULL_MAX
from .http_live import HISTORY_SECONDS, HISTORY_SECONDS_MAX, HistoryDocument, SummaryDocument
from .http_requests import KEY_LENGTH_MAX, RAW_TYPE, WAIT_SECONDS_MAX
from .http_streams import EVENT_STREAM, FEED_LIMIT_DEFAULT, FEED_LIMIT_MAX, TAIL_LINES_MAX
from .jobs import State

Schema = dict[str, Any]
TEXT_TYPE = "text/plain"
_EXAMPLE_JOB = {"task": "jobsvc.echo", "args": ["hello"], "priority": 5, "labels": {"run": "42"}}


class Answer(NamedTuple):
    """A success: content type -> the document, or a plain schema."""

    status: int
    description: str
    content: dict[str, type | Schema]
    headers: tuple[str, ...] = ()


class Operation(NamedTuple):
    """One route. `problems` are codes of `errors.REFUSALS`."""

    method: str
    path: str
    handler: str
    tag: str
    summary: str
    description: str
    answers: tuple[Answer, ...]
    problems: tuple[str, ...] = ()
    parameters: tuple[Schema, ...] = ()
    body: dict[str, type | Schema] | None = None
    example: Any = None


def _parameter(place: str, name: str, schema: Schema, text: str, required: bool = False) -> Schema:
    return {"in": place, "name": name, "required": required, "schema": schema, "description": text}


def _query(name: str, schema: Schema, text: str, required: bool = False) -> Schema:
    return _parameter("query", name, schema, text, required)


def _integer(low: int, high: int, default: int | None = None) -> Schema:
    schema: Schema = {"type": "integer", "minimum": low, "maximum": high}
    return schema if default is None else {**schema, "default": default}


_TEXT: Schema = {"type": "string"}
_BYTES: Schema = {"type": "string", "format": "binary"}
_ANY_JSON: Schema = {"description": "any JSON value"}
_ID = _parameter("path", "id", {"type": "string", "format": "uuid"}, "id of the job", True)
_KEY = _parameter(
    "header",
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": KEY_LENGTH_MAX, "pattern": "^[ -}][ -~]*$"},
    "Printable ASCII, not beginning with `~`. The same key with the same request gets the first answer "
    "again; with another request it is refused (409). Kept for a day, or for five minutes if it begins with "
    "`once-`; where more are used than the service can hold, the oldest go first.",
)
REQUEST_ID_HEADER = _parameter(
    "header",
    "X-Request-Id",
    {"type": "string", "maxLength": 128},
    "Comes back in the answer and is in the log.",
)
_PREFER = _parameter(
    "header",
    "Prefer",
    {"type": "string", "examples": ["wait=30"]},
    f"`wait=N`: the answer waits up to N seconds (at most {WAIT_SECONDS_MAX:g}) for the job's end.",
)
_WAIT = _query("wait", {"type": "number", "minimum": 0}, f"Seconds to wait, at most {WAIT_SECONDS_MAX:g}.")
_OPTION_TEXTS = {
    "kwargs": "keyword arguments, a JSON object",
    "labels": "a JSON object of texts",
}
_WRITE = ("invalid", "key_reused", "unknown_outcome", "no_leader", "overloaded")
_READ = ("invalid", "no_leader", "overloaded")
_ENQUEUE = (*_WRITE, "too_large", "unsupported_type", "too_many_jobs", "store_silent")
_BULK_TEXT = (
    "A request does as much as it can in about a second; send it again with `cursor` until that is null. "
    "With `dry_run` it counts and changes nothing; `top` of that answer, sent as `cursor`, leaves alone what "
    "came later."
)
_ONE_JOB = (*_READ, "unknown_job", "expired_job")


def _raw_parameters() -> tuple[Schema, ...]:
    """The fields of a job document, as parameters of a raw enqueue."""
    _, components = msgspec.json.schema_components([JobRequest])
    properties: Schema = components["JobRequest"]["properties"]
    found = []
    for name in sorted(RAW_OPTIONS - {"task"}):
        schema = {"type": "string"} if name in _OPTION_TEXTS else _without_default(properties[name])
        text = _OPTION_TEXTS.get(name, "as in the JSON document")
        found.append(_query(name, schema, f"For a raw body: {text}."))
    return (_query("task", _TEXT, "For a raw body, and needed there: name of the task."), *found)


def _without_default(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if name != "default"}


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "PUT",
        "/enqueue",
        "old_enqueue",
        "old system",
        "Enqueue a hash job",
        "The body, whatever its type, is hashed with SHA-512; then the 64-byte digest, `iterations` times"
        " in all. Answers when the job is durable.",
        (Answer(200, "The job is in the journal.", {JSON_TYPE: v.AcceptedId}, ("Location",)),),
        _ENQUEUE,
        (_query("iterations", _integer(1, ITERATIONS_MAX), "How many times.", True), _KEY),
        {"*/*": _BYTES},
    ),
    Operation(
        "POST",
        "/pullCompleted",
        "old_pull",
        "old system",
        "Pull results of hash jobs",
        "Up to `top` finished hash jobs that nobody has pulled yet, latest completion first. A pulled "
        "result stays readable by id.",
        (Answer(200, "They are marked as pulled.", {JSON_TYPE: list[v.PulledDocument]}),),
        (*_WRITE, "too_large", "unsupported_type", "store_silent"),
        (_query("top", _integer(1, PULL_MAX, 1), "How many at most."), _KEY),
    ),
    Operation(
        "POST",
        "/v1/jobs",
        "enqueue",
        "jobs",
        "Enqueue a job",
        "One JSON document; or, as `application/octet-stream`, the bytes of the task's one positional "
        "argument, with everything else in the query. Answers when the job is durable. `created` is false"
        " if the key had made it before.",
        (Answer(202, "The job is in the journal.", {JSON_TYPE: v.JobDocument}, ("Location",)),),
        (*_ENQUEUE, "unknown_task", "not_allowed"),
        (*_raw_parameters(), _KEY),
        {JSON_TYPE: JobRequest, RAW_TYPE: _BYTES},
        _EXAMPLE_JOB,
    ),
    Operation(
        "POST",
        "/v1/jobs:batch",
        "enqueue_batch",
        "jobs",
        "Enqueue many jobs, all or none",
        "A JSON array of job documents, or one document a line. An error names the item: `jobs[3].priority`.",
        (Answer(202, "All are in the journal.", {JSON_TYPE: v.BatchDocument}),),
        (*_ENQUEUE, "unknown_task", "not_allowed"),
        (_KEY,),
        {JSON_TYPE: list[JobRequest], "application/x-ndjson": _TEXT},
        [_EXAMPLE_JOB, {"task": "jobsvc.sleep", "kwargs": {"seconds": 0.1}}],
    ),
    Operation(
        "GET",
        "/v1/jobs",
        "list_jobs",
        "jobs",
        "List jobs",
        "Newest first. A page may be short, even empty, and still have a cursor: a search looks at a "
        "bounded number of jobs.",
        (Answer(200, "A page; in lists long texts are left out.", {JSON_TYPE: v.JobPageDocument}),),
        _READ,
        (
            _query("state", {"type": "string", "enum": [state.value for state in State]}, "Only these."),
            _query("queue", _TEXT, "Only of this queue."),
            _query("task", _TEXT, "Only of this task."),
            _query("batch", _TEXT, "Only of this batch."),
            _query("failure", _TEXT, "Only of this group of failures: its fingerprint."),
            _query("cursor", {"type": "string", "pattern": "^[0-9]{1,18}$"}, "`cursor` of the page before."),
            _query("limit", _integer(1, PAGE_MAX, PAGE_DEFAULT), "Jobs on a page."),
        ),
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}",
        "get_job",
        "jobs",
        "Look at a job",
        "State, attempts, why it waits. `Prefer: wait=30` waits for its end.",
        (
            Answer(
                200, "The job as it is.", {JSON_TYPE: v.JobDocument}, ("Preference-Applied", "Retry-After")
            ),
        ),
        _ONE_JOB,
        (_ID, _PREFER, _WAIT),
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}/result",
        "result",
        "jobs",
        "Read a job's result",
        "JSON, or bytes if the task returned bytes.",
        (
            Answer(200, "What the task returned.", {JSON_TYPE: _ANY_JSON, RAW_TYPE: _BYTES}),
            Answer(202, "It has not ended yet.", {JSON_TYPE: v.JobDocument}, ("Retry-After",)),
        ),
        (*_ONE_JOB, "job_failed", "not_found", "store_silent"),
        (_ID, _PREFER, _WAIT),
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}/payload",
        "payload",
        "jobs",
        "Read what a job was given",
        'JSON `{"args": …, "kwargs": …}`, or the bytes of a raw job.',
        (Answer(200, "The payload.", {JSON_TYPE: _ANY_JSON, RAW_TYPE: _BYTES}),),
        (*_ONE_JOB, "not_found", "store_silent"),
        (_ID,),
    ),
    Operation(
        "GET",
        "/v1/jobs/{id}/logs",
        "logs",
        "jobs",
        "Read a job's output",
        "What an attempt wrote to stdout and stderr. With `Accept: text/event-stream` it goes on until "
        "the attempt has ended: events `log` with `text`, then `end`.",
        (Answer(200, "The output so far.", {TEXT_TYPE: _TEXT, EVENT_STREAM: _TEXT}),),
        (*_ONE_JOB, "store_silent"),
        (
            _ID,
            _query("attempt", {"type": "integer", "minimum": 1}, "The latest one if it is left out."),
            _query("tail", _integer(0, TAIL_LINES_MAX), "Only so many lines at the end."),
        ),
    ),
    Operation(
        "POST",
        "/v1/jobs/{id}/cancel",
        "cancel",
        "jobs",
        "Cancel a job",
        "A job that waits ends at once. One that runs is killed: it is `running` with `cancel_requested` "
        "until its worker has confirmed.",
        (
            Answer(200, "It is cancelled.", {JSON_TYPE: v.JobDocument}),
            Answer(202, "It runs; the cancel is asked for.", {JSON_TYPE: v.JobDocument}),
        ),
        (*_WRITE, "unknown_job", "expired_job", "wrong_state", "too_large", "unsupported_type"),
        (_ID, _KEY),
    ),
    Operation(
        "POST",
        "/v1/jobs/{id}/retry",
        "retry",
        "jobs",
        "Put a failed or cancelled job back",
        "The same job, with its attempts unspent.",
        (Answer(202, "It is queued.", {JSON_TYPE: v.JobDocument}),),
        (*_WRITE, "unknown_job", "expired_job", "wrong_state", "too_large", "unsupported_type"),
        (_ID, _KEY),
    ),
    Operation(
        "POST",
        "/v1/jobs:cancel",
        "cancel_matching",
        "jobs",
        "Cancel all jobs that match",
        _BULK_TEXT,
        (Answer(200, "So many were, or would be.", {JSON_TYPE: BulkDocument}),),
        (*_WRITE, "too_large", "unsupported_type"),
        (_KEY,),
        {JSON_TYPE: BulkRequest},
        {"queue": "images", "dry_run": True},
    ),
    Operation(
        "POST",
        "/v1/jobs:retry",
        "retry_matching",
        "jobs",
        "Put all failed or cancelled jobs back that match",
        _BULK_TEXT,
        (Answer(200, "So many were, or would be.", {JSON_TYPE: BulkDocument}),),
        (*_WRITE, "too_large", "unsupported_type"),
        (_KEY,),
        {JSON_TYPE: BulkRequest},
        {"state": "failed", "dry_run": True},
    ),
    Operation(
        "GET",
        "/v1/failures",
        "failures",
        "jobs",
        "List failures by what went wrong",
        "Failed jobs of the same task, type of error and place in the code are one group. The groups' sizes "
        "add up to the count of failed jobs.",
        (Answer(200, "The groups, the largest first.", {JSON_TYPE: FailuresDocument}),),
        _READ,
        (_query("limit", _integer(1, PAGE_MAX, GROUPS_DEFAULT), "Groups at most."),),
    ),
    Operation(
        "GET",
        "/v1/completions",
        "completions",
        "jobs",
        "Follow finished jobs",
        "The durable feed of jobs that have ended, in order. Keep `cursor` and ask for `after=cursor`: "
        "nothing is missed untold. `truncated` says that something was passed that is told no more: jobs "
        "past their retention, or a place that is none of this store. Then look at the jobs that you wait "
        "for by id, and go on. With `Accept: text/event-stream` it goes on: events `completion`, and `reset` "
        "where `truncated` would be; the event id is the cursor.",
        (Answer(200, "Entries after the place.", {JSON_TYPE: FeedDocument, EVENT_STREAM: _TEXT}),),
        _READ,
        (
            _query(
                "after",
                {"type": "string", "pattern": CURSOR_PATTERN, "default": "0"},
                "The `cursor` of a page, or a place as a number: 0 is the beginning, -1 the present end.",
            ),
            _query("limit", _integer(0, FEED_LIMIT_MAX, FEED_LIMIT_DEFAULT), "Entries at most."),
            _WAIT,
            _parameter(
                "header",
                "Last-Event-ID",
                {"type": "string", "pattern": CURSOR_PATTERN},
                "The id of the last event, for streams.",
            ),
        ),
    ),
    Operation(
        "GET",
        "/v1/tasks",
        "tasks",
        "service",
        "List tasks",
        "What can be enqueued here.",
        (Answer(200, "The tasks, by name.", {JSON_TYPE: v.TasksDocument}),),
        ("invalid",),
    ),
    Operation(
        "GET",
        "/v1/queues",
        "queues",
        "service",
        "List queues",
        "Counts by state, age of the oldest queued job, throughput. A queue is there while it has a job or "
        "is paused. Of more than 1,000 those with the most jobs are listed, the rest is `others`.",
        (Answer(200, "The queues, by name.", {JSON_TYPE: v.QueuesDocument}),),
        _READ,
    ),
    Operation(
        "PATCH",
        "/v1/queues/{name}",
        "patch_queue",
        "service",
        "Pause or resume a queue",
        "A paused queue takes jobs and starts none.",
        (Answer(200, "The queue.", {JSON_TYPE: v.QueueDocument}),),
        (*_WRITE, "too_large", "unsupported_type"),
        (
            _parameter(
                "path", "name", {"type": "string", "pattern": "^[A-Za-z0-9_.:@+-]{1,128}$"}, "name", True
            ),
            _KEY,
        ),
        {JSON_TYPE: v.QueuePatch},
        {"paused": True},
    ),
    Operation(
        "GET",
        "/v1/workers",
        "workers",
        "service",
        "List workers and pools",
        "What they are, and what they run.",
        (Answer(200, "Workers by name, and pools.", {JSON_TYPE: v.WorkersDocument}),),
        _READ,
    ),
    Operation(
        "GET",
        "/v1/status",
        "status",
        "service",
        "See the whole service",
        "Managers, commits, counts, workers. Answers also while nobody leads.",
        (Answer(200, "The service as it is.", {JSON_TYPE: v.StatusDocument}),),
        ("invalid",),
    ),
    Operation(
        "GET",
        "/v1/events",
        "events",
        "service",
        "Follow the service",
        "With `Accept: text/event-stream` an event `summary` each second, also while nobody leads. Else one "
        "summary.",
        (Answer(200, "The service at one look.", {JSON_TYPE: SummaryDocument, EVENT_STREAM: _TEXT}),),
        ("invalid", "overloaded"),
    ),
    Operation(
        "GET",
        "/v1/history",
        "history",
        "service",
        "See how the service went",
        "Samples of depth, throughput and workers, as the leader's process saw them since it began.",
        (Answer(200, "Oldest first.", {JSON_TYPE: HistoryDocument}),),
        _READ,
        (
            _query(
                "seconds",
                {"type": "number", "minimum": 0, "default": HISTORY_SECONDS},
                f"How far back, at most {HISTORY_SECONDS_MAX:g}.",
            ),
        ),
    ),
    Operation(
        "GET",
        "/healthz",
        "healthz",
        "service",
        "Liveness",
        "This replica answers. Needs no token.",
        (Answer(200, "It does.", {JSON_TYPE: v.HealthDocument}),),
    ),
    Operation(
        "GET",
        "/readyz",
        "readyz",
        "service",
        "Readiness",
        "A leader can commit. Needs no token.",
        (Answer(200, "It can.", {JSON_TYPE: v.HealthDocument}),),
        ("no_leader",),
    ),
    Operation(
        "GET",
        "/metrics",
        "metrics",
        "service",
        "Metrics",
        "For Prometheus.",
        (Answer(200, "Text format 0.0.4.", {TEXT_TYPE: _TEXT}),),
    ),
)
