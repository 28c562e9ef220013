"""The vocabulary: jobs, attempts, leases, and what travels between processes.

Everything that crosses a process or reaches the store is a `msgspec.Struct` of this module, as msgpack.
`array_like` keeps the wire and the snapshot small; fields may be added at the end with a default,
never moved. `gc=False` on what exists a million times: these objects form no cycles.

Ids are the 16 bytes of a UUIDv7 inside, their canonical 36-character text outside. An id is made by
whoever accepts the job at the edge, before the first write, so that the id itself makes the enqueue
idempotent: a command that is sent twice finds its job already there.

Payloads are bytes that the service never looks into. `JobOptions.content` says how a worker reads them:
`json` is `{"args": [...], "kwargs": {...}}`; `raw` is one line of JSON kwargs, a newline, and then the
bytes of the single positional argument; `pickle` (only where the operator allows code) is a function
and its arguments. Payloads above `inline_bytes_max` live in a pack under `payloads/`, named by a `BlobRef`.
"""

from __future__ import annotations

import enum
import uuid
from typing import Any

import msgspec

from .errors import InvalidRequest
from .service_code import ServiceCode

FORMAT_VERSION = 1
TASK_UNKNOWN = "TaskUnknown"  # the error of an attempt that was given back because nobody has its task
HASH_TASK = "jobsvc.sha512"  # the old system's one job; `POST /pullCompleted` hands out its results


class State(enum.Enum):
    """The states of a job. `transitions.TRANSITIONS` says how it moves between them."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = object.__hash__  # Enum's own is Python, and every move of a job looks up four of them


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class Outcome(enum.Enum):
    """How an attempt ended. The worker says it, or the leader where the worker cannot."""

    SUCCEEDED = "succeeded"
    RAISED = "raised"  # the task raised, or its result could not be encoded
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"  # the job's process died: signal, out of memory, exit
    LOST = "lost"  # the worker or its machine is gone
    CANCELLED = "cancelled"  # killed because a cancel was asked for
    RELEASED = "released"  # given back without charge: drain, spot notice, retire

    __hash__ = object.__hash__


class BlobRef(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A byte range of one object in the store."""

    key: str
    offset: int
    length: int


class JobOptions(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What many jobs share. One object in memory, and once per batch in the journal."""

    task: str
    queue: str = "default"
    pool: str = "default"
    priority: int = 0  # higher runs first
    content: str = "json"  # json | raw | pickle
    max_attempts: int = 3  # first run included
    max_crashes: int = 3
    backoff_base_seconds: float = 1.0
    backoff_cap_seconds: float = 300.0
    timeout_seconds: float | None = None
    retention_seconds: float | None = None  # None: the service's
    batch: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


class NewJob(msgspec.Struct, gc=False, array_like=True):
    """One job as it is enqueued. `option` indexes the list that travels with it."""

    id: bytes
    option: int
    payload: bytes | BlobRef
    run_at: float | None = None


class ErrorInfo(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Why an attempt did not succeed. Texts are cut to the settings' bounds by the worker."""

    type: str
    message: str
    traceback: str = ""
    exit_code: int | None = None
    signal: str | None = None


class Result(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a task returned. `content` is `json`, or `raw` for bytes; exactly one of data and ref is set."""

    content: str
    data: bytes | None = None
    ref: BlobRef | None = None


class AttemptRecord(msgspec.Struct, gc=False, array_like=True):
    """One attempt that has ended. Times are wall-clock seconds of the worker's machine.

    `log` is the end of its output, of all `log_bytes` or of what came after the chunks in `logs/`.
    """

    number: int
    worker: str
    node: str
    started_at: float
    ended_at: float
    outcome: Outcome
    error: ErrorInfo | None = None
    log_bytes: int = 0
    log: BlobRef | None = None


class Lease(msgspec.Struct, gc=False, array_like=True):
    """A worker's right to one attempt. The token is (job id, attempt): attempt numbers never repeat.

    It has no end of its own: it ends by the worker's report, or when the leader declares the worker lost,
    `lease_seconds` after its last sign of life. That decision is an event like any other.
    """

    worker: str
    leased_at: float  # log time
    cancel_requested: bool = False


class Details(msgspec.Struct, gc=False, array_like=True):
    """What most queued jobs do not have yet."""

    run_at: float | None = None
    lease: Lease | None = None
    history: list[AttemptRecord] = []
    finished_at: float | None = None
    finish_seq: int | None = None  # place in the completion feed
    result: Result | None = None
    pulled: bool = False
    history_dropped: int = 0


class Job(msgspec.Struct, gc=False):
    """A job in memory. Lean on purpose: a million of them are one service's working day."""

    id: bytes
    options: JobOptions
    payload: bytes | BlobRef
    seq: int  # order of acceptance
    created_at: float
    state: State = State.QUEUED
    attempt: int = 0  # leases ever given: the fencing token, never reused
    failures: int = 0  # spent of max_attempts
    crashes: int = 0  # spent of max_crashes
    details: Details | None = None


def place_of(job: Job) -> int:
    """Its place in the completion feed; 0 for a job that has none."""
    return job.details.finish_seq or 0 if job.details is not None else 0


# --- between worker and leader -------------------------------------------------------------------


class Finished(msgspec.Struct, gc=False, array_like=True):
    """One ended attempt, reported by the worker that held its lease."""

    job_id: bytes
    attempt: int
    outcome: Outcome
    started_at: float
    ended_at: float
    result: Result | None = None
    error: ErrorInfo | None = None
    log_bytes: int = 0
    log: BlobRef | None = None  # its end; what came before, if any, is in chunks under `logs/`
    final: bool = False  # another run would end in the same way, so there is to be none


class WorkerReport(msgspec.Struct, array_like=True):
    """The one call of a worker: what ended, what it holds, and how much it can take.

    `holding` is every lease the worker has and has not reported, in the order it will run them; the
    first one is running when `busy`. `wait_seconds` lets the leader hold the call until there is
    something to say; a newer call of the same worker ends an older one that waits. `session` tells one
    life of a worker from the next. `leaving` asks for nothing more: released leases are in `finished`
    with outcome RELEASED. `held_back` asks for nothing until a job process can work again.
    """

    worker: str
    session: str
    pool: str
    node: str
    pid: int
    finished: list[Finished] = []
    holding: list[tuple[bytes, int]] = []
    busy: bool = False
    can_take: int = 0
    wait_seconds: float = 0.0
    leaving: bool = False
    busy_seconds: dict[str, tuple[int, float]] = {}  # task -> (attempts ended, seconds) since last report
    current: str | None = None  # text for people: task and job id
    puts: int = 0  # PUTs made since the last report that was answered
    actor: str = ""  # its id in Ray
    held_back: str | None = None  # why it can run nothing now, for people; it then asks for nothing
    held_back_since: float = 0.0  # wall clock
    code: str = ""  # digest of the service's code as it knows it
    environment: str = ""  # which runtime_env its process was started with


class Grant(msgspec.Struct, gc=False, array_like=True):
    """A durable lease, handed to the worker. `option` indexes `WorkerOrders.options`."""

    job_id: bytes
    attempt: int
    option: int
    payload: bytes | BlobRef


class WorkerOrders(msgspec.Struct, array_like=True, tag="orders"):
    """The leader's answer. When it is obeyed, every `finished` of the report is settled for good."""

    grants: list[Grant] = []
    options: list[JobOptions] = []
    stale: list[tuple[bytes, int]] = []  # reported, but the lease was not the worker's any more
    drop: list[tuple[bytes, int]] = []  # held by the worker, not leased to it: forget, or kill
    cancel: list[tuple[bytes, int]] = []  # kill these and report CANCELLED
    retire: bool = False  # finish nothing more; give back what is not started, and end
    lease_seconds: float = 30.0
    put_interval_seconds: float = 0.0  # this worker's share of the service's PUTs; 0: no limit
    epoch: int = 0  # whose word this is: after that of a later one it counts for nothing
    code: ServiceCode | None = None  # the worker's is another: nothing is leased before it says this one


class NotLeader(msgspec.Struct, array_like=True, tag="not_leader"):
    """Whoever was asked does not lead. `hint` is the name of the manager that may, if known."""

    hint: str | None = None


# --- ids and codec --------------------------------------------------------------------------------


def id_text(job_id: bytes) -> str:
    """The canonical 36-character text of a 16-byte id."""
    text = job_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def id_bytes(text: str) -> bytes:
    """The 16 bytes of an id's text. Raises InvalidRequest if it is none."""
    try:
        return uuid.UUID(text).bytes
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidRequest(f"{text!r} is not a job id", "id") from error


_encoder = msgspec.msgpack.Encoder()


def encode(value: Any) -> bytes:
    """Msgpack of any struct of this package."""
    return _encoder.encode(value)
