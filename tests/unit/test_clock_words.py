"""What an operator is told of clocks."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from jobsvc.clock_view import ClockView
from jobsvc.clock_words import clock_words
from jobsvc.object_store import MemoryObjectStore, StoreDate, date_of
from jobsvc.settings import PoolSettings

from . import http_world
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

    http_world.run(story, pools={"default": PoolSettings(max_workers=0)})
