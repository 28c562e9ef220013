"""From a job, a worker or a manager to its actor in Ray's dashboard."""

from __future__ import annotations

from jobsvc import commands as c
from jobsvc.http_views import job_document, status_document, workers_document
from jobsvc.jobs import JobOptions, State
from jobsvc.ray_links import actor_link

RAY = "http://localhost:8265"
NOW = 1_000.0


def running_job(actor: str) -> c.JobView:
    view = c.JobView(b"1" * 16, JobOptions("t"), State.RUNNING, 1, NOW, 1, 0, 0, 0)
    view.worker, view.leased_at, view.actor = "worker-default-1.1", NOW, actor
    return view


def test_a_running_job_leads_to_its_worker() -> None:
    running = job_document(running_job("0a0b"), RAY).running
    assert running is not None
    assert (running.actor_id, running.ray_url) == ("0a0b", f"{RAY}/#/actors/0a0b")


def test_no_link_is_made_up() -> None:
    # given a worker that has not said its id to this leader yet, and a dashboard that nobody knows
    for document in (job_document(running_job(""), RAY), job_document(running_job("0a0b"))):
        assert document.running is not None
        assert document.running.ray_url is None
    assert actor_link("http://host:8265/", "0a0b") == "http://host:8265/#/actors/0a0b"


def test_workers_and_managers_have_links() -> None:
    workers = c.Workers([c.WorkerView("w", 1, "n", "default", "idle", None, 0, 0.1, "0a0b")], [])
    manager = c.ManagerStatus("manager-a", "leader", 1, "n", 3, 10, 100, None, 0.5, actor="0c0d")
    status = status_document("jobsvc", NOW, [manager], workers, 10.0, RAY)
    assert workers_document(workers).workers[0].ray_url is None
    assert status.ray_dashboard_url == RAY
    assert [each.ray_url for each in status.workers or []] == [f"{RAY}/#/actors/0a0b"]
    assert [each.ray_url for each in status.managers] == [f"{RAY}/#/actors/0c0d"]
