"""Figures for Prometheus: one list of samples, two outlets.

`render` makes the text of `GET /metrics`, for people without Ray's scrape set-up: names begin with
`jobsvc_`. `RayMetrics` feeds the same samples to `ray.util.metrics` in each manager: Ray puts `ray_` in
front and `_total` behind, so that nobody adds both up.

Rules: base units; labels from closed or capped sets (beyond 50 queues the rest is `other`); never a job's
id, label or anything else that callers make up. What only a leader knows is there only while one leads.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from . import commands as c
from .gateway import Durations
from .manager_status import lag_records, leader_of, percentile

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUEUES_MAX = 50
OTHER = "other"
ROUTE_LABELS = ("route", "method", "status")


class Sample(NamedTuple):
    """One value of one series. A counter's name ends in `_total`."""

    name: str
    labels: dict[str, str]
    value: float


HELP = {
    "jobsvc_jobs": "Jobs held, by state.",
    "jobsvc_oldest_queued_age_seconds": "How long the oldest queued job has waited.",
    "jobsvc_queue_paused": "1 if the queue is paused.",
    "jobsvc_queue_finished_per_second": "Jobs finished in the last minute, per second.",
    "jobsvc_workers": "Workers, by pool and state.",
    "jobsvc_workers_wanted": "Workers that a pool should have now.",
    "jobsvc_is_leader": "1 for the manager that leads.",
    "jobsvc_leader_epoch": "Epoch of the leadership that the manager knows.",
    "jobsvc_standby_lag_entries": "Records that the standby is behind the leader.",
    "jobsvc_journal_last_commit_timestamp_seconds": "When the leader last made a record durable.",
    "jobsvc_commit_seconds": "Duration of the leader's latest commits, by quantile.",
    "jobsvc_store_requests_total": "Requests to the store, by manager and operation.",
    "jobsvc_jobs_enqueued_total": "Jobs accepted by this leadership.",
    "jobsvc_jobs_finished_total": "Jobs that ended in this leadership, by outcome.",
    "jobsvc_attempts_finished_total": "Attempts that ended in this leadership, by outcome.",
    "jobsvc_leases_expired_total": "Leases taken from lost workers in this leadership.",
    "jobsvc_stale_results_total": "Reports refused because the lease was not the worker's any more.",
    "jobsvc_idempotent_replays_total": "Commands answered again under their idempotency key.",
    "jobsvc_refused_total": "Commands that the leader refused, by reason.",
}
# The leader's counters are `name` or `name:value`; this is the label that the value belongs to.
_COUNTER_LABELS = {"attempts_finished": "outcome", "jobs_finished": "outcome", "refused": "reason"}


class ReplicaFigures:
    """What one replica counts itself."""

    def __init__(self, replica: str, enqueue_commit_seconds: Durations) -> None:
        self.replica = replica
        self.enqueue_commit_seconds = enqueue_commit_seconds
        self.requests: dict[tuple[str, str, str], int] = {}
        self.rejected: dict[str, int] = {}
        self.gauges: dict[str, float] = {}
        self.counters: dict[str, float] = {}

    def observe(self, route: str, method: str, status: int, refused: str | None, seconds: float) -> None:
        """One HTTP exchange has ended."""
        key = (route, method if method in _METHODS else OTHER, str(status))
        self.requests[key] = self.requests.get(key, 0) + 1
        if refused is not None:
            self.rejected[refused] = self.rejected.get(refused, 0) + 1


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def samples(
    statuses: Sequence[c.ManagerStatus], queues: c.Queues | None, workers: c.Workers | None, now: float
) -> Iterator[Sample]:
    """Everything that the managers know."""
    leader = leader_of(list(statuses))
    for status in statuses:
        yield from _manager_samples(status, leader)
    if leader is not None:
        yield from _leader_samples(leader, now)
    if queues is not None:
        yield from _queue_samples(queues)
    elif leader is not None:
        for state, count in leader.counts.items():
            yield Sample("jobsvc_jobs", {"queue": OTHER, "state": state}, count)
    if workers is not None:
        yield from _worker_samples(workers)


def _manager_samples(status: c.ManagerStatus, leader: c.ManagerStatus | None) -> Iterator[Sample]:
    manager = {"manager": status.name}
    yield Sample("jobsvc_is_leader", manager, float(status is leader))
    yield Sample("jobsvc_leader_epoch", manager, status.epoch)
    if status.role == "standby":
        lag = lag_records(status, leader)
        if lag is not None:
            yield Sample("jobsvc_standby_lag_entries", manager, lag)
    for operation, count in status.store_requests.items():
        yield Sample("jobsvc_store_requests_total", {**manager, "operation": operation}, count)


def _leader_samples(leader: c.ManagerStatus, now: float) -> Iterator[Sample]:
    if leader.commit_age_seconds is not None:
        name = "jobsvc_journal_last_commit_timestamp_seconds"
        yield Sample(name, {}, now - leader.commit_age_seconds)
    for share in (0.5, 0.99):
        seconds = percentile(leader.commit_seconds, share)
        if seconds is not None:
            yield Sample("jobsvc_commit_seconds", {"quantile": str(share)}, seconds)
    for full_name, value in leader.counters.items():
        name, _, label = full_name.partition(":")
        labels = {_COUNTER_LABELS.get(name, "kind"): label} if label else {}
        yield Sample(f"jobsvc_{name}_total", labels, value)


def _queue_samples(queues: c.Queues) -> Iterator[Sample]:
    counts: dict[tuple[str, str], float] = {}
    for place, queue in enumerate(sorted(queues.queues, key=lambda each: -sum(each.counts.values()))):
        name = queue.name if place < QUEUES_MAX else OTHER
        for state, count in queue.counts.items():
            counts[name, state] = counts.get((name, state), 0.0) + count
        if name is OTHER:
            continue
        labels = {"queue": name}
        age = 0.0 if queue.oldest_queued_at is None else max(0.0, queues.now - queue.oldest_queued_at)
        yield Sample("jobsvc_oldest_queued_age_seconds", labels, age)
        yield Sample("jobsvc_queue_paused", labels, float(queue.paused))
        yield Sample("jobsvc_queue_finished_per_second", labels, queue.finished_per_second)
    for (name, state), total in counts.items():
        yield Sample("jobsvc_jobs", {"queue": name, "state": state}, total)


def _worker_samples(workers: c.Workers) -> Iterator[Sample]:
    counts: dict[tuple[str, str], int] = {}
    for worker in workers.workers:
        counts[worker.pool, worker.state] = counts.get((worker.pool, worker.state), 0) + 1
    for pool in workers.pools:
        for state in ("starting", "idle", "busy", "leaving", "silent"):
            counts.setdefault((pool.name, state), 0)
        yield Sample("jobsvc_workers_wanted", {"pool": pool.name}, pool.wanted)
    for (pool_name, state), number in counts.items():
        yield Sample("jobsvc_workers", {"pool": pool_name, "state": state}, number)


# --- GET /metrics ---------------------------------------------------------------------------------------


class _Families:
    """What `generate_latest` wants of a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def render(
    statuses: Sequence[c.ManagerStatus],
    queues: c.Queues | None,
    workers: c.Workers | None,
    own: ReplicaFigures,
    now: float,
) -> bytes:
    """The text of `GET /metrics`."""
    families: dict[str, Metric] = {}
    for sample in samples(statuses, queues, workers, now):
        family = families.get(sample.name)
        if family is None:
            family = families[sample.name] = _family(sample)
        family.add_metric(list(sample.labels.values()), sample.value)  # type: ignore[attr-defined]
    registry: Any = _Families([*families.values(), *_own_families(own), _build_info()])
    return prometheus_client.generate_latest(registry)


def _family(sample: Sample) -> Metric:
    text = HELP.get(sample.name, "Counted by the leader.")
    if sample.name.endswith("_total"):
        return CounterMetricFamily(sample.name.removesuffix("_total"), text, labels=list(sample.labels))
    return GaugeMetricFamily(sample.name, text, labels=list(sample.labels))


def _own_families(own: ReplicaFigures) -> list[Metric]:
    """Labelled with the replica: a scrape meets any of them."""
    requests = CounterMetricFamily(
        "jobsvc_http_requests", "HTTP requests answered.", labels=[*ROUTE_LABELS, "replica"]
    )
    for key, count in own.requests.items():
        requests.add_metric([*key, own.replica], count)
    rejected = CounterMetricFamily(
        "jobsvc_http_rejected", "HTTP requests refused, by reason.", labels=["reason", "replica"]
    )
    for reason, count in own.rejected.items():
        rejected.add_metric([reason, own.replica], count)
    found: list[Metric] = [requests, rejected]
    for name, value in own.gauges.items():
        gauge = GaugeMetricFamily(f"jobsvc_{name}", "Held by this replica now.", labels=["replica"])
        gauge.add_metric([own.replica], value)
        found.append(gauge)
    for name, value in own.counters.items():
        counter = CounterMetricFamily(f"jobsvc_{name}", "Counted by this replica.", labels=["replica"])
        counter.add_metric([own.replica], value)
        found.append(counter)
    durations = own.enqueue_commit_seconds
    histogram = HistogramMetricFamily(
        "jobsvc_enqueue_commit_seconds", "From a checked enqueue to its durable record.", labels=["replica"]
    )
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip([*map(str, durations.bounds), "+Inf"], durations.counts, strict=True):
        total += count
        buckets.append((bound, total))
    histogram.add_metric([own.replica], buckets, durations.sum_seconds)
    return [*found, histogram]


def _build_info() -> Metric:
    info = GaugeMetricFamily("jobsvc_build_info", "What runs here.", labels=["version", "python"])
    info.add_metric([version(), platform.python_version()], 1)
    return info


def version() -> str:
    try:
        return metadata.version("jobsvc")
    except metadata.PackageNotFoundError:
        return "unknown"  # run from a folder that is not installed


# --- ray.util.metrics ---------------------------------------------------------------------------------------


class RayMetrics:
    """Feeds the samples to Ray. One in each manager's process; `update` every few seconds."""

    def __init__(self) -> None:
        self._series: dict[str, Any] = {}
        self._counted: dict[tuple[str, tuple[str, ...]], float] = {}

    def update(
        self, status: c.ManagerStatus, queues: c.Queues | None, workers: c.Workers | None, now: float
    ) -> None:
        """This manager's figures; queues and workers only while it leads."""
        for sample in samples([status], queues, workers, now):
            if sample.name.endswith("_total"):
                self._count(sample)
            else:
                self._series_of(sample, "Gauge").set(sample.value, tags=sample.labels)

    def _count(self, sample: Sample) -> None:
        """Ray's counters take increments. A smaller value is a new leadership, which counts from 0."""
        key = (sample.name, tuple(sample.labels.values()))
        before = self._counted.get(key, 0.0)
        grown = sample.value - before if sample.value >= before else sample.value
        self._counted[key] = sample.value
        if grown > 0:
            self._series_of(sample, "Counter").inc(grown, tags=sample.labels)

    def _series_of(self, sample: Sample, kind: str) -> Any:
        series = self._series.get(sample.name)
        if series is None:
            from ray.util import metrics as ray_metrics

            name = sample.name.removesuffix("_total")
            text = HELP.get(sample.name, "Counted by the leader.")
            make: Any = getattr(ray_metrics, kind)
            series = self._series[sample.name] = make(name, text, tuple(sample.labels))
        return series
