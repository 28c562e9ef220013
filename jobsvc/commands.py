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

from .clock_view import ClockView
from .errors import Refusal
from .jobs import AttemptRecord, BlobRef, ErrorInfo, JobOptions, NewJob, Result, State

FEED_AHEAD = "ahead"  # the place is beyond the end
FEED_OTHER_STORE = "other_store"
AUTOMATIC_KEY_PREFIX = "~"  # keys that a replica made; kept for minutes, not for a day
PASSING_KEY_PREFIX = "once-"  # keys that a caller made for its own retries alone: kept as those


# --- commands ------------------------------------------------------------------------------------


class Enqueue(msgspec.Struct, array_like=True, tag="enqueue"):
    """All of these jobs, or none. A job's `run_at` is wall-clock time until the leader dates it."""

    options: list[JobOptions]
    jobs: list[NewJob]
    key: str | None = None
    fingerprint: bytes = b""
    delays: list[tuple[int, float]] = []  # place in `jobs`, and seconds from when the leader accepts it


class Cancel(msgspec.Struct, array_like=True, tag="cancel"):
    ids: list[bytes]
    key: str | None = None
    fingerprint: bytes = b""


class Retry(msgspec.Struct, array_like=True, tag="retry"):
    """Put failed or cancelled jobs back, with their attempts unspent."""

    ids: list[bytes]
    key: str | None = None
    fingerprint: bytes = b""


class Selection(msgspec.Struct, array_like=True, frozen=True):
    """Which jobs: those that fit all that is set. `failure` is the fingerprint of a group of failures."""

    state: State | None = None
    queue: str | None = None
    task: str | None = None
    batch: str | None = None
    failure: str | None = None


class ChangeMatching(msgspec.Struct, array_like=True, tag="change_matching"):
    """Cancel or retry up to `limit` jobs of a selection below the cursor, newest first.

    A slice of a larger work: whoever sends it goes on with the cursor of the answer until there is none."""

    action: str  # cancel | retry
    where: Selection
    before: int | None = None
    limit: int = 1_000
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


class Matched(msgspec.Struct, array_like=True, tag="matched"):
    """Of a ChangeMatching: the jobs that were changed. Of a CountMatching: those that would be.

    `before` is the cursor of the next slice, None at the end; `top` is above every job there is now."""

    count: int
    before: int | None
    top: int
    ids: list[bytes] = []  # the first few


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
    """`place`: say also how many jobs are ahead of those that wait."""

    ids: list[bytes]
    place: bool = False


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
    failure: str | None = None

    @property
    def where(self) -> Selection:
        return Selection(self.state, self.queue, self.task, self.batch, self.failure)


class CountMatching(msgspec.Struct, array_like=True, tag="count_matching"):
    """How many jobs a ChangeMatching would change: one slice of the count."""

    action: str
    where: Selection
    before: int | None = None


class GetFailures(msgspec.Struct, array_like=True, tag="get_failures"):
    """The largest groups of failed jobs."""

    limit: int = 100


class GetHistory(msgspec.Struct, array_like=True, tag="get_history"):
    """How the service went, over at least so many seconds, as the leader's process saw it."""

    seconds: float


class ReadFeed(msgspec.Struct, array_like=True, tag="read_feed"):
    """Finished jobs in order of completion, after the given place; of which store, if the reader knows."""

    after: int
    limit: int = 1000
    store: str = ""


class GetQueues(msgspec.Struct, array_like=True, tag="get_queues"):
    """Those with the most jobs, or the one that is named."""

    limit: int = 1_000
    queue: str | None = None


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
    top: int = 0  # a cursor above every job that there is now


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

    Place 0 is before the first job that ever finished. Who waited for the page and gets a short one finds the
    jobs themselves in `jobs`, and need not ask for them. `holes`: first and last places of retired jobs that
    the page passes. `reset`: why the place is none of this feed, whose beginning is told instead."""

    entries: list[FeedEntry]
    next: int
    oldest: int
    newest: int = 0
    jobs: list[JobView] = []
    holes: list[tuple[int, int]] = []
    reset: str | None = None  # FEED_AHEAD | FEED_OTHER_STORE
    store: str = ""


class QueueView(msgspec.Struct, array_like=True):
    name: str
    pool: str
    paused: bool
    counts: dict[str, int]  # state -> jobs, all six states
    oldest_queued_at: float | None
    finished_per_second: float  # over the last minute, as this leader saw it


class Queues(msgspec.Struct, array_like=True, tag="queues"):
    """`others` are the jobs of the `unlisted` queues, by state."""

    queues: list[QueueView]
    now: float
    unlisted: int = 0
    others: dict[str, int] = {}


class WorkerView(msgspec.Struct, array_like=True):
    name: str
    pid: int
    node: str
    pool: str
    state: str  # starting | idle | busy | held_back | leaving | silent
    current: str | None  # what it runs, in words
    held: int  # leases
    seen_seconds_ago: float
    actor: str = ""  # its id in Ray
    held_back: str | None = None  # why it can run nothing now
    held_back_since: float | None = None


class PoolView(msgspec.Struct, array_like=True):
    name: str
    wanted: int
    observed: int
    min_workers: int
    max_workers: int
    waiting: str | None = None  # what it waits for, in words
    held_back: int = 0  # of its workers


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


class FailureGroup(msgspec.Struct, array_like=True):
    """Failed jobs of one kind. Texts are those of the latest one."""

    fingerprint: str
    task: str
    type: str
    message: str
    place: str
    count: int
    first_at: float
    last_at: float
    latest: bytes


class Failures(msgspec.Struct, array_like=True, tag="failures"):
    """The largest groups first; `jobs` is the count of all failed jobs, `groups_total` that of all groups."""

    groups: list[FailureGroup]
    groups_total: int
    jobs: int
    now: float


class HistoryPoint(msgspec.Struct, array_like=True, gc=False):
    """The service at one moment. `enqueued`, `finished` and `failed` are running totals."""

    at: float
    scheduled: int
    queued: int
    running: int
    enqueued: int
    finished: int
    failed: int
    oldest_queued_age: float
    workers: int
    busy: int


class Takeover(msgspec.Struct, array_like=True):
    epoch: int
    at: float


class History(msgspec.Struct, array_like=True, tag="history"):
    """Oldest first. `failed` may fall where another manager began to count."""

    step_seconds: float
    points: list[HistoryPoint]
    takeovers: list[Takeover]
    now: float = 0.0


class Pulse(msgspec.Struct, array_like=True):
    """What one look should tell, small enough to be told every second."""

    log_time: float
    oldest_queued_at: float | None
    oldest_queue: str | None
    paused: list[str]  # queues, a few of them
    paused_queued: int  # jobs that wait in paused queues
    failure_groups: int
    enqueued_per_second: float
    finished_per_second: float
    failed_per_second: float
    workers: dict[str, int] = {}  # state -> workers; the leader knows
    pools: list[PoolView] = []
    mark: int = 0  # another one after jobs or queues have changed
    unserved: dict[str, int] = {}  # jobs by the task that they wait for in vain; the leader knows


class PartProblem(msgspec.Struct, array_like=True):
    """A part beside the commit path that fails; the rest goes on."""

    part: str
    text: str
    since: float  # wall clock
    times: int
    next_try_seconds: float


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
    pulse: Pulse | None = None
    takeover_seconds: float | None = None  # leader: how long none was heard before it led
    problems: list[PartProblem] = []  # of parts that fail alone
    clock: ClockView | None = None


Command = Enqueue | Cancel | Retry | ChangeMatching | PatchQueue | Pull
Query = (
    GetJobs
    | GetPayload
    | ListJobs
    | CountMatching
    | GetFailures
    | GetHistory
    | ReadFeed
    | GetQueues
    | GetWorkers
)
Request = Command | Query
Reply = (
    Accepted
    | Changed
    | Matched
    | QueuePatched
    | Pulled
    | Found
    | Payload
    | JobPage
    | Failures
    | History
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
