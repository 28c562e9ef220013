"""Ray's dashboard tells a true story of a service under load, and the two lead to each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobsvc.client_jobs import Job

from .conftest import RunningService, wait_until
from .tasks_under_test import double, nap

CHROMIUM = "/usr/bin/chromium"
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
COOKIE = "ray-authentication-token"
PICTURE = "ray-dashboard.png"
PAGE_MS = 60_000
DOCS_PICTURES = Path(__file__).parent.parent.parent / "docs" / "pictures"


@pytest.fixture(scope="module")
def ray_token(running: RunningService) -> str:
    return Path(running.info.ray_token_file or "").read_text()


@pytest.fixture(scope="module")
def dashboard(running: RunningService, ray_token: str) -> Iterator[httpx.Client]:
    """The dashboard's own HTTP API, with Ray's token."""
    headers = {"Authorization": f"Bearer {ray_token}"}
    with httpx.Client(base_url=running.info.dashboard_url or "", headers=headers, timeout=20) as client:
        yield client


@pytest.fixture
def naps(running: RunningService) -> Iterator[list[Job]]:
    """Both workers are busy, and more waits."""
    jobs = [running.client.enqueue(nap, 1, seconds=120) for _ in range(2)]
    running.client.map(double, range(100), priority=-1)
    for job in jobs:
        wait_until(lambda job=job: job.state == "running", "both workers to be busy")
    yield jobs
    for job in jobs:
        job.cancel()
    wait_until(lambda: running.client.status()["counts"]["running"] == 0, "the naps to end")


def actors(dashboard: httpx.Client) -> dict[str, Any]:
    """id -> actor, as the Actors tab gets them."""
    answer = dashboard.get("/logical/actors")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()["data"]["actors"]
    return found


def title(actor: dict[str, Any]) -> str:
    """The title of its process: what the tables of actors and of nodes show of it."""
    command: list[str] = (actor.get("processStats") or {}).get("cmdline") or [""]
    return command[0]


def test_nothing_is_shown_without_the_token(running: RunningService) -> None:
    answer = httpx.get(f"{running.info.dashboard_url}/logical/actors", timeout=20)
    assert answer.status_code in (401, 403)


def test_actors_have_telling_names(running: RunningService, dashboard: httpx.Client) -> None:
    # given who leads, as the service tells it
    pair = running.whole_pair()
    roles = {manager["actor_id"]: role for role, manager in pair.items()}

    # then Ray knows managers and workers under the same names, for ever and at a glance
    def shown() -> dict[str, tuple[str, str, str]]:
        return {
            key: (actor["actorClass"], actor["name"], actor["reprName"])
            for key, actor in actors(dashboard).items()
            if actor["state"] == "ALIVE" and not actor["name"].startswith("SERVE_")
        }

    wanted = {
        **{each["actor_id"]: ("ManagerActor", each["name"], each["name"]) for each in pair.values()},
        **{
            each["actor_id"]: ("WorkerActor", each["name"], each["name"]) for each in running.client.workers()
        },
    }
    assert len(wanted) == 4
    wait_until(lambda: shown() == wanted, "the dashboard to show these actors")
    # and the title of a manager's process says whether it leads
    for actor_id, role in roles.items():
        wait_until(
            lambda actor_id=actor_id, role=role: title(actors(dashboard)[actor_id]).endswith(role),
            f"{actor_id} to be shown as {role}",
        )


def test_a_job_leads_to_its_worker_and_the_worker_to_the_job(
    running: RunningService, dashboard: httpx.Client, naps: list[Job]
) -> None:
    for job in naps:
        # given a running job, when its link is followed
        said = httpx.get(f"{running.url}/v1/jobs/{job.id}", timeout=10).json()["running"]
        assert said["ray_url"] == f"{running.info.dashboard_url}/#/actors/{said['actor_id']}"
        answer = dashboard.get(f"/logical/actors/{said['actor_id']}")
        # then the dashboard has that actor, by the name that the job gave
        assert answer.status_code == 200
        detail = answer.json()["data"]["detail"]
        assert (detail["name"], detail["state"]) == (said["worker"], "ALIVE")
        # and its log says where the service's own page is
        log = dashboard.get("/api/v0/logs/file", params={"actor_id": said["actor_id"], "suffix": "err"})
        assert f"{running.url}/#/workers" in log.text
        # and shows the job that it runs
        wait_until(
            lambda actor=said["actor_id"], job=job: job.id in title(actors(dashboard)[actor]),
            "the dashboard to show the job",
        )
    status = running.client.status()
    assert status["ray_dashboard_url"] == running.info.dashboard_url
    assert all(worker["ray_url"] for worker in status["workers"])


def test_serve_and_jobs_say_what_is_there(running: RunningService, dashboard: httpx.Client) -> None:
    # given one application, whose replicas answer
    applications = dashboard.get("/api/serve/applications/").json()["applications"]
    assert list(applications) == [running.settings.service]
    application = applications[running.settings.service]
    assert (application["status"], application["route_prefix"]) == ("RUNNING", "/")
    (deployment,) = application["deployments"].values()
    assert deployment["status"] == "HEALTHY"
    assert [replica["state"] for replica in deployment["replicas"]] == ["RUNNING"] * running.settings.replicas
    # and the Jobs tab has one entry, however many jobs the service has: what put it into Ray, and its page
    (driver,) = dashboard.get("/api/jobs/").json()
    assert driver["status"] == "SUCCEEDED"
    assert driver["metadata"]["page"] == f"{running.url}/"
    assert {actor["jobId"] for actor in actors(dashboard).values()} == {driver["job_id"]}


def test_metrics_tab_says_that_there_is_no_grafana(dashboard: httpx.Client) -> None:
    """Not an error of ours, and not an empty chart: it says how to set it up."""
    answer = dashboard.get("/api/grafana_health")
    assert answer.status_code == 500
    assert "Grafana healthcheck failed" in answer.json()["msg"]


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is not installed")
def test_a_picture_of_the_actors(
    running: RunningService,
    dashboard: httpx.Client,
    ray_token: str,
    naps: list[Job],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from playwright.sync_api import sync_playwright

    wanted = [*running.managers().values(), *running.client.workers()]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        context = browser.new_context(viewport={"width": 1800, "height": 840})
        context.add_cookies([{"name": COOKIE, "value": ray_token, "url": running.info.dashboard_url or ""}])
        page = context.new_page()
        # when a person opens the Actors tab
        page.goto(f"{running.info.dashboard_url}/#/actors")
        # then every manager and worker is in it by name
        for each in wanted:
            page.get_by_text(each["name"], exact=True).first.wait_for(timeout=PAGE_MS)
        page.get_by_label("Reverse").or_(
            page.locator("input[type=checkbox]")
        ).first.check()  # the oldest first
        page.locator("tbody tr").first.get_by_text("manager-").first.wait_for(timeout=PAGE_MS)
        picture = tmp_path_factory.getbasetemp() / PICTURE
        page.screenshot(path=picture)
        # and the list of processes says which job each worker runs
        page.goto(f"{running.info.dashboard_url}/#/cluster")
        for job in naps:
            page.get_by_text(job.id).first.wait_for(timeout=PAGE_MS)
        page.get_by_text(naps[0].id).first.scroll_into_view_if_needed()
        page.screenshot(path=picture.with_name("ray-dashboard-cluster.png"))
        # and the link of a job opens the page of its worker
        said = httpx.get(f"{running.url}/v1/jobs/{naps[0].id}", timeout=10).json()["running"]
        page.goto(said["ray_url"])
        page.get_by_text(said["worker"]).first.wait_for(timeout=PAGE_MS)
        page.get_by_text(said["actor_id"]).first.wait_for(timeout=PAGE_MS)
        page.get_by_text("#/workers").first.wait_for(timeout=PAGE_MS)  # its log leads back
        page.screenshot(path=picture.with_name("ray-dashboard-actor.png"))
        browser.close()
    if os.environ.get("JOBSVC_PICTURES"):  # only where asked for: a test must not change what it tests
        DOCS_PICTURES.mkdir(parents=True, exist_ok=True)
        for path in (picture, picture.with_name("ray-dashboard-cluster.png")):
            shutil.copy(path, DOCS_PICTURES / path.name)
