"""The Grafana dashboard: the committed file, where it is put, and that its queries name what there is."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import yaml

from jobsvc.grafana_dashboard import FILE_NAME, dashboard, put_beside_rays, queries, text
from jobsvc.metrics import HELP

ROOT = Path(__file__).parent.parent.parent
HISTOGRAM_PARTS = re.compile(r"_(bucket|count|sum)$")


def test_the_committed_file_is_the_dashboard() -> None:
    assert (ROOT / "docs" / "monitoring" / "jobsvc_dashboard.json").read_text() == text()


def test_queries_and_alerts_name_metrics_that_exist() -> None:
    rules = yaml.safe_load((ROOT / "docs" / "monitoring" / "jobsvc.rules.yml").read_text())
    alerts = [rule["expr"] for rule in rules["groups"][0]["rules"]]
    named = {name for each in queries() + alerts for name in re.findall(r"\bray_(jobsvc_\w+)", each)}
    assert {HISTOGRAM_PARTS.sub("", name) for name in named} <= set(HELP)


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    squares = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(squares)) == len(squares)
    assert all(x < 24 for x, _ in squares)


def test_it_is_put_where_ray_keeps_its_own(tmp_path: Path) -> None:
    # given a Ray whose dashboard is still starting, and keeps its dashboards in some folder
    folder = tmp_path / "chosen by an operator"
    provider = tmp_path / "metrics" / "grafana" / "provisioning" / "dashboards" / "default.yml"

    def start() -> None:
        folder.mkdir()
        provider.parent.mkdir(parents=True)
        provider.write_text(yaml.safe_dump({"providers": [{"options": {"path": str(folder)}}]}))

    starting = threading.Timer(0.3, start)
    starting.start()
    # when the service is put into it
    assert put_beside_rays(tmp_path, 10.0) == folder / FILE_NAME
    starting.join()
    # then it is there
    assert json.loads((folder / FILE_NAME).read_text()) == dashboard()


def test_a_ray_without_dashboards_is_left_alone(tmp_path: Path) -> None:
    assert put_beside_rays(tmp_path, 0.2) is None
    assert not list(tmp_path.iterdir())


def test_the_documentation_names_every_metric() -> None:
    written = (ROOT / "docs" / "monitoring.md").read_text()
    assert {name for name in HELP if f"`{name}`" not in written} == set()
