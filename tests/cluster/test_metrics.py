"""Metrics, the Grafana dashboard and the alerts, with a real Prometheus that scrapes a real service."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from jobsvc.errors import Refused
from jobsvc.grafana_dashboard import FILE_NAME, UID, dashboard, queries
from jobsvc.ports import free_ports

from .conftest import RunningService, wait_until
from .tasks_under_test import double, fail, nap

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "docs" / "monitoring" / "jobsvc.rules.yml"
SCRAPE_SECONDS = 2
RATE_SECONDS = 40  # Ray exports every 10 s, and a rate needs a few of these
SERIES_SECONDS = 150.0
JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-")

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


@dataclass
class Prometheus:
    """A server of this test's own, and what it knows."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def values(self, query: str) -> list[float]:
        """The values of an instant query, those that are numbers."""
        found = [float(series["value"][1]) for series in self.get("query", query=query)["result"]]
        return [value for value in found if math.isfinite(value)]

    def value(self, query: str) -> float | None:
        return next(iter(self.values(query)), None)


def session_dir(running: RunningService) -> Path:
    return (Path(running.info.temp_dir or "") / "session_latest").resolve()


def configuration(running: RunningService) -> dict[str, Any]:
    """Ray's own scrape set-up, as its documentation has it; and `/metrics`, as ours has it."""
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": "ray",
                "file_sd_configs": [
                    {"files": [str(session_dir(running) / "prom_metrics_service_discovery.json")]}
                ],
            },
            {
                "job_name": "jobsvc",
                "static_configs": [{"targets": [running.url.removeprefix("http://")]}],
            },
        ],
    }


@pytest.fixture(scope="module")
def prometheus(running: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(configuration(running)))
    (port,) = free_ports(1)
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        started = Prometheus(f"http://127.0.0.1:{port}")

        def ready() -> bool:
            assert server.poll() is None, (folder / "log").read_text()
            try:
                return httpx.get(f"{started.url}/-/ready", timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(ready, "Prometheus to be ready")
        yield started
    finally:
        server.terminate()
        server.wait(20)


class Load:
    """Jobs of every kind, and requests that are refused, again and again."""

    def __init__(self, running: RunningService) -> None:
        self._running = running
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go_on)
        self.jobs = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _go_on(self) -> None:
        client = self._running.client
        while not self._end.is_set():
            client.map(double, range(50), queue="numbers")
            client.enqueue(nap, 1, seconds=0.05)
            client.enqueue(fail, "as it should")
            self.jobs += 52
            for number in (1, 2):
                try:
                    client.enqueue(double, number, key="the same")
                except Refused:
                    pass  # that is what it is for
            httpx.get(f"{self._running.url}/v1/jobs/not-an-id", timeout=10)
            self._end.wait(1.0)


def without_variables(query: str) -> str:
    for name, value in (("__rate_interval", f"{RATE_SECONDS}s"), ("SessionName", ".*"), ("queue", ".*")):
        query = query.replace(f"${name}", value)
    assert "$" not in query
    return query


def test_every_query_of_the_dashboard_has_data(running: RunningService, prometheus: Prometheus) -> None:
    # given a service under load
    wanted = [without_variables(query) for query in queries()]
    with Load(running) as load:
        # when Prometheus has scraped it for a while, then each panel has something to show
        def missing() -> list[str]:
            return [query for query in wanted if not prometheus.values(query)]

        try:
            wait_until(lambda: not missing(), "data for every query", SERIES_SECONDS)
        except pytest.fail.Exception:
            pytest.fail("no data for\n" + "\n".join(missing()))
    # and so has each of its variables
    for variable in dashboard()["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((\w+).*, (\w+)\)", variable["definition"]).groups()
        assert prometheus.get(f"label/{label}/values", **{"match[]": metric}), variable["name"]
    # and when all jobs have ended, both outlets tell as many as there were: failovers aside, they agree
    enqueued = load.jobs + 1  # the one with the key
    for prefix in ("", "ray_"):
        query = f"sum({prefix}jobsvc_jobs_finished_total)"
        wait_until(lambda query=query: prometheus.value(query) == enqueued, f"{query} to be {enqueued}")


def test_no_series_is_about_one_job(running: RunningService, prometheus: Prometheus) -> None:
    running.client.enqueue(double, 1, labels={"customer": "somebody"}).result(30)
    series = prometheus.get("series", **{"match[]": '{__name__=~"(ray_)?jobsvc_.*"}'})
    assert len(series) > 100
    labels = {(name, value) for each in series for name, value in each.items()}
    assert not [value for _, value in labels if JOB_ID.search(value) or "somebody" in value]
    assert {name for name, _ in labels} <= {
        *("__name__", "job", "instance", "queue", "task", "state", "outcome", "reason", "pool", "manager"),
        *("operation", "quantile", "le", "route", "method", "status", "replica", "version", "python"),
        "ray_version",
        # Ray's
        *("Component", "NodeAddress", "SessionName", "Version", "WorkerId"),
        *("otel_scope_name", "otel_scope_schema_url", "otel_scope_version"),
    }


def test_one_leads_also_after_a_takeover(running: RunningService, prometheus: Prometheus) -> None:
    # given a leader that dies
    pair = running.whole_pair()
    epoch = pair["leader"]["epoch"]
    psutil.Process(pair["leader"]["pid"]).kill()
    # when the metrics of the next one have arrived
    wait_until(lambda: (prometheus.value("max(ray_jobsvc_leader_epoch)") or 0) > epoch, "the next epoch")
    # then soon one leads, and the alert did not go off for what is not an outage
    one = "sum(max by (manager) (ray_jobsvc_is_leader)) == 1"
    wait_until(lambda: prometheus.value(one), "one leader")
    firing = [each["labels"]["alertname"] for each in prometheus.get("alerts")["alerts"]]
    states = {each["labels"]["alertname"]: each["state"] for each in prometheus.get("alerts")["alerts"]}
    assert "firing" not in states.values(), firing


def test_prometheus_understands_every_alert(prometheus: Prometheus) -> None:
    (group,) = prometheus.get("rules")["groups"]
    written = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in written]
    wait_until(
        lambda: {rule["health"] for rule in prometheus.get("rules")["groups"][0]["rules"]} == {"ok"},
        "every alert to be evaluated",
    )


def test_grafana_with_rays_configuration_loads_the_dashboard(running: RunningService) -> None:
    # given the folder that Ray's configuration tells Grafana to load
    grafana = session_dir(running) / "metrics" / "grafana"
    provider = yaml.safe_load((grafana / "provisioning" / "dashboards" / "default.yml").read_text())
    folder = Path(provider["providers"][0]["options"]["path"])
    # then ours is there beside Ray's, under a uid of its own
    loaded = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert loaded[FILE_NAME] == dashboard()
    assert len(loaded) > 5
    assert [each["uid"] for each in loaded.values()].count(UID) == 1
