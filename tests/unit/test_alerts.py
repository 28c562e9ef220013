"""The alerts go off for what they are about, and for nothing else: asked of promtool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parent.parent.parent / "docs" / "monitoring" / "jobsvc.rules.yml"
MINUTES = 60

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="prometheus is not installed")

# A service that is well, minute by minute: series -> values, in promtool's notation.
WELL = {
    'ray_jobsvc_is_leader{manager="manager-a"}': f"1+0x{MINUTES}",
    'ray_jobsvc_is_leader{manager="manager-b"}': f"0+0x{MINUTES}",
    "ray_jobsvc_journal_last_commit_timestamp_seconds": f"0+60x{MINUTES}",
    'ray_jobsvc_applied_records{manager="manager-a"}': f"0+900x{MINUTES}",
    'ray_jobsvc_applied_records{manager="manager-b"}': f"0+900x{MINUTES}",
    'ray_jobsvc_oldest_queued_age_seconds{queue="q"}': f"2+0x{MINUTES}",
    'ray_jobsvc_queue_paused{queue="q"}': f"0+0x{MINUTES}",
    'ray_jobsvc_workers_wanted{pool="default"}': f"2+0x{MINUTES}",
    'ray_jobsvc_workers{pool="default",state="idle"}': f"1+0x{MINUTES}",
    'ray_jobsvc_workers{pool="default",state="busy"}': f"1+0x{MINUTES}",
    'ray_jobsvc_jobs_finished_total{outcome="succeeded"}': f"0+6000x{MINUTES}",
    'ray_jobsvc_jobs_finished_total{outcome="failed"}': f"0+6x{MINUTES}",
}
LATE = f"2+60x{MINUTES}"
ILL: dict[str, tuple[dict[str, str | None], set[str]]] = {
    "all is well": ({}, set()),
    "nobody leads": ({'ray_jobsvc_is_leader{manager="manager-a"}': f"0+0x{MINUTES}"}, {"JobsvcNoLeader"}),
    "both think they lead": (
        {'ray_jobsvc_is_leader{manager="manager-b"}': f"1+0x{MINUTES}"},
        {"JobsvcNoLeader"},
    ),
    "nothing is left": (dict.fromkeys(WELL), {"JobsvcSilent"}),
    "one manager is gone": (
        {
            'ray_jobsvc_is_leader{manager="manager-b"}': None,
            'ray_jobsvc_applied_records{manager="manager-b"}': None,
        },
        {"JobsvcNoStandby"},
    ),
    "the store hangs": (
        {"ray_jobsvc_journal_last_commit_timestamp_seconds": f"0+0x{MINUTES}"},
        {"JobsvcNothingCommitted"},
    ),
    "the standby cannot follow": (
        {'ray_jobsvc_applied_records{manager="manager-b"}': f"0+500x{MINUTES}"},
        {"JobsvcStandbyBehind"},
    ),
    "jobs wait": ({'ray_jobsvc_oldest_queued_age_seconds{queue="q"}': LATE}, {"JobsvcJobsWait"}),
    "jobs wait because they should": (
        {
            'ray_jobsvc_oldest_queued_age_seconds{queue="q"}': LATE,
            'ray_jobsvc_queue_paused{queue="q"}': f"1+0x{MINUTES}",
        },
        set(),
    ),
    "a worker does not come": (
        {'ray_jobsvc_workers{pool="default",state="idle"}': f"0+0x{MINUTES}"},
        {"JobsvcWorkersMissing"},
    ),
    "no worker comes": (
        {
            'ray_jobsvc_workers{pool="default",state="idle"}': f"0+0x{MINUTES}",
            'ray_jobsvc_workers{pool="default",state="busy"}': f"0+0x{MINUTES}",
        },
        {"JobsvcWorkersMissing"},
    ),
    "a task is broken": (
        {'ray_jobsvc_jobs_finished_total{outcome="failed"}': f"0+1000x{MINUTES}"},
        {"JobsvcJobsFail"},
    ),
    "workers are given up too early": (
        {"ray_jobsvc_stale_results_total": f"0+3x{MINUTES}"},
        {"JobsvcLateReports"},
    ),
}


def named() -> set[str]:
    return {rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}


def test_every_alert_has_a_story() -> None:
    assert set().union(*(alerts for _, alerts in ILL.values())) == named()


@pytest.mark.parametrize("what", ILL)
def test_alerts(what: str, tmp_path: Path) -> None:
    # given an hour in which something is wrong
    changed, expected = ILL[what]
    series = [
        {"series": with_session(name), "values": values}
        for name, values in {**WELL, **changed}.items()
        if values is not None
    ]
    # then exactly these alerts are firing
    asked = [
        {"eval_time": "55m", "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'}
        for name in sorted(named())
    ]
    for question, name in zip(asked, sorted(named()), strict=True):
        question["exp_samples"] = [{"value": int(name in expected)}]  # type: ignore[assignment]
    story: dict[str, Any] = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "30s",
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": asked}],
    }
    file = tmp_path / "story.yml"
    file.write_text(yaml.safe_dump(story))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def with_session(series: str) -> str:
    name, _, labels = series.removesuffix("}").partition("{")
    return f'{name}{{SessionName="s"{"," if labels else ""}{labels}}}'
