"""Metrics: the same samples for Prometheus and for Ray, with bounded labels."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest

from jobsvc import commands as c
from jobsvc import metrics
from jobsvc.gateway import COMMIT_BUCKETS_SECONDS
from jobsvc.metrics import RayMetrics, ReplicaFigures, samples
from jobsvc.tallies import QUEUES_MAX, Durations

NOW = 1_000_000.0


def leader(**fields: Any) -> c.ManagerStatus:
    status = c.ManagerStatus("manager-a", "leader", 1, "node", 3, 10, 100, None, 0.5)
    status.counts = {"queued": 2}
    for name, value in fields.items():
        setattr(status, name, value)
    return status


def enqueued(value: float) -> c.Count:
    return c.Count("jobs_enqueued", {"queue": "default", "task": "hash"}, value)


def queue(name: str, queued: int = 1) -> c.QueueView:
    return c.QueueView(name, "default", False, {"queued": queued, "failed": 0}, NOW - 7.0, 2.5)


def values(found: Any) -> dict[tuple[Any, ...], float]:
    return {(each.name, *each.labels.values()): each.value for each in found}


def test_two_that_think_they_lead_count_as_one() -> None:
    slept = c.ManagerStatus("manager-b", "leader", 1, "node", 2, 5, 50, None, 60.0)
    found = values(samples([slept, leader(takeover_seconds=1.5)], None, None, NOW))
    assert found["jobsvc_takeover_seconds",] == 1.5
    assert (found["jobsvc_is_leader", "manager-a"], found["jobsvc_is_leader", "manager-b"]) == (1, 0)
    assert found["jobsvc_journal_last_commit_timestamp_seconds",] == NOW - 0.5


def test_a_standby_tells_how_far_behind_it_is() -> None:
    standby = c.ManagerStatus("manager-b", "standby", 1, "node", 3, 10, 90, None, None)
    found = values(samples([leader(), standby], None, None, NOW))
    assert found["jobsvc_standby_lag_entries", "manager-b"] == 10
    assert ("jobsvc_standby_lag_entries", "manager-b") not in values(samples([standby], None, None, NOW))


def test_queues_beyond_the_bound_are_other_and_no_job_is_left_out() -> None:
    queues = c.Queues([queue(f"q{n}", queued=n) for n in range(QUEUES_MAX + 20)], NOW)
    found = values(samples([leader()], queues, None, NOW))
    names = {key[1] for key in found if key[0] == "jobsvc_jobs"}
    assert len(names) == QUEUES_MAX + 1 and "q69" in names and "q0" not in names
    queued = [value for key, value in found.items() if key[0] == "jobsvc_jobs" and key[2] == "queued"]
    assert sum(queued) == sum(range(QUEUES_MAX + 20))
    assert found["jobsvc_oldest_queued_age_seconds", "q69"] == 7.0


def test_workers_are_counted_by_state_zeros_too() -> None:
    workers = c.Workers(
        [c.WorkerView("w1", 1, "n", "default", "busy", "t", 1, 0.1)],
        [c.PoolView("default", 3, 1, 0, 8), c.PoolView("gpu", 0, 0, 0, 1)],
    )
    found = values(samples([leader()], None, workers, NOW))
    assert found["jobsvc_workers", "default", "busy"] == 1
    assert found["jobsvc_workers", "gpu", "idle"] == 0
    assert found["jobsvc_workers_wanted", "default"] == 3


def test_counters_of_the_leader_become_labels() -> None:
    counters = [enqueued(5.0), c.Count("refused", {"reason": "key_reused"}, 1.0)]
    found = values(samples([leader(counters=counters)], None, None, NOW))
    assert found["jobsvc_jobs_enqueued_total", "default", "hash"] == 5
    assert found["jobsvc_refused_total", "key_reused"] == 1


def test_the_histogram_of_commits_adds_up() -> None:
    durations = Durations(COMMIT_BUCKETS_SECONDS)
    for seconds in (0.001, 0.005, 0.02, 7.0):
        durations.observe(seconds)
    figures = ReplicaFigures("17", durations)
    figures.observe("/v1/jobs", "POST", 202, None, 0.1)
    figures.observe("/v1/jobs", "BREW", 405, "method_not_allowed", 0.1)
    text = metrics.render([leader()], None, None, figures, NOW).decode()
    for line in (
        'jobsvc_enqueue_commit_seconds_bucket{le="0.005",replica="17"} 2.0',
        'jobsvc_enqueue_commit_seconds_bucket{le="0.025",replica="17"} 3.0',
        'jobsvc_enqueue_commit_seconds_bucket{le="+Inf",replica="17"} 4.0',
        'jobsvc_enqueue_commit_seconds_count{replica="17"} 4.0',
        'jobsvc_http_requests_total{method="other",replica="17",route="/v1/jobs",status="405"} 1.0',
        'jobsvc_http_rejected_total{reason="method_not_allowed",replica="17"} 1.0',
    ):
        assert line in text.splitlines(), line


class FakeSeries:
    """What `ray.util.metrics` has, and what was told to it."""

    made: dict[str, FakeSeries] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert description and name not in self.made
        assert not name.startswith("ray_") and not name.endswith("_total"), "Ray adds both"
        self.tag_keys = tag_keys
        self.values: dict[tuple[str, ...], float] = {}
        self.made[name] = self

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.tag_keys
        self.values[tuple(tags.values())] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0, "Ray refuses an increment of 0"
        self.set(self.values.get(tuple(tags.values()), 0.0) + value, tags)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeSeries]:
    FakeSeries.made = {}
    fake = ModuleType("ray.util.metrics")
    fake.Gauge = fake.Counter = FakeSeries  # type: ignore[attr-defined]
    util = ModuleType("ray.util")
    util.metrics = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.util", util)
    monkeypatch.setitem(sys.modules, "ray.util.metrics", fake)
    return FakeSeries.made


def test_ray_gets_increments_and_a_new_leadership_counts_on(fake_ray: dict[str, FakeSeries]) -> None:
    ray_metrics = RayMetrics()
    # given a leadership that counts up, twice told the same
    for value in (5.0, 5.0, 8.0):
        ray_metrics.update(leader(counters=[enqueued(value)]), None, None, NOW)
    assert fake_ray["jobsvc_jobs_enqueued"].values == {("default", "hash"): 8.0}
    # when the next leadership of this process begins at 0
    ray_metrics.update(leader(counters=[enqueued(2.0)]), None, None, NOW)
    assert fake_ray["jobsvc_jobs_enqueued"].values == {("default", "hash"): 10.0}
    assert fake_ray["jobsvc_is_leader"].values == {("manager-a",): 1.0}
    assert fake_ray["jobsvc_leader_epoch"].values == {("manager-a",): 3.0}


def test_ray_gets_the_parts_of_a_histogram_as_gauges(fake_ray: dict[str, FakeSeries]) -> None:
    # given three waits, one of them beyond the last bound
    waits = Durations((0.1, 1.0))
    for seconds in (0.05, 0.5, 7.0):
        waits.observe(seconds)
    # when a manager feeds them
    RayMetrics().update(leader(spreads=[waits.spread("queue_wait_seconds", {"queue": "q"})]), None, None, NOW)
    # then they are cumulative, as Prometheus wants them
    name = "jobsvc_queue_wait_seconds"
    assert fake_ray[f"{name}_bucket"].values == {("q", "0.1"): 1, ("q", "1.0"): 2, ("q", "+Inf"): 3}
    assert fake_ray[f"{name}_count"].values == {("q",): 3}
    assert fake_ray[f"{name}_sum"].values == {("q",): 7.55}


def test_ray_gets_what_a_replica_counts(fake_ray: dict[str, FakeSeries]) -> None:
    figures = ReplicaFigures("17", Durations((1.0,)))
    figures.observe("/v1/jobs", "POST", 413, "too_large", 0.1)
    figures.gauges = {"event_streams": 2}
    RayMetrics().update_replica(figures)
    assert fake_ray["jobsvc_http_rejected"].values == {("too_large", "17"): 1}
    assert fake_ray["jobsvc_event_streams"].values == {("17",): 2}
    assert fake_ray["jobsvc_enqueue_commit_seconds_count"].values == {("17",): 0}


def test_every_metric_says_what_it_is() -> None:
    figures = ReplicaFigures("17", Durations((1.0,)))
    figures.observe("/v1/jobs", "POST", 413, "too_large", 0.1)
    found = [*samples([leader()], c.Queues([queue("q")], NOW), None, NOW), *metrics.own_samples(figures)]
    assert {each.name for each in found} <= set(metrics.HELP)


def test_figures_that_cannot_be_told_are_tried_again(
    fake_ray: dict[str, FakeSeries], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a first round that goes wrong
    monkeypatch.setattr(metrics, "FEED_SECONDS", 0.0)
    rounds: list[RayMetrics] = []

    def update(ray_metrics: RayMetrics) -> None:
        rounds.append(ray_metrics)
        if len(rounds) == 1:
            raise ValueError("a label that Ray does not like")
        raise asyncio.CancelledError  # the process ends

    # then there is a second one, with the series of the first, and the log says why
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(metrics.feed_ray(update))
    assert rounds[0] is rounds[1]
    assert "a label that Ray does not like" in caplog.text


def test_queues_that_are_not_listed_are_other() -> None:
    queues = c.Queues([queue("q", queued=2)], NOW, 7, {"queued": 5, "running": 1})
    found = values(samples([leader()], queues, None, NOW))
    assert (found["jobsvc_jobs", "q", "queued"], found["jobsvc_jobs", "other", "queued"]) == (2, 5)
