"""The word that a machine goes away: who reads it, and what they make of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from jobsvc.drain_notice import (
    FORGOTTEN_SECONDS,
    DrainNotice,
    drain_deadline,
    node_dir,
    when_drained,
    write_notice,
)

from ..simulation.virtual_loop import run

NOW = 2_000_000_000.0
BOOTED = 0.0


def announce(folder: Path, deadline: float) -> None:
    write_notice(folder, DrainNotice(deadline=deadline, reason="a test"))


def test_without_a_notice_the_machine_stays(tmp_path: Path) -> None:
    assert drain_deadline(tmp_path, now=NOW, booted_at=BOOTED) is None
    assert drain_deadline(tmp_path / "no such folder", now=NOW, booted_at=BOOTED) is None


def test_a_notice_says_when(tmp_path: Path) -> None:
    announce(tmp_path, NOW + 110)
    assert drain_deadline(tmp_path, now=NOW, booted_at=BOOTED) == NOW + 110


def test_a_notice_leaves_nothing_half_written(tmp_path: Path) -> None:
    announce(tmp_path, NOW + 600)
    announce(tmp_path, NOW + 110)
    assert [path.name for path in tmp_path.iterdir()] == ["drain.json"]
    assert drain_deadline(tmp_path, now=NOW, booted_at=BOOTED) == NOW + 110


def test_a_notice_from_before_this_boot_is_of_another_life(tmp_path: Path) -> None:
    announce(tmp_path, NOW + 110)
    os.utime(tmp_path / "drain.json", (NOW - 100, NOW - 100))
    assert drain_deadline(tmp_path, now=NOW, booted_at=NOW - 50) is None
    assert drain_deadline(tmp_path, now=NOW, booted_at=NOW - 150) == NOW + 110


@pytest.mark.parametrize(
    ("past", "holds"), [(1, True), (FORGOTTEN_SECONDS - 1, True), (FORGOTTEN_SECONDS + 1, False)]
)
def test_a_deadline_that_has_passed_holds_for_a_while(tmp_path: Path, past: float, holds: bool) -> None:
    announce(tmp_path, NOW - past)
    assert (drain_deadline(tmp_path, now=NOW, booted_at=BOOTED) is not None) == holds


def test_a_notice_that_makes_no_sense_means_now(tmp_path: Path) -> None:
    (tmp_path / "drain.json").write_text("{")
    assert drain_deadline(tmp_path, now=NOW, booted_at=BOOTED) == NOW


def test_a_worker_is_told_once_and_again_only_if_less_is_left(tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []

    async def story() -> None:
        loop = asyncio.get_running_loop()
        watching = asyncio.ensure_future(
            when_drained(
                lambda left: told.append((loop.time(), left)),
                tmp_path,
                booted_at=BOOTED,
                wall=lambda: NOW + loop.time(),
            )
        )
        await asyncio.sleep(9.75)
        announce(tmp_path, NOW + 610)
        await asyncio.sleep(20)
        announce(tmp_path, NOW + 130)
        await asyncio.sleep(20)
        announce(tmp_path, NOW + 400)
        await asyncio.sleep(20)
        watching.cancel()

    run(story())
    assert told == [(10.0, 600.0), (30.0, 100.0)]


def test_a_worker_that_starts_on_a_drained_machine_leaves_at_once(tmp_path: Path) -> None:
    announce(tmp_path, NOW - 5)
    told: list[float] = []

    async def story() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                when_drained(told.append, tmp_path, booted_at=BOOTED, wall=lambda: NOW), 10
            )

    run(story())
    assert told == [0.0]


def test_the_folder_can_be_chosen() -> None:
    assert node_dir({}) == Path("/run/jobsvc")
    assert node_dir({"JOBSVC_NODE_DIR": "/elsewhere"}) == Path("/elsewhere")
