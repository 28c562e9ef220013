"""When a pool's next worker may be started: not while those before it die as they start, or are refused."""

from __future__ import annotations

from jobsvc.start_brake import AT_ONCE_SECONDS, EARLY_DEATH_SECONDS, PAUSE_SECONDS_MAX, StartBrake

NOON = 1_800_014_400.0


class Pool:
    """Workers of one pool, on a clock that the story moves."""

    def __init__(self) -> None:
        self.brake = StartBrake()
        self.now = 100.0

    def live_and_die(self, *names: str, seconds: float, why: str = "") -> None:
        for name in names:
            self.brake.started(name, self.now)
        self.now += seconds
        for name in names:
            self.brake.died(name, why, self.now)

    def held_back(self) -> bool:
        return not self.brake.may_start(self.now)

    def pause_seconds(self) -> float:
        """How long no worker may be started from now on."""
        began = self.now
        while self.held_back():
            self.now += 0.5
        return self.now - began


def test_workers_that_were_killed_together_are_replaced_at_once() -> None:
    pool = Pool()
    # given five workers that are young, and a machine that goes with all of them
    pool.live_and_die("w1", "w2", "w3", "w4", "w5", seconds=EARLY_DEATH_SECONDS / 2)
    assert not pool.held_back() and pool.brake.problem(pool.now, NOON) is None


def test_workers_that_die_again_and_again_as_they_start_are_started_ever_more_seldom() -> None:
    pool = Pool()
    pool.live_and_die("w1", "w2", seconds=AT_ONCE_SECONDS)
    # when those in their place die as well
    pauses = []
    for _ in range(8):
        pool.live_and_die("w3", "w4", seconds=2 * AT_ONCE_SECONDS)
        pauses.append(pool.pause_seconds())
    assert pauses == [4.0, 8.0, 16.0, 32.0, *[PAUSE_SECONDS_MAX] * 4]
    # then one that has lived for a while shows that workers can live
    pool.live_and_die("w5", seconds=EARLY_DEATH_SECONDS + 1)
    pool.live_and_die("w6", seconds=EARLY_DEATH_SECONDS / 2)
    assert not pool.held_back()


def test_a_quick_row_of_deaths_is_not_taken_for_one_accident() -> None:
    pool = Pool()
    # given workers that die as quickly as they can be started, never a second apart
    for number in range(10):
        pool.live_and_die(f"w{number}", seconds=0.6 * AT_ONCE_SECONDS)
        if pool.held_back():
            return
    raise AssertionError("it was never held back")


def test_a_start_that_is_refused_is_tried_again_ever_later_and_says_why_since_when() -> None:
    pool = Pool()
    pauses = []
    for _ in range(7):
        pool.brake.refused("ValueError: no such folder", pool.now)
        pauses.append(pool.pause_seconds())
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, PAUSE_SECONDS_MAX, PAUSE_SECONDS_MAX]
    assert pool.brake.problem(pool.now, NOON + sum(pauses)) == (
        "workers cannot be started since 12:00:00 UTC, 7 times: ValueError: no such folder; "
        "the next try is in 0 s"
    )
    # then a worker that lives ends it; one that is still starting does not
    pool.brake.started("w1", pool.now)
    pool.brake.looked(pool.now + EARLY_DEATH_SECONDS + 1, ["w1"])
    assert pool.brake.problem(pool.now, NOON) is not None
    pool.brake.looked(pool.now + EARLY_DEATH_SECONDS + 1, [])
    assert pool.brake.problem(pool.now, NOON) is None and not pool.held_back()


def test_the_end_of_those_who_say_nothing_neither_holds_back_nor_releases() -> None:
    pool = Pool()
    pool.live_and_die("w1", seconds=1.0)
    pool.live_and_die("w2", seconds=2.0)
    assert pool.held_back()
    # given one that was told to end, and one that another leader has started
    pool.brake.started("w3", pool.now)
    pool.brake.ended("w3")
    pool.brake.died("w3", "", pool.now)
    pool.brake.died("of the last leader", "", pool.now)
    # then the pause is what it was, and the next early death goes on counting
    assert pool.pause_seconds() == 4.0
    pool.live_and_die("w4", seconds=2.0)
    assert pool.pause_seconds() == 8.0


def test_the_reason_of_a_death_is_kept() -> None:
    pool = Pool()
    pool.live_and_die("w1", seconds=1.0, why="RuntimeEnvSetupError: no package")
    pool.live_and_die("w2", seconds=2.0)
    assert pool.brake.problem(pool.now, NOON) == (
        "workers die as they start since 11:59:58 UTC, 2 times: RuntimeEnvSetupError: no package; "
        "the next try is in 4 s"
    )
