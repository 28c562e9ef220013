"""What replicas ask of the leader, and what it answers.

A replica gathers all requests that arrive together into one `Flight`, and gets one `FlightReply` with as
many replies in the same order, when the record that they depend on is durable. Commands change the
state; queries read it. A reply is the command's answer or a `Refusal`; nothing of a refused command is done.

Idempotency. `Enqueue` is idempotent by its job ids. Every command may carry a `key` and the
`fingerprint` of the request: the same key with the same fingerprint gets the first answer again
(`Accepted.created` is then false), with another fingerprint the refusal `key_reused`. A replica gives
commands other than `Enqueue` a key of its own where the caller gave none, so that it can send them
again to the next leader.
"""

from __future__ import annotations

import msgspec

from .errors import Refusal
from .jobs import AttemptRecord, BlobRef, ErrorInfo, JobOptions, NewJob, Result, State

AUTOMATIC_KEY_PREFIX = "~"  # keys that a replica made; kept for minutes, not for a day


# --- commands ------------------------------------------------------------------------------------


class Enqueue(msgspec.Struct, array_like=True, tag="enqueue"):
    """All of these jobs, or none."""

    options: list[JobOptions]
    jobs: list[NewJob]
    key: str | None = None
    fingerprint: bytes = b""


class Cancel(msgspec.Struct, array_like=True, tag="cancel"):
    ids: list[bytes]
    key: str | None = None
    fingerprint: bytes = b""


class Retry(msgspec.Struct, array_like=True, tag="retry"):
    """Put failed or cancelled jobs back, with their attempts unspent."""

    ids: list[bytes]
    key: str | None = None
    fingerprint: bytes = b""


class PatchQueue(msgspec.Struct, array_like=True, tag="patch_queue"):
    queue: str
    paused: bool
    key: str | None = None
    fingerprint: bytes = b""


class Pull(msgspec.Struct, array_like=True, tag="pull"):
    """Up to `count` succeeded jobs of `task` that were not pulled yet, latest completion first."""

    task: str
    count: int
    key: str | None = None
    fingerprint: bytes = b""


# --- answers of commands -------------------------------------------------------------------------


class Accepted(msgspec.Struct, array_like=True, tag="accepted"):
    ids: list[bytes]
    created: bool


class Changed(msgspec.Struct, array_like=True, tag="changed"):
    """One item for each id of a Cancel or Retry, in order: the state it is in now, or a refusal.

    A cancel of a running job answers `running`: asked for, not yet confirmed."""

    items: list[State | Refusal]


class QueuePatched(msgspec.Struct, array_like=True, tag="queue_patched"):
    queue: str
    paused: bool


class PulledJob(msgspec.Struct, array_like=True):
    id: bytes
    result: Result


class Pulled(msgspec.Struct, array_like=True, tag="pulled"):
    jobs: list[PulledJob]


# --- queries -------------------------------------------------------------------------------------


class GetJobs(msgspec.Struct, array_like=True, tag="get_jobs"):
    ids: list[bytes]


class GetPayload(msgspec.Struct, array_like=True, tag="get_payload"):
    id: bytes


class ListJobs(msgspec.Struct, array_like=True, tag="list_jobs"):
    """Newest first. `before` is the cursor: only jobs with a smaller seq. A page may be short, even
    empty, with a cursor: the leader looks at a bounded number of jobs for each request."""

    state: State | None = None
    queue: str | None = None
    task: str | None = None
    batch: str | None = None
    before: int | None = None
    limit: int = 50


class ReadFeed(msgspec.Struct, array_like=True, tag="read_feed"):
    """Finished jobs in order of completion, after the given place."""

    after: int
    limit: int = 1000


class GetQueues(msgspec.Struct, array_like=True, tag="get_queues"):
    pass


class GetWorkers(msgspec.Struct, array_like=True, tag="get_workers"):
    pass


# --- answers of queries --------------------------------------------------------------------------


class JobView(msgspec.Struct, array_like=True, tag="job"):
    """A job as people see it. Times are seconds since the epoch."""

    id: bytes
    options: JobOptions
    state: State
    seq: int
    created_at: float
    attempt: int
    failures: int
    crashes: int
    payload_bytes: int
    run_at: float | None = None
    worker: str | None = None
    leased_at: float | None = None
    cancel_requested: bool = False
    history: list[AttemptRecord] = []
    finished_at: float | None = None
    finish_seq: int | None = None
    result: Result | None = None
    pulled: bool = False
    waiting: str | None = None  # why it waits, in words
    actor: str = ""  # its worker's id in Ray, if the leader knows it


class Found(msgspec.Struct, array_like=True, tag="found"):
    items: list[JobView | Refusal]


class Payload(msgspec.Struct, array_like=True, tag="payload"):
    content: str
    payload: bytes | BlobRef


class JobPage(msgspec.Struct, array_like=True, tag="job_page"):
    jobs: list[JobView]
    before: int | None  # cursor for the next page; None at the end


class FeedEntry(msgspec.Struct, array_like=True):
    seq: int
    id: bytes
    state: State
    task: str
    finished_at: float
    batch: str | None = None
    result: Result | None = None
    error: ErrorInfo | None = None


class FeedPage(msgspec.Struct, array_like=True, tag="feed_page"):
    """`next` is the place to read on from; `oldest` the first place still kept, `newest` the last one given.

    Place 0 is before the first job that ever finished."""

    entries: list[FeedEntry]
    next: int
    oldest: int
    newest: int = 0


class QueueView(msgspec.Struct, array_like=True):
    name: str
    pool: str
    paused: bool
    counts: dict[str, int]  # state -> jobs, all six states
    oldest_queued_at: float | None
    finished_per_second: float  # over the last minute, as this leader saw it


class Queues(msgspec.Struct, array_like=True, tag="queues"):
    queues: list[QueueView]
    now: float


class WorkerView(msgspec.Struct, array_like=True):
    name: str
    pid: int
    node: str
    pool: str
    state: str  # starting | idle | busy | leaving | silent
    current: str | None  # what it runs, in words
    held: int  # leases
    seen_seconds_ago: float
    actor: str = ""  # its id in Ray


class PoolView(msgspec.Struct, array_like=True):
    name: str
    wanted: int
    observed: int
    min_workers: int
    max_workers: int
    waiting: str | None = None  # what it waits for, in words


class Workers(msgspec.Struct, array_like=True, tag="workers"):
    workers: list[WorkerView]
    pools: list[PoolView]


class Count(msgspec.Struct, array_like=True):
    """A counter, for metrics."""

    name: str
    labels: dict[str, str]
    value: float


class Spread(msgspec.Struct, array_like=True):
    """A histogram, for metrics: how many fell into each bucket; the last bucket has no bound."""

    name: str
    labels: dict[str, str]
    bounds: list[float]
    counts: list[int]
    sum_seconds: float


class ManagerStatus(msgspec.Struct, array_like=True, tag="manager"):
    """One manager, as it sees itself. Positions are (epoch, n) of the last record applied."""

    name: str
    role: str  # leader | standby | recovering
    pid: int
    node: str
    epoch: int
    applied_n: int
    applied_records: int
    lag_records: int | None  # standby: behind the leader; None if unknown
    commit_age_seconds: float | None  # leader: since the last durable record
    commit_seconds: list[float] = []  # leader: durations of the latest commits, newest last
    counts: dict[str, int] = {}  # state -> jobs
    store_requests: dict[str, int] = {}
    counters: list[Count] = []  # since this leadership began, as `spreads`
    healthy: bool = True
    problem: str | None = None
    spreads: list[Spread] = []
    actor: str = ""  # its id in Ray


Command = Enqueue | Cancel | Retry | PatchQueue | Pull
Query = GetJobs | GetPayload | ListJobs | ReadFeed | GetQueues | GetWorkers
Request = (
    Enqueue
    | Cancel
    | Retry
    | PatchQueue
    | Pull
    | GetJobs
    | GetPayload
    | ListJobs
    | ReadFeed
    | GetQueues
    | GetWorkers
)
Reply = (
    Accepted
    | Changed
    | QueuePatched
    | Pulled
    | Found
    | Payload
    | JobPage
    | FeedPage
    | Queues
    | Workers
    | Refusal
)


class Flight(msgspec.Struct, array_like=True, tag="flight"):
    """What one replica asks in one call. `puts` were made since its last flight."""

    requests: list[Request]
    puts: int = 0


class FlightReply(msgspec.Struct, array_like=True, tag="replies"):
    replies: list[Reply]
