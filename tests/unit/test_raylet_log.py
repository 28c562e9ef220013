"""Processes that end before Ray knows them: found in the raylet's own logs, with what they said."""

from __future__ import annotations

import os
from pathlib import Path

from jobsvc.raylet_log import words_about_the_dead

STARTED = (
    "[2026-11-27 21:21:1{n},137 I 22885 22885] (raylet) worker_pool.cc:564: Started worker process with pid"
    " {pid} worker_id={worker}\n"
)
GIVEN_UP = (
    "[2026-11-27 21:22:14,137 E 22885 22885] (raylet) worker_pool.cc:660: Some workers of the worker"
    " process(23203) have not registered within the timeout. The process is dead, probably it crashed during"
    " start.\n"
)
NO_PROCESS = 2**22 + 1  # more than Linux gives


def is_alive(pid: int) -> bool:
    return pid == os.getpid()


def logs(folder: Path, started: list[tuple[int, str]], said: str = "") -> Path:
    """A raylet's logs as Ray 2.60 writes them."""
    lines = [STARTED.format(n=n, pid=pid, worker=worker) for n, (pid, worker) in enumerate(started)]
    (folder / "raylet.out").write_text("[state-dump] \tmuch\n" + "".join(lines) + "[state-dump] more\n")
    (folder / "raylet.err").write_text(said)
    return folder


def test_one_that_ended_on_its_way_is_told_with_its_last_words_and_where_they_are(tmp_path: Path) -> None:
    # given a process that lives, one that lived and has its own log, and one that ended on its way
    (tmp_path / "worker-bb-01000000-77.err").write_text("its own business")
    started = [(os.getpid(), "aa"), (NO_PROCESS, "bb"), (NO_PROCESS, "cc")]
    said = "Traceback\nImportError: licence has expired\n\n" + GIVEN_UP
    words = words_about_the_dead(logs(tmp_path, started, said), is_alive)
    assert words == (
        f"a process for a worker ended before Ray knew it (2026-11-27 21:21:12, pid {NO_PROCESS}); what was"
        f" said last: ImportError: licence has expired; Ray's log of it is {tmp_path}/raylet.err"
    )


def test_several_are_counted(tmp_path: Path) -> None:
    words = words_about_the_dead(logs(tmp_path, [(NO_PROCESS, "aa"), (NO_PROCESS, "bb")]), is_alive)
    assert words is not None and "21:21:11" in words and "2 have so far" in words and "said" not in words


def test_all_that_came_through_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "worker-bb-01000000-77.out").write_text("")
    assert words_about_the_dead(logs(tmp_path, [(os.getpid(), "aa"), (NO_PROCESS, "bb")]), is_alive) is None


def test_a_machine_without_logs_tells_nothing(tmp_path: Path) -> None:
    assert words_about_the_dead(tmp_path / "nowhere", is_alive) is None
