"""What an operator is told of clocks."""

from __future__ import annotations

from datetime import datetime
from email.utils import formatdate
from pathlib import Path

import pytest

from jobsvc import doctor
from jobsvc.clock_view import ClockView
from jobsvc.clock_words import clock_words, rest_words
from jobsvc.discovery import ServiceInfo, write_down
from jobsvc.object_store import MemoryObjectStore, StoreDate, date_of
from jobsvc.settings import PoolSettings, Settings

from . import http_world
from .local_service import LocalService
from .manager_world import until

DAY = 86_400.0
NOON = 1_800_000_000.0


def told(
    ahead: float | None = 0.0, store: float | None = None, jump: float = 0.0, ago: float = 0.0
) -> list[str]:
    log_time = NOON + (ahead or 0.0)
    jumped_at = log_time - ago
    ages_from = jumped_at + 3_600.0 if jump > DAY else 0.0
    return clock_words(ClockView(NOON, ahead, store, jump, jumped_at, ages_from))


def test_clocks_that_agree_are_not_worth_a_word() -> None:
    assert told() == told(None) == told(0.5, -1.2) == told(-1.9, 1.9) == []
    assert told(jump=5 * DAY, ago=2 * DAY) == []


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (3_600.0, "the journal's time is 60.0 minutes ahead of this machine's clock"),
        (-30.0, "the journal's time is 30 s behind this machine's clock"),
        (8 * DAY, "8.0 days ahead of"),
    ],
)
def test_time_that_is_elsewhere_is_told_with_its_speed(ahead: float, words: str) -> None:
    [line] = told(ahead)
    assert words in line and ("half" if ahead > 0 else "twice") in line


def test_a_store_with_another_clock_is_told() -> None:
    [line] = told(store=-900.0)
    assert line == "the store's clock is 15.0 minutes behind this machine's: is that one right?"


def test_a_jump_is_told_and_what_follows_from_it() -> None:
    [line] = told(jump=8.1 * DAY, ago=600.0)
    assert "jumped by 8.1 days" in line and "for 50.0 minutes" in line
    [line] = told(jump=3 * 3_600.0, ago=600.0)
    assert line == "the journal's time has jumped by 3.0 hours at the last start"


def test_a_jump_that_a_start_would_make_is_told_if_it_is_great() -> None:
    assert rest_words(None) is rest_words(-3_600.0) is rest_words(8 * DAY) is None
    words = rest_words(-8.1 * DAY)
    assert words is not None and "8.1 days old" in words and "jumps by that" in words


def test_a_date_is_what_a_store_says_when_it_answers() -> None:
    dated = StoreDate(formatdate(NOON, usegmt=True), 50.0)
    assert dated.ahead_of(NOON + 0.5, 50.0) == 0.0
    assert dated.ahead_of(NOON + 0.5, 60.0) == 10.0
    assert StoreDate("yesterday", 50.0).ahead_of(NOON, 50.0) is None
    assert date_of(MemoryObjectStore()) is None


def test_status_tells_how_far_the_journals_time_is_from_the_clock() -> None:
    async def story(replica: http_world.Replica) -> None:
        # given a leader whose clock is set back by an hour, and a store with the right one
        pair = replica.pair
        clock = (await replica.http.get("/v1/status")).json()["clock"]
        assert clock["warnings"] == [] and clock["journal_ahead_seconds"] == 0.0
        assert (clock["jump_seconds"], clock["jumped_at"], clock["store_ahead_seconds"]) == (0.0, None, None)
        pair.clock_errors["manager-a"] = -3_600.0
        await until(lambda: replica.leader.state.log_time > 0)
        # then its status says so
        document = (await replica.http.get("/v1/status")).json()
        assert document["clock"]["journal_ahead_seconds"] > 3_500.0
        assert "60.0 minutes ahead of" in document["clock"]["warnings"][0]
        # and so does the page; what it compares times with is the journal's time, not a replica's clock
        summary = (await replica.http.get("/v1/events")).json()
        assert summary["warnings"] == document["clock"]["warnings"]
        history = (await replica.http.get("/v1/history?seconds=60")).json()
        log_time = replica.leader.state.log_time
        for each in (document, summary, history):
            assert datetime.fromisoformat(each["now"]).timestamp() == pytest.approx(log_time, abs=30)
        replica.gateway.wall = lambda: 0.0  # type: ignore[method-assign]
        assert (await replica.http.get("/v1/events")).json()["now"] >= summary["now"]
        assert (await replica.http.get("/v1/history?seconds=60")).json()["now"] >= history["now"]

    http_world.run(story, pools={"default": PoolSettings(max_workers=0)})


def test_doctor_tells_what_a_running_service_says_of_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a service whose journal's time has jumped at its start, and is known here
    monkeypatch.setenv("JOBSVC_RUN_DIR", str(tmp_path))
    settings = Settings(data=str(tmp_path / "data"))
    with LocalService(data="memory") as service:
        state = service._manager.state
        state.jump_seconds, state.jumped_at = 8.1 * DAY, state.log_time
        assert doctor._told_by_service(settings) is None
        write_down(ServiceInfo(settings.service, [service.url], None, "", "memory"), tmp_path)
        # then doctor says so
        findings = [each.found for each in doctor._clocks(settings)]
        assert any("jumped by 8.1 days" in each for each in findings)
    # and without one it looks at the store
    assert doctor._told_by_service(settings) is None
