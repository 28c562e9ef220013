"""The pace of PUTs."""

from __future__ import annotations

import pytest

from jobsvc.put_pace import BURST, PutPace, replica_interval_seconds, worker_interval_seconds


def puts_in(pace: PutPace, seconds: float, began: float = 0.0) -> int:
    now, puts = began, 0
    while (now := now + pace.wait_seconds(now)) < began + seconds:
        pace.note_put(now)
        puts += 1
    return puts


def test_a_rare_put_never_waits_and_many_keep_the_interval() -> None:
    pace = PutPace(2.0)
    assert pace.wait_seconds(0.0) == 0.0
    assert puts_in(pace, 100.0) == pytest.approx(100 / 2 + BURST, abs=1)
    assert pace.wait_seconds(99.0) > 0
    assert pace.wait_seconds(110.0) == 0.0


def test_quiet_time_is_saved_up_to_a_small_burst_only() -> None:
    pace = PutPace(1.0)
    puts_in(pace, 10.0)
    assert puts_in(pace, 0.5, began=10_000.0) == BURST + 1


def test_without_an_interval_nothing_waits() -> None:
    pace = PutPace()
    for _ in range(1_000):
        pace.note_put(1.0)
    assert pace.wait_seconds(1.0) == 0.0
    assert pace.take_made() == 1_000
    assert pace.take_made() == 0


def test_all_shares_together_leave_the_journal_more_than_half() -> None:
    for workers in (1, 2, 30):
        for replicas in (1, 2, 8):
            others = replicas / replica_interval_seconds(1 / 30, replicas)
            others += workers / worker_interval_seconds(1 / 30, workers)
            assert others <= 0.4 * 30 + 0.001
