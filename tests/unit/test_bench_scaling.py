"""The report of the scaling benchmark, and that its world drains what it was given."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks import scaling
from benchmarks.scaling_report import picture, report

WORKERS = {
    "kind": "workers",
    "workers": 10,
    "job_ms": 0.075,
    "jobs_s": 98_581.1,
    "calls_s": 179.4,
    "leader_percent": 98.4,
    "us_per_call": 5_481.9,
    "us_per_job": 9.98,
    "commit_ms": 6.3,
    "stall_ms": 14.4,
}


def test_each_kind_that_was_measured_has_a_table() -> None:
    text = report([WORKERS, {"kind": "ray", "ray_call_us": 151.2}])
    assert "| 10 | 0.075 | 98,581 | 179 | 98 | 5,482 | 10.0 | 6.3 | 14.4 |" in text
    assert "| 151 |" in text and "queued" not in text


def test_the_picture_is_svg_with_a_point_for_each_figure() -> None:
    root = ElementTree.fromstring(picture([WORKERS, {**WORKERS, "workers": 100}]))
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 2


def test_a_thousand_jobs_go_through_a_leader_and_come_back_from_a_snapshot() -> None:
    figures = scaling.against_queued(1_000)
    assert figures["enqueue_us"] > 0 and figures["finish_us"] > 0 and figures["snapshot_bytes"] > 200_000
