"""Figures for Prometheus: one list of samples, two outlets.

`render` makes the text of `GET /metrics`, for people without Ray's scrape set-up: names begin with
`jobsvc_`. `RayMetrics` feeds the same samples to `ray.util.metrics` in each manager: Ray puts `ray_` in
front and `_total` behind, so that nobody adds both up.

Rules: base units; labels from closed or capped sets (beyond 50 queues the rest is `other`); never a job's
id, label or anything else that callers make up. What only a leader knows is there only while one leads.

Ray's histograms take one observation at a time, which is not for thousands of jobs a second. So it is given
their buckets as gauges under the names that a histogram's parts have: queries do not see a difference.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from . import commands as c
from .manager_status import lag_records, leader_of, percentile
from .tallies import OTHER, QUEUES_MAX, Durations

_log = logging.getLogger("jobsvc.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FEED_SECONDS = 5.0  # Ray forgets a gauge that was not set again for twice its own interval of 10 s


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
    "jobsvc_workers_held_back_since_timestamp_seconds": "Since when a pool has workers that can run nothing.",
    "jobsvc_is_leader": "1 for the manager that leads.",
    "jobsvc_leader_epoch": "Epoch of the leadership that the manager knows.",
    "jobsvc_takeover_seconds": "How long no leader was heard before this one led.",
    "jobsvc_applied_records": "Records that the manager has applied since the log began.",
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
    "jobsvc_part_failures_total": "Failures of parts that fail alone, by part; the leader goes on leading.",
    "jobsvc_orphans_deleted_total": "Objects deleted in this leadership that no job needed.",
    "jobsvc_queue_wait_seconds": "From a job's acceptance, or its time, to its first lease.",
    "jobsvc_attempt_duration_seconds": "How long attempts ran.",
    "jobsvc_http_requests_total": "HTTP requests answered by this replica.",
    "jobsvc_http_express_total": "Enqueues of these that came the short way, past Serve's own bookkeeping.",
    "jobsvc_http_rejected_total": "HTTP requests refused by this replica, by reason.",
    "jobsvc_http_waiting": "Requests that wait for a job in this replica.",
    "jobsvc_event_streams": "Event streams open in this replica.",
    "jobsvc_flights_total": "Calls from this replica to the leader.",
    "jobsvc_flight_requests_total": "Requests that travelled in them.",
    "jobsvc_payload_packs_total": "Objects with large payloads that this replica wrote.",
    "jobsvc_enqueue_commit_seconds": "From a checked enqueue to its durable record.",
    "jobsvc_build_info": "What runs here.",
}


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
    yield Sample("jobsvc_applied_records", manager, status.applied_records)
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
    if leader.takeover_seconds is not None:
        yield Sample("jobsvc_takeover_seconds", {}, leader.takeover_seconds)
    for share in (0.5, 0.99):
        seconds = percentile(leader.commit_seconds, share)
        if seconds is not None:
            yield Sample("jobsvc_commit_seconds", {"quantile": str(share)}, seconds)
    for count in leader.counters:
        yield Sample(f"jobsvc_{count.name}_total", count.labels, count.value)


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
    for state, count in queues.others.items():
        counts[OTHER, state] = counts.get((OTHER, state), 0.0) + count
    for (name, state), total in counts.items():
        yield Sample("jobsvc_jobs", {"queue": name, "state": state}, total)


def _worker_samples(workers: c.Workers) -> Iterator[Sample]:
    counts: dict[tuple[str, str], int] = {}
    for worker in workers.workers:
        counts[worker.pool, worker.state] = counts.get((worker.pool, worker.state), 0) + 1
    for pool in workers.pools:
        for state in ("starting", "idle", "busy", "held_back", "leaving", "silent"):
            counts.setdefault((pool.name, state), 0)
        yield Sample("jobsvc_workers_wanted", {"pool": pool.name}, pool.wanted)
        since = [each.held_back_since for each in workers.workers if each.pool == pool.name]
        held_back_since = min((at for at in since if at is not None), default=None)
        if held_back_since is not None:
            name = "jobsvc_workers_held_back_since_timestamp_seconds"
            yield Sample(name, {"pool": pool.name}, held_back_since)
    for (pool_name, state), number in counts.items():
        yield Sample("jobsvc_workers", {"pool": pool_name, "state": state}, number)


def spreads(statuses: Sequence[c.ManagerStatus]) -> list[c.Spread]:
    """The leader's histograms."""
    leader = leader_of(list(statuses))
    return [] if leader is None else leader.spreads


def own_samples(own: ReplicaFigures) -> Iterator[Sample]:
    """What a replica counts, labelled with the replica: a scrape of `/metrics` meets any of them."""
    replica = {"replica": own.replica}
    for (route, method, status), count in own.requests.items():
        labels = {"route": route, "method": method, "status": status, **replica}
        yield Sample("jobsvc_http_requests_total", labels, count)
    for reason, count in own.rejected.items():
        yield Sample("jobsvc_http_rejected_total", {"reason": reason, **replica}, count)
    for name, value in own.gauges.items():
        yield Sample(f"jobsvc_{name}", replica, value)
    for name, value in own.counters.items():
        yield Sample(f"jobsvc_{name}_total", replica, value)
    versions = {"version": version(), "ray_version": version("ray"), "python": platform.python_version()}
    yield Sample("jobsvc_build_info", versions, 1)


def own_spreads(own: ReplicaFigures) -> list[c.Spread]:
    return [own.enqueue_commit_seconds.spread("enqueue_commit_seconds", {"replica": own.replica})]


def version(package: str = "jobsvc") -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"  # run from a folder that is not installed


def buckets(spread: c.Spread) -> Iterator[tuple[str, int]]:
    """The bounds, as Prometheus writes them, each with how many are below: the last counts all."""
    total = 0
    for bound, count in zip([*map(str, spread.bounds), "+Inf"], spread.counts, strict=True):
        total += count
        yield bound, total


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
    families: dict[str, Any] = {}
    for sample in (*samples(statuses, queues, workers, now), *own_samples(own)):
        family = families.get(sample.name)
        if family is None:
            family = families[sample.name] = _family(sample)
        family.add_metric(list(sample.labels.values()), sample.value)
    for spread in (*spreads(statuses), *own_spreads(own)):
        name = f"jobsvc_{spread.name}"
        if name not in families:
            families[name] = HistogramMetricFamily(name, _help(name), labels=list(spread.labels))
        families[name].add_metric(list(spread.labels.values()), [*buckets(spread)], spread.sum_seconds)
    registry: Any = _Families([*families.values()])
    return prometheus_client.generate_latest(registry)


def _help(name: str) -> str:
    return HELP.get(name, "Counted by the leader.")


def _family(sample: Sample) -> Any:
    text = _help(sample.name)
    if sample.name.endswith("_total"):
        return CounterMetricFamily(sample.name.removesuffix("_total"), text, labels=list(sample.labels))
    return GaugeMetricFamily(sample.name, text, labels=list(sample.labels))


# --- ray.util.metrics ---------------------------------------------------------------------------------------


class RayMetrics:
    """Feeds samples to Ray. One in each manager and replica, called every few seconds."""

    def __init__(self) -> None:
        self._series: dict[str, Any] = {}
        self._counted: dict[tuple[str, tuple[str, ...]], float] = {}

    def update(
        self, status: c.ManagerStatus, queues: c.Queues | None, workers: c.Workers | None, now: float
    ) -> None:
        """A manager's figures; queues and workers only while it leads."""
        self._feed(samples([status], queues, workers, now), spreads([status]))

    def update_replica(self, own: ReplicaFigures) -> None:
        self._feed(own_samples(own), own_spreads(own))

    def _feed(self, found: Iterable[Sample], histograms: Iterable[c.Spread]) -> None:
        for sample in found:
            if sample.name.endswith("_total"):
                self._count(sample)
            else:
                self._gauge(sample)
        for spread in histograms:
            name = f"jobsvc_{spread.name}"
            number = 0
            for bound, number in buckets(spread):
                self._gauge(Sample(f"{name}_bucket", {**spread.labels, "le": bound}, number))
            self._gauge(Sample(f"{name}_count", spread.labels, number))
            self._gauge(Sample(f"{name}_sum", spread.labels, spread.sum_seconds))

    def _gauge(self, sample: Sample) -> None:
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
            make: Any = getattr(ray_metrics, kind)
            series = self._series[sample.name] = make(name, _help(sample.name), tuple(sample.labels))
        return series


async def feed_ray(update: Callable[[RayMetrics], None]) -> None:
    """For ever. Whatever goes wrong with figures, they are only figures: it is logged, and tried again."""
    ray_metrics = RayMetrics()
    while True:
        await asyncio.sleep(FEED_SECONDS)
        try:
            update(ray_metrics)
        except Exception:
            _log.exception("metrics could not be handed to Ray")
