"""The Grafana dashboard of a service: one more in the folder where Ray puts its own.

Grafana, started with Ray's configuration, loads every dashboard in that folder. Ray clears the folder when
it starts and then writes where it is, so the file is put there afterwards, by the program that puts the
service into Ray.

Every query reads what Ray's own endpoints export, so Ray's scrape set-up is enough. A leader's gauges are
read with `max`: for half a minute after a takeover the old leader's last values are there as well.
`docs/monitoring/jobsvc_dashboard.json` is the same as a file: `python -m jobsvc.grafana_dashboard > FILE`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FILE_NAME = "jobsvc_grafana_dashboard.json"
UID = "jobsvc"
SESSION = 'SessionName=~"$SessionName"'
QUEUE = f'queue=~"$queue",{SESSION}'
API = f'application!="",{SESSION}'
APPLIED = f"ray_jobsvc_applied_records{{{SESSION}}}"
WINDOW = "[$__rate_interval]"
PANEL_WIDTH, PANEL_HEIGHT = 8, 8
ROW_WIDTH = 24
POLL_SECONDS = 0.1


class Target(NamedTuple):
    """One query, and the legend of its series."""

    query: str
    legend: str


class Panel(NamedTuple):
    title: str
    unit: str
    description: str
    targets: list[Target]
    stacked: bool = False


def _quantiles(metric: str, labels: str, scale: str = "") -> list[Target]:
    return [
        Target(
            f"histogram_quantile({share}, sum by (le) (rate({metric}_bucket{{{labels}}}{WINDOW}))){scale}",
            f"p{round(share * 100)}",
        )
        for share in (0.5, 0.95, 0.99)
    ]


def _rate(metric: str, by: str, labels: str = SESSION) -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}{WINDOW}))"


def _sum_or_zero(metric: str) -> str:
    """What is never counted has no series, and that is good news."""
    return f"sum(rate({metric}{{{SESSION}}}{WINDOW})) or vector(0)"


HEALTH = [
    Panel(
        "Leader",
        "none",
        "1 for the manager that leads.",
        [Target(f"max by (manager) (ray_jobsvc_is_leader{{{SESSION}}})", "{{manager}}")],
    ),
    Panel(
        "Leaderships",
        "none",
        "The epoch grows by one with each takeover.",
        [Target(f"max(ray_jobsvc_leader_epoch{{{SESSION}}})", "epoch")],
    ),
    Panel(
        "The latest takeover",
        "s",
        "How long no leader was heard before this one led.",
        [Target(f"max(ray_jobsvc_takeover_seconds{{{SESSION}}})", "seconds")],
    ),
    Panel(
        "Since the last commit",
        "s",
        "An idle leader writes a record every few seconds; beyond ten seconds the service is not ready.",
        [
            Target(
                f"time() - max(ray_jobsvc_journal_last_commit_timestamp_seconds{{{SESSION}}})",
                "seconds",
            )
        ],
    ),
    Panel(
        "Standby behind the leader",
        "short",
        "Records that the one manager has applied and the other has not.",
        [
            Target(
                f"max({APPLIED}) - min({APPLIED})",
                "records",
            )
        ],
    ),
    Panel(
        "Lost leases, late reports",
        "ops",
        "Leases taken from lost workers; reports that came after their lease had ended.",
        [
            Target(_sum_or_zero("ray_jobsvc_leases_expired_total"), "leases lost"),
            Target(_sum_or_zero("ray_jobsvc_stale_results_total"), "late reports"),
        ],
    ),
    Panel(
        "Store requests",
        "ops",
        "Requests of the managers to the store, by kind. S3 bills the PUTs.",
        [Target(_rate("ray_jobsvc_store_requests_total", "operation"), "{{operation}}")],
        stacked=True,
    ),
]
FLOW = [
    Panel(
        "Jobs in and out",
        "ops",
        "Jobs accepted, and jobs that came to an end.",
        [
            Target(f"sum(rate(ray_jobsvc_jobs_enqueued_total{{{QUEUE}}}{WINDOW}))", "accepted"),
            Target(f"sum(rate(ray_jobsvc_jobs_finished_total{{{QUEUE}}}{WINDOW}))", "finished"),
        ],
    ),
    Panel(
        "Jobs held, by state",
        "short",
        "Counted by the state machine, so that they add up.",
        [Target(f"sum by (state) (max by (queue, state) (ray_jobsvc_jobs{{{QUEUE}}}))", "{{state}}")],
        stacked=True,
    ),
    Panel(
        "Age of the oldest queued job",
        "s",
        "If it grows, the queue is paused or there are too few workers.",
        [
            Target(
                f"max by (queue) (ray_jobsvc_oldest_queued_age_seconds{{{QUEUE}}})",
                "{{queue}}",
            )
        ],
    ),
    Panel(
        "Attempts that ended, by outcome",
        "ops",
        "One job may need several attempts.",
        [Target(_rate("ray_jobsvc_attempts_finished_total", "outcome", QUEUE), "{{outcome}}")],
        stacked=True,
    ),
    Panel(
        "Failed jobs, by task",
        "ops",
        "Jobs that spent all their attempts.",
        [
            Target(
                _rate("ray_jobsvc_jobs_finished_total", "task", f'outcome="failed",{QUEUE}'),
                "{{task}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Paused queues",
        "none",
        "1 while a queue is paused.",
        [Target(f"max by (queue) (ray_jobsvc_queue_paused{{{QUEUE}}})", "{{queue}}")],
    ),
]
LATENCY = [
    Panel(
        "Wait for a worker",
        "s",
        "From a job's acceptance, or its time, to its first lease.",
        _quantiles("ray_jobsvc_queue_wait_seconds", QUEUE),
    ),
    Panel(
        "Run of an attempt, p95 by task",
        "s",
        "In the job's process.",
        [
            Target(
                "histogram_quantile(0.95, sum by (le, task) "
                f"(rate(ray_jobsvc_attempt_duration_seconds_bucket{{{QUEUE}}}{WINDOW})))",
                "{{task}}",
            )
        ],
    ),
    Panel(
        "Enqueue until durable",
        "s",
        "What a caller waits for: from a checked request to its record in the store.",
        _quantiles("ray_jobsvc_enqueue_commit_seconds", SESSION),
    ),
    Panel(
        "Commits",
        "s",
        "The leader's latest commits: one object in the store each.",
        [Target(f"max by (quantile) (ray_jobsvc_commit_seconds{{{SESSION}}})", "quantile {{quantile}}")],
    ),
]
WORKERS = [
    Panel(
        "Workers",
        "short",
        "By state, and how many the scaler wants now.",
        [
            Target(f"sum by (state) (max by (pool, state) (ray_jobsvc_workers{{{SESSION}}}))", "{{state}}"),
            Target(f"sum(max by (pool) (ray_jobsvc_workers_wanted{{{SESSION}}}))", "wanted"),
        ],
    ),
    Panel(
        "Machines",
        "short",
        "Nodes of the Ray cluster that report.",
        [Target(f"count(ray_node_cpu_count{{{SESSION}}})", "nodes")],
    ),
    Panel(
        "CPU and memory in use",
        "percent",
        "Mean over the machines.",
        [
            Target(f"avg(ray_node_cpu_utilization{{{SESSION}}})", "CPU"),
            Target(
                f"100 * sum(ray_node_mem_used{{{SESSION}}}) / sum(ray_node_mem_total{{{SESSION}}})", "memory"
            ),
        ],
    ),
]
HTTP = [
    Panel(
        "Requests, by route",
        "reqps",
        "As Ray Serve counts them.",
        [Target(_rate("ray_serve_num_http_requests_total", "route", API), "{{route}}")],
        stacked=True,
    ),
    Panel(
        "Answers",
        "ms",
        "Time of a request in Ray Serve. Long polls and event streams are among them.",
        _quantiles("ray_serve_http_request_latency_ms", API),
    ),
    Panel(
        "Refused requests",
        "reqps",
        "By the reason that the caller was told, by replicas and by the leader.",
        [
            Target(_rate("ray_jobsvc_http_rejected_total", "reason"), "{{reason}}"),
            Target(_rate("ray_jobsvc_refused_total", "reason"), "leader: {{reason}}"),
        ],
        stacked=True,
    ),
    Panel(
        "Callers that wait",
        "short",
        "Event streams that are open, and requests that wait for a job to end.",
        [
            Target(f"sum(ray_jobsvc_event_streams{{{SESSION}}})", "event streams"),
            Target(f"sum(ray_jobsvc_http_waiting{{{SESSION}}})", "waiting for a job"),
        ],
    ),
]
ROWS = {"Health": HEALTH, "Flow": FLOW, "Latency": LATENCY, "Workers": WORKERS, "API": HTTP}


def queries() -> list[str]:
    """Every query of the dashboard, variables not replaced."""
    return [target.query for panels in ROWS.values() for panel in panels for target in panel.targets]


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": ROW_WIDTH, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": place,
            }
        )
        y += 1
        across = ROW_WIDTH // PANEL_WIDTH
        for number, panel in enumerate(row):
            x = number % across * PANEL_WIDTH
            panels.append(_panel(panel, len(panels) + 1, x, y + number // across * PANEL_HEIGHT))
        y += -(-len(row) // across) * PANEL_HEIGHT
    return {
        "uid": UID,
        "title": "jobsvc",
        "tags": ["ray", "jobsvc"],
        "description": "Jobs, managers and workers of a jobsvc service.",
        "schemaVersion": 36,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    custom = {
        "fillOpacity": 25 if panel.stacked else 0,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none"},
    }
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": "${datasource}",
        "gridPos": {"x": x, "y": y, "w": PANEL_WIDTH, "h": PANEL_HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi"},
        },
        "targets": [
            {"refId": chr(ord("A") + place), "expr": target.query, "legendFormat": target.legend}
            for place, target in enumerate(panel.targets)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 2}
    session = _variable("SessionName", "label_values(ray_jobsvc_is_leader, SessionName)", "Ray session")
    queue = _variable("queue", f"label_values(ray_jobsvc_jobs{{{SESSION}}}, queue)", "Queue")
    return [source, session, queue]


def _variable(name: str, query: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": "${datasource}",
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": "All", "value": "$__all"},
        "multi": False,
        "refresh": 2,
        "sort": 1,
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


def put_beside_rays(session_dir: Path, wait_seconds: float) -> Path | None:
    """Put the dashboard where Ray's are. None if Ray does not keep any here, or not within this time."""
    provider = session_dir / "metrics" / "grafana" / "provisioning" / "dashboards" / "default.yml"
    deadline = time.monotonic() + wait_seconds
    while True:
        folder = _folder_of(provider)
        if folder is not None and folder.is_dir():
            path = folder / FILE_NAME
            path.write_text(text())
            return path
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_SECONDS)


def _folder_of(provider: Path) -> Path | None:
    """The folder that Grafana is told to load."""
    try:
        (first,) = yaml.safe_load(provider.read_text())["providers"]
        return Path(first["options"]["path"])
    except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError):
        return None  # not there yet, or not written to its end


if __name__ == "__main__":
    sys.stdout.write(text())
