"""The comparison with other job queues: what its lines become, and what a peer that fails becomes."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import compare, work
from benchmarks.compare_lines import Line, cells, latest, read_lines
from benchmarks.compare_plot import PANELS, Scale, bars_of, picture
from benchmarks.compare_report import number, report
from benchmarks.peers import environments, session
from benchmarks.peers.environments import Unmeasured
from benchmarks.peers.roster import PEERS, Entry

SPEED = {"jobsvc": ("fsync", 20_000), "celery": ("always", 500), "celery ": ("everysec", 900)}


def line(peer: str, mode: str, measure: str, value: float | None, **more: Any) -> dict[str, Any]:
    known = {
        "at": "2026-01-02T03:04:05+00:00",
        "peer": peer,
        "mode": mode,
        "part": "speed",
        "round": 1,
        "measure": measure,
        "value": value,
        "unit": "jobs/s",
        "load_before": 0.1,
        "machine": "2 cores",
        "sync_ms": 0.12,
        "commit": "abc",
    }
    return {**known, **more}


def sample() -> list[dict[str, Any]]:
    lines = []
    for number_of_round, factor in ((1, 1.0), (2, 0.9), (3, 2.0)):
        for peer, (mode, rate) in SPEED.items():
            for measure in ("enqueue_each", "w1_end_to_end", "w2_end_to_end"):
                lines.append(
                    line(peer.strip(), mode, measure, rate * factor, round=number_of_round, jobs=100)
                )
            lines.append(line(peer.strip(), mode, "latency_p50", 10.0 / factor, round=number_of_round))
            lines.append(line(peer.strip(), mode, "session", 9.0, unit="s", round=number_of_round))
    lines.append(line("celery", "everysec", "memory", 1_746.2, part="memory", unit="bytes", jobs=100_000))
    crash = {"part": "crash", "unit": "s", "jobs": 6, "killed": 2, "deadline_seconds": 20.0}
    lines.append(line("celery", "everysec", "crash_rerun", None, finished=0, held=6, **crash))
    for number_of_round, delay in ((1, 0.5), (2, 1.5)):
        ended = {"first_start_seconds": 0.25, "round": number_of_round}
        lines.append(line("jobsvc", "fsync", "crash_rerun", delay, finished=6, **ended, **crash))
    lines.append(line("arq", "", "failed", None, part="setup", round=0, reason="pip:\nno such version"))
    lines.append(line("hashing", "none", "w2_end_to_end", 4_370.0))
    return lines


@pytest.fixture
def lines(tmp_path: Path) -> list[Line]:
    path = tmp_path / "sample.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in sample()))
    return list(read_lines(path))


# --- lines to tables --------------------------------------------------------------------------------


def test_the_median_of_rounds_and_how_far_they_lie_apart(lines: list[Line]) -> None:
    cell = cells(lines)["celery", "always", "w1_end_to_end"]
    assert (cell.median, cell.low, cell.high, cell.count) == (500, 450, 1000, 3)
    assert cell.spread_percent == pytest.approx(55)


def test_a_value_that_is_not_there_is_no_zero(lines: list[Line]) -> None:
    assert ("celery", "everysec", "crash_rerun") not in cells(lines)


def test_the_table_has_jobsvc_first_and_both_settings_of_redis_side_by_side(lines: list[Line]) -> None:
    rows = [text for text in report(lines).splitlines() if text.startswith("| ")]
    assert rows[2].startswith("| **jobsvc** | 20,000 |")
    assert "| 500 ±55 % / 900 ±55 % |" in rows[3]
    assert "| 1,750 |" in rows[3]


def test_the_table_tells_the_worst_crash_of_jobsvc_and_who_forgot_its_jobs(lines: list[Line]) -> None:
    text = report(lines)
    assert "6 of 6 jobs done; the killed ones begun again after 1.5 s (any job: 0.25 s)" in text
    assert "0 of 6 jobs done; the 2 killed ones not begun again in 20 s" in text


def test_what_could_not_be_measured_is_told_with_its_reason(lines: list[Line]) -> None:
    assert "Not measured: arq  setup, round 0: pip: no such version" in report(lines)


def test_a_failure_that_a_later_run_has_made_good_is_not_told(lines: list[Line]) -> None:
    failed = line("celery", "always", "failed", None, reason="port taken")
    found = [*lines, *(Line(**each) for each in [failed])]
    assert "port taken" not in report(found)


def test_a_session_that_was_begun_again_counts_once(lines: list[Line]) -> None:
    half = Line(**line("celery", "always", "w1_end_to_end", 1.0, round=2))
    assert cells(latest([half, *lines])) == cells(lines)


def test_a_trial_says_that_it_is_one(lines: list[Line]) -> None:
    assert "trial" not in report(lines)
    lines[0].scale = 0.02
    assert "a trial" in report(lines)


@pytest.mark.parametrize(
    ("value", "text"), [(26_412.0, "26,400"), (999.6, "1,000"), (12.34, "12.3"), (0.0312, "0.0312")]
)
def test_numbers_have_three_figures(value: float, text: str) -> None:
    assert number(value) == text


# --- lines to a picture -----------------------------------------------------------------------------


def test_the_picture_is_svg_with_a_bar_for_each_setting(lines: list[Line]) -> None:
    root = ElementTree.fromstring(picture(lines))
    kinds = [each.get("class") for each in root.iter("{http://www.w3.org/2000/svg}rect")]
    # three panels of rates and one of latency, the legend's three squares, and "no queue" under W2
    assert kinds.count("ours") == 4 + 1
    assert kinds.count("durable") == 4 + 1
    assert kinds.count("weaker") == 4 + 1 + 1
    assert "prefers-color-scheme: dark" in picture(lines)


def test_bars_stay_on_the_card(lines: list[Line]) -> None:
    root = ElementTree.fromstring(picture(lines))
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for each in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(each.attrib["width"]) > 0
        assert float(each.attrib["x"]) + float(each.attrib["width"]) <= width
        assert float(each.attrib["y"]) + float(each.attrib["height"]) <= height


def test_best_comes_first_also_where_less_is_better(lines: list[Line]) -> None:
    found = cells(lines)
    rates, latency = bars_of(found, PANELS[0]), bars_of(found, PANELS[3])
    assert rates[0].durable == 20_000
    assert latency[0].best <= latency[-1].best


def test_a_scale_of_one_value_is_no_division_by_zero() -> None:
    assert Scale(100.0, 100.0).width(100.0) > 0


# --- runs ---------------------------------------------------------------------------------------------


def options(folder: Path, **more: Any) -> argparse.Namespace:
    wanted = {"lines": folder / "lines.jsonl", "scale": 0.01, "crash_seconds": 0.1, "data": folder}
    return argparse.Namespace(**{**wanted, **more})


def test_a_peer_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def python_of(entry: Entry) -> str:
        if entry.module == "celery":
            raise Unmeasured("no such version")
        return "/no/such/python" if entry.module == "ray_tasks" else sys.executable

    monkeypatch.setattr(environments, "python_of", python_of)
    run = compare.Run(options(tmp_path), {})
    peers = run.prepare(["celery", "ray-tasks", "hashing"])
    assert peers == ["ray-tasks", "hashing"]
    run.all(list(compare.sessions(peers, ["speed"], 1)))
    found = {(each.peer, each.measure): each for each in read_lines(tmp_path / "lines.jsonl")}
    assert found["celery", "failed"].reason == "no such version"
    assert "/no/such/python" in found["ray-tasks", "failed"].reason
    assert (found["hashing", "w2_end_to_end"].value or 0.0) > 0
    assert ("hashing", "session") in found
    assert ("ray-tasks", "session") not in found
    assert [each.name for each in tmp_path.iterdir()] == ["lines.jsonl"]


def test_rounds_are_interleaved() -> None:
    wanted = list(compare.sessions(["jobsvc", "celery", "huey"], ["speed", "crash"], 2))
    speed = [(each.peer, each.round) for each in wanted if each.part == "speed" and each.mode == "always"]
    assert speed == [("celery", 1), ("huey", 1), ("celery", 2), ("huey", 2)]
    crashes = [(each.peer, each.round) for each in wanted if each.part == "crash"]
    assert crashes == [("jobsvc", 1), ("jobsvc", 2), ("celery", 1), ("huey", 1)]


def test_whoever_asked_is_killed_and_nothing_stays(tmp_path: Path) -> None:
    """The keeper hears the end of its pipe, ends its client and removes its folder."""
    words = ["--peer", "hashing", "--mode", "none", "--part", "speed", "--python", sys.executable]
    words += ["--data", str(tmp_path), "--scale", "1000", "--crash-seconds", "1", "--limit-seconds", "100"]
    keeper = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.keeper", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parent.parent.parent,
    )
    try:
        deadline = time.monotonic() + 30
        # the client, Python's tracker of shared things, and two processes that hash
        while len(below := psutil.Process(keeper.pid).children(recursive=True)) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert keeper.stdin is not None
        keeper.stdin.close()
        assert keeper.wait(60) != 0
        assert not [each for each in below if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        assert list(tmp_path.iterdir()) == []
    finally:
        if keeper.poll() is None:
            keeper.send_signal(signal.SIGKILL)
            keeper.wait()


# --- what a session takes for right -------------------------------------------------------------------


def test_a_wrong_result_is_no_result() -> None:
    texts = [work.argument(1), work.argument(2)]
    assert session.check("sha", texts, [[0.0, work.sha_of(text)] for text in texts]) == 2
    assert session.check("noop", texts, [[0.0, None]] * 2) == 0
    with pytest.raises(AssertionError, match="1 wrong"):
        session.check("sha", texts, [[0.0, work.sha_of(texts[0])]] * 2)
    with pytest.raises(AssertionError, match="1 results of 2"):
        session.check("noop", texts, [[0.0, 200]])


def test_a_crash_that_lost_jobs_has_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "naps"
    path.write_text("start 0 10.0\nstart 1 10.0\nstart 0 12.5\nend 0 15.5\n")
    session.tell_of_crash(session.Naps(path), {0, 1}, 11.0, 20.0, 1)
    told = json.loads(capsys.readouterr().out)
    assert (told["value"], told["again"], told["finished"], told["held"]) == (None, [1.5], 1, 1)
    assert told["first_start_seconds"] == 1.5


def test_each_peer_has_its_pinned_versions() -> None:
    for entry in PEERS.values():
        if entry.environment:
            lines = environments.requirements(entry).read_text().split()
            assert lines and all("==" in each for each in lines)
