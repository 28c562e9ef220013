"""What the API answers: the documents, and how they are made of what the leader says.

Times are RFC 3339 in UTC with milliseconds, ids are the text of a UUID, places in the completion feed are
whole numbers. Fields may be added; none is renamed or removed within `/v1`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from . import commands as c
from .http_clock import ClockDocument, Time, clock_document, optional_time, service_time, time_text
from .http_errors import cut
from .http_mount import mounted
from .jobs import AttemptRecord, ErrorInfo, Result, State, id_text
from .manager_status import commit_problem, lag_records, leader_of, percentile, unserved_words
from .ray_links import ActorId, RayUrl, actor_link

SHORT_TEXT = 500  # of an error in a list

Id = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
StateName = Literal["scheduled", "queued", "running", "succeeded", "failed", "cancelled"]
OutcomeName = Literal["succeeded", "raised", "timed_out", "crashed", "lost", "cancelled", "released"]
AnyJson = Annotated[Raw, Meta(extra_json_schema={"description": "any JSON value"})]


class ErrorDocument(msgspec.Struct):
    """Why an attempt did not succeed. In lists the traceback is left out."""

    type: str
    message: str
    traceback: str = ""
    exit_code: int | None = None
    signal: str | None = None


class ResultDocument(msgspec.Struct):
    """What a job returned. `value` is there if it is JSON and small; the whole is at `links.result`."""

    content_type: str
    bytes: int
    value: AnyJson | UnsetType = UNSET


class AttemptDocument(msgspec.Struct):
    """One attempt that has ended."""

    number: int
    worker: str
    node: str
    started_at: Time
    ended_at: Time
    seconds: float
    outcome: OutcomeName
    error: ErrorDocument | None
    log_bytes: int
    log_url: str


class RunningDocument(msgspec.Struct):
    """The attempt that runs now."""

    number: int
    worker: str
    leased_at: Time
    log_url: str
    actor_id: ActorId
    ray_url: RayUrl


class JobLinks(msgspec.Struct):
    self: str
    result: str
    payload: str
    logs: str
    cancel: str
    retry: str


class JobDocument(msgspec.Struct, kw_only=True):
    """A job."""

    id: Id
    task: str
    queue: str
    pool: str
    state: StateName
    priority: int
    waiting: Annotated[str | None, Meta(description="why it waits, in words")]
    cancel_requested: Annotated[bool, Meta(description="asked for; `state` says when it is done")]
    attempt: Annotated[int, Meta(description="leases given so far; the running attempt's number")]
    worker: Annotated[str | None, Meta(description="that holds the running attempt")]
    running: RunningDocument | None
    attempts: Annotated[list[AttemptDocument], Meta(description="those that have ended, oldest first")]
    error: Annotated[ErrorDocument | None, Meta(description="of the last attempt, if the job failed")]
    result: ResultDocument | None
    failures: Annotated[int, Meta(description="spent of max_attempts")]
    crashes: Annotated[int, Meta(description="spent of max_crashes")]
    max_attempts: int
    max_crashes: int
    timeout_seconds: float | None
    backoff_base_seconds: float
    backoff_cap_seconds: float
    retention_seconds: float | None
    created_at: Time
    run_at: Time | None
    finished_at: Time | None
    payload_bytes: int
    content: Literal["json", "raw", "pickle"]
    labels: dict[str, str]
    batch: str | None
    pulled: Annotated[bool, Meta(description="handed out by POST /pullCompleted")]
    links: JobLinks
    created: Annotated[bool, Meta(description="false: this key had made the job before")] | UnsetType = UNSET


class JobPageDocument(msgspec.Struct):
    jobs: list[JobDocument]
    cursor: Annotated[str | None, Meta(description="for the next page; null at the end")]
    top: Annotated[str, Meta(description="a cursor above every job that there is now")]


class BatchDocument(msgspec.Struct):
    """The jobs of a batch, in its order."""

    ids: list[Id]
    count: int
    created: bool


class QueueDocument(msgspec.Struct):
    name: str
    pool: str
    paused: bool
    counts: dict[str, int]
    oldest_queued_at: Time | None
    oldest_queued_age_seconds: float | None
    finished_per_second: float


class QueuesDocument(msgspec.Struct):
    queues: list[QueueDocument]
    now: Time
    unlisted: int  # queues beyond the thousand with the most jobs
    others: dict[str, int]  # and their jobs, by state


class QueuePatch(msgspec.Struct, forbid_unknown_fields=True):
    paused: bool


class WorkerDocument(msgspec.Struct):
    name: str
    pid: int
    node: str
    pool: str
    state: Literal["starting", "idle", "busy", "held_back", "leaving", "silent"]
    current_job: Annotated[str | None, Meta(description="task and job id")]
    leases: int
    seen_seconds_ago: float
    actor_id: ActorId
    ray_url: RayUrl
    held_back: Annotated[str | None, Meta(description="why it can run nothing now")]
    held_back_since: Time | None


class PoolDocument(msgspec.Struct):
    name: str
    wanted: int
    observed: int
    min_workers: int
    max_workers: int
    waiting: str | None
    held_back: Annotated[int, Meta(description="workers that can run nothing now")]


class WorkersDocument(msgspec.Struct):
    workers: list[WorkerDocument]
    pools: list[PoolDocument]


class AppliedDocument(msgspec.Struct):
    """The last record that a manager has applied, and how many since the beginning of the log."""

    epoch: int
    n: int
    records: int


class PartProblemDocument(msgspec.Struct):
    """A part of a manager that fails, while the rest of it goes on."""

    part: str
    text: Annotated[str, Meta(description="what it raised last")]
    since: Time
    times: int
    next_try_seconds: float


class ManagerDocument(msgspec.Struct):
    name: str
    role: Literal["leader", "standby", "recovering"]
    pid: int
    node: str
    epoch: int
    applied: AppliedDocument
    lag: Annotated[int | None, Meta(description="records behind the leader")]
    healthy: bool
    problem: str | None
    store_requests: Annotated[dict[str, int], Meta(description="by kind, since this process began")]
    actor_id: ActorId
    ray_url: RayUrl
    problems: list[PartProblemDocument]


class CommitDocument(msgspec.Struct):
    """The leader's commits, of the latest few hundred."""

    age_seconds: float | None
    p50_seconds: float | None
    p99_seconds: float | None
    count: int


class StatusDocument(msgspec.Struct, kw_only=True):
    service: str
    now: Time
    ready: bool
    leader: str | None
    epoch: int
    problem: str | None
    managers: list[ManagerDocument]
    commits: CommitDocument
    clock: Annotated[ClockDocument | None, Meta(description="null: no leader could say")]
    counts: dict[str, int]
    workers: Annotated[list[WorkerDocument] | None, Meta(description="null: no leader could say")]
    pools: list[PoolDocument] | None
    ray_dashboard_url: str | None
    code_problem: Annotated[str | None, Meta(description="how the files of the tasks differ from what runs")]
    unserved: Annotated[list[str], Meta(description="tasks that are gone while jobs wait for them")]


class TaskDocument(msgspec.Struct, kw_only=True):
    name: str
    description: str
    parameters: Annotated[str, Meta(description="as in Python's signature")]
    queue: str
    pool: str
    priority: int
    max_attempts: int
    max_crashes: int
    timeout_seconds: float | None
    refused: Annotated[str | None, Meta(description="why no job of this task may run here")]


class TasksDocument(msgspec.Struct):
    tasks: list[TaskDocument]


class AcceptedId(msgspec.Struct):
    id: Id


class PulledDocument(msgspec.Struct):
    id: Id
    value: Annotated[str, Meta(description="SHA-512 as 128 hexadecimal digits")]


class HealthDocument(msgspec.Struct):
    status: str


encode_json = msgspec.json.Encoder().encode


def content_type(content: str) -> str:
    return "application/json" if content == "json" else "application/octet-stream"


def error_document(error: ErrorInfo | None, short: bool) -> ErrorDocument | None:
    if error is None:
        return None
    message, traceback = (cut(error.message, SHORT_TEXT), "") if short else (error.message, error.traceback)
    return ErrorDocument(error.type, message, traceback, error.exit_code, error.signal)


def small_value(result: Result | None) -> Raw | None:
    """A result's JSON, if it is JSON and at hand."""
    if result is None or result.content != "json" or result.ref is not None:
        return None
    return Raw(result.data or b"null")


def result_document(result: Result | None) -> ResultDocument | None:
    if result is None:
        return None
    size = len(result.data or b"") if result.ref is None else result.ref.length
    value = small_value(result)
    return ResultDocument(content_type(result.content), size, UNSET if value is None else value)


def _attempt(job_url: str, record: AttemptRecord, short: bool) -> AttemptDocument:
    return AttemptDocument(
        record.number,
        record.worker,
        record.node,
        time_text(record.started_at),
        time_text(record.ended_at),
        round(max(0.0, record.ended_at - record.started_at), 6),
        record.outcome.value,
        error_document(record.error, short),
        record.log_bytes,
        f"{job_url}/logs?attempt={record.number}",
    )


def job_document(
    view: c.JobView, ray: str | None = None, *, short: bool = False, created: bool | UnsetType = UNSET
) -> JobDocument:
    """A job as the API shows it; `short` leaves the long texts out. `ray` is its dashboard's address."""
    options = view.options
    text = id_text(view.id)
    url = mounted(f"/v1/jobs/{text}")
    running = None
    if view.worker is not None and view.leased_at is not None:
        log_url = f"{url}/logs?attempt={view.attempt}"
        link = actor_link(ray, view.actor)
        leased_at = time_text(view.leased_at)
        running = RunningDocument(view.attempt, view.worker, leased_at, log_url, view.actor or None, link)
    last = view.history[-1] if view.history and view.state is State.FAILED else None
    return JobDocument(
        id=text,
        task=options.task,
        queue=options.queue,
        pool=options.pool,
        state=view.state.value,
        priority=options.priority,
        waiting=view.waiting,
        cancel_requested=view.cancel_requested,
        attempt=view.attempt,
        worker=view.worker,
        running=running,
        attempts=[_attempt(url, record, short) for record in view.history],
        error=error_document(last.error, short) if last is not None else None,
        result=result_document(view.result),
        failures=view.failures,
        crashes=view.crashes,
        max_attempts=options.max_attempts,
        max_crashes=options.max_crashes,
        timeout_seconds=options.timeout_seconds,
        backoff_base_seconds=options.backoff_base_seconds,
        backoff_cap_seconds=options.backoff_cap_seconds,
        retention_seconds=options.retention_seconds,
        created_at=time_text(view.created_at),
        run_at=optional_time(view.run_at),
        finished_at=optional_time(view.finished_at),
        payload_bytes=view.payload_bytes,
        content=_known(options.content),
        labels=dict(options.labels),
        batch=options.batch,
        pulled=view.pulled,
        links=JobLinks(
            url, f"{url}/result", f"{url}/payload", f"{url}/logs", f"{url}/cancel", f"{url}/retry"
        ),
        created=created,
    )


def _known(text: str) -> Any:
    return text


def queues_document(queues: c.Queues) -> QueuesDocument:
    found = [
        QueueDocument(
            *(queue.name, queue.pool, queue.paused, queue.counts),
            optional_time(queue.oldest_queued_at),
            None if queue.oldest_queued_at is None else max(0.0, queues.now - queue.oldest_queued_at),
            queue.finished_per_second,
        )
        for queue in queues.queues
    ]
    return QueuesDocument(found, time_text(queues.now), queues.unlisted, queues.others)


def workers_document(workers: c.Workers, ray: str | None = None) -> WorkersDocument:
    found = [
        WorkerDocument(
            *(w.name, w.pid, w.node, w.pool, _known(w.state), w.current, w.held, w.seen_seconds_ago),
            *(w.actor or None, actor_link(ray, w.actor), w.held_back, optional_time(w.held_back_since)),
        )
        for w in workers.workers
    ]
    pools = [
        PoolDocument(p.name, p.wanted, p.observed, p.min_workers, p.max_workers, p.waiting, p.held_back)
        for p in workers.pools
    ]
    return WorkersDocument(found, pools)


def status_document(
    service: str,
    now: float,
    statuses: list[c.ManagerStatus],
    workers: c.Workers | None,
    commit_age_max: float,
    ray: str | None = None,
    code_problem: str | None = None,
) -> StatusDocument:
    leader = leader_of(statuses)
    problem = commit_problem(statuses, commit_age_max)
    best = leader or max(statuses, key=lambda status: status.applied_records, default=None)
    shown = workers_document(workers, ray) if workers is not None else None
    seconds = leader.commit_seconds if leader is not None else []
    return StatusDocument(
        service=service,
        now=time_text(service_time(leader, now)),
        ready=problem is None,
        leader=leader.name if leader is not None else None,
        epoch=best.epoch if best is not None else 0,
        problem=problem,
        managers=[_manager(status, leader, ray) for status in statuses],
        commits=CommitDocument(
            leader.commit_age_seconds if leader is not None else None,
            percentile(seconds, 0.5),
            percentile(seconds, 0.99),
            len(seconds),
        ),
        clock=clock_document(leader),
        counts=_all_counts(best.counts if best is not None else {}),
        workers=shown.workers if shown is not None else None,
        pools=shown.pools if shown is not None else None,
        ray_dashboard_url=ray,
        code_problem=code_problem,
        unserved=unserved_words(leader),
    )


def _all_counts(counts: dict[str, int]) -> dict[str, int]:
    return {state.value: counts.get(state.value, 0) for state in State}


def _manager(status: c.ManagerStatus, leader: c.ManagerStatus | None, ray: str | None) -> ManagerDocument:
    role: Any = status.role
    return ManagerDocument(
        status.name,
        role,
        status.pid,
        status.node,
        status.epoch,
        AppliedDocument(status.epoch, status.applied_n, status.applied_records),
        lag_records(status, leader),
        status.healthy,
        status.problem,
        status.store_requests,
        status.actor or None,
        actor_link(ray, status.actor),
        [
            PartProblemDocument(
                each.part, each.text, time_text(each.since), each.times, round(each.next_try_seconds, 1)
            )
            for each in status.problems
        ],
    )
