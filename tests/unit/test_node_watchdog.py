"""The watchdog of a node: what EC2 says, what the head says, and what is done about it."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobsvc.drain_notice import DrainNotice
from jobsvc.errors import InvalidRequest
from jobsvc.node_settings import WatchdogSettings, numbers_from
from jobsvc.node_watchdog import (
    POLL_SECONDS,
    RAYLET_PAUSE_SECONDS,
    RAYLET_SECONDS,
    SPOT_MARGIN_SECONDS,
    Machine,
    NodeWatchdog,
    raylet_node_id,
)
from jobsvc.ports import Answer

WALL = 2_000_000_000.0


class Node:
    """A machine of which everything can be said."""

    def __init__(self, settings: WatchdogSettings | None = None) -> None:
        self.now = 1000.0
        self.spot: float | None = None
        self.rebalance: float | None = None
        self.head_there = True
        self.refuses = False
        self.address = "10.0.0.1:6379"
        self.raylet_there = True
        self.drain_works = True
        self.shutdown_works = True
        self.notices: list[DrainNotice] = []
        self.drains: list[float] = []
        self.shutdowns: list[float] = []
        self.restarts: list[float] = []
        self.watchdog = NodeWatchdog(
            settings or WatchdogSettings(),
            self,
            self,
            monotonic=lambda: self.now,
            wall=lambda: WALL + self.now,
        )

    def live(self, seconds: float) -> None:
        """Step by step, as long as that takes."""
        end = self.now + seconds
        while self.now < end:
            self.now += POLL_SECONDS
            self.watchdog.step()

    @property
    def wall(self) -> float:
        return WALL + self.now

    def spot_notice(self) -> float | None:
        return self.spot

    def rebalance_notice(self) -> float | None:
        return self.rebalance

    def head(self) -> tuple[str | None, Answer]:
        there = Answer.ACCEPTED if self.head_there else Answer.NONE
        return self.address, Answer.REFUSED if self.refuses else there

    def raylet_lives(self) -> bool:
        return self.raylet_there

    def write_notice(self, notice: DrainNotice) -> None:
        self.notices.append(notice)

    def drain_ray(self, notice: DrainNotice, seconds_left: float) -> bool:
        self.drains.append(seconds_left)
        return self.drain_works

    def restart_ray(self) -> bool:
        self.restarts.append(self.now)
        return True

    def shut_down(self) -> bool:
        self.shutdowns.append(self.now)
        return self.shutdown_works


def test_a_node_that_is_well_is_left_alone() -> None:
    node = Node()
    node.live(3600)
    assert (node.notices, node.drains, node.shutdowns, node.restarts) == ([], [], [], [])


# --- leaving in time --------------------------------------------------------------------------------


def test_a_spot_notice_drains_workers_and_ray_once() -> None:
    node = Node()
    node.live(10)
    node.spot = node.wall + 120
    node.live(60)
    (notice,) = node.notices
    assert notice.deadline == node.spot - SPOT_MARGIN_SECONDS
    assert node.drains == [pytest.approx(120 - SPOT_MARGIN_SECONDS - POLL_SECONDS)]


def test_a_drain_that_ray_refuses_is_asked_for_again() -> None:
    node = Node()
    node.spot, node.drain_works = node.wall + 120, False
    node.live(30)
    assert 3 <= len(node.drains) <= 4
    assert node.drains == sorted(node.drains, reverse=True)
    node.drain_works = True
    node.live(60)
    assert len(node.drains) <= 5
    assert len(node.notices) == 1


def test_a_recommendation_drains_with_ten_minutes() -> None:
    node = Node()
    node.rebalance = node.wall
    node.live(10)
    assert [notice.deadline for notice in node.notices] == [node.rebalance + 600]


def test_a_spot_notice_after_a_recommendation_is_announced_too() -> None:
    node = Node()
    node.rebalance = node.wall
    node.live(10)
    node.spot = node.wall + 120
    node.live(10)
    assert [notice.deadline for notice in node.notices] == [
        node.rebalance + 600,
        node.spot - SPOT_MARGIN_SECONDS,
    ]
    assert len(node.drains) == 2


def test_a_recommendation_can_be_ignored() -> None:
    node = Node(WatchdogSettings(rebalance_seconds=0))
    node.rebalance = node.wall
    node.live(10)
    assert node.notices == []


# --- no head ----------------------------------------------------------------------------------------


def test_without_a_head_for_ten_minutes_the_machine_ends() -> None:
    node = Node()
    node.head_there = False
    node.live(590)
    assert node.shutdowns == []
    node.live(20)
    assert len(node.shutdowns) > 0


def test_a_head_that_comes_back_in_time_starts_the_count_anew() -> None:
    node = Node()
    for _ in range(5):
        node.head_there = False
        node.live(500)
        node.head_there = True
        node.live(4)
    assert node.shutdowns == []


def test_a_machine_that_slept_for_a_day_does_not_wake_up_to_its_end() -> None:
    node = Node()
    node.head_there = False
    node.live(60)
    node.now += 86_400
    node.live(60)
    assert node.shutdowns == []
    node.live(600)
    assert node.shutdowns != []


def test_a_shutdown_that_fails_is_tried_again() -> None:
    node = Node()
    node.head_there, node.shutdown_works = False, False
    node.live(660)
    assert 4 <= len(node.shutdowns) <= 7


# --- a raylet that left -----------------------------------------------------------------------------


def test_ray_is_started_again_where_the_head_answers_and_no_raylet_runs() -> None:
    node = Node()
    node.raylet_there = False
    node.live(RAYLET_SECONDS - POLL_SECONDS)
    assert node.restarts == []
    node.live(RAYLET_PAUSE_SECONDS)
    assert len(node.restarts) == 1


def test_a_raylet_that_left_because_of_a_drain_stays_away() -> None:
    node = Node()
    node.spot = node.wall + 120
    node.live(4)
    node.raylet_there = False
    node.live(300)
    assert node.restarts == []


def test_without_a_head_there_is_nothing_to_start() -> None:
    node = Node()
    node.raylet_there = node.head_there = False
    node.live(300)
    assert node.restarts == []


# --- another Ray on the head ------------------------------------------------------------------------


def test_ray_is_started_again_as_soon_as_the_heads_ray_has_been() -> None:
    node = Node()
    node.refuses = True
    node.live(8)
    assert node.restarts == []
    node.refuses = False
    node.live(POLL_SECONDS)
    assert len(node.restarts) == 1
    node.live(300)
    assert len(node.restarts) == 1


def test_a_network_that_was_cut_is_no_reason_to_start_ray_again() -> None:
    node = Node()
    node.head_there = False
    node.live(60)
    node.head_there = True
    node.live(60)
    assert node.restarts == []


def test_a_head_that_rebooted_has_another_ray() -> None:
    node = Node()
    node.head_there = False
    node.live(30)
    node.refuses = True
    node.live(4)
    node.head_there, node.refuses = False, False
    node.live(4)
    node.head_there = True
    node.live(4)
    assert len(node.restarts) == 1


def test_a_node_that_was_given_another_head_has_been_started_again_by_that() -> None:
    node = Node()
    node.refuses = True
    node.live(8)
    node.refuses, node.address = False, "10.0.0.2:6379"
    node.live(60)
    assert node.restarts == []


def test_a_node_that_is_drained_stays_as_it_is() -> None:
    node = Node()
    node.spot = node.wall + 120
    node.refuses = True
    node.live(8)
    node.refuses = False
    node.live(60)
    assert node.restarts == []


# --- the machine ------------------------------------------------------------------------------------


def test_a_port_accepts_or_refuses_or_says_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, is_root=True)
    assert machine.head() == (None, Answer.NONE)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        (tmp_path / "head").write_text(f"{address}\n")
        assert machine.head() == (address, Answer.ACCEPTED)
    assert machine.head() == (address, Answer.REFUSED)


def test_the_raylets_own_words_tell_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [
        SimpleNamespace(info={"name": "python", "cmdline": ["raylet", "--node_id=wrong"]}),
        SimpleNamespace(info={"name": "raylet", "cmdline": ["/ray/raylet", "--node_id=abc", "--head"]}),
    ]
    monkeypatch.setattr("psutil.process_iter", lambda names: processes)
    assert raylet_node_id() == "abc"
    monkeypatch.setattr("psutil.process_iter", lambda names: processes[:1])
    assert raylet_node_id() is None


@pytest.mark.parametrize(("code", "worked"), [(0, True), (1, False)])
def test_ray_is_asked_to_place_nothing_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, worked: bool
) -> None:
    said: list[list[str]] = []

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        said.append(words)
        return subprocess.CompletedProcess(words, code, "", "no")

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("jobsvc.node_watchdog.raylet_node_id", lambda: "abc")
    (tmp_path / "head").write_text("10.0.0.1:6379")
    machine = Machine(tmp_path, is_root=False)
    assert machine.drain_ray(DrainNotice(deadline=0, reason="it goes"), 109.2) is worked
    assert " ".join(said[0][3:]) == (
        "drain-node --address 10.0.0.1:6379 --node-id abc --reason DRAIN_NODE_REASON_PREEMPTION"
        " --reason-message it goes --deadline-remaining-seconds 110"
    )
    assert machine.shut_down() is worked
    assert said[1] == ["sudo", "-n", "shutdown", "-h", "now"]
    assert machine.restart_ray() is worked


def test_a_command_that_cannot_be_run_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(words: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(words, 1)

    monkeypatch.setattr("subprocess.run", run)
    assert Machine(tmp_path, is_root=True).shut_down() is False


# --- settings ---------------------------------------------------------------------------------------


def test_settings_come_from_the_environment_of_the_unit() -> None:
    found = numbers_from({"JOBSVC_NO_HEAD_SECONDS": "30", "OTHER": "x"}, "JOBSVC_", WatchdogSettings)
    assert found == WatchdogSettings(no_head_seconds=30)


@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_a_setting_that_is_no_number_is_named(value: str) -> None:
    with pytest.raises(InvalidRequest, match="JOBSVC_NO_HEAD_SECONDS"):
        numbers_from({"JOBSVC_NO_HEAD_SECONDS": value}, "JOBSVC_", WatchdogSettings)
