"""Log time: it follows the leader's clock, and never jumps while anybody counts."""

from __future__ import annotations

from random import Random

import pytest

from jobsvc.log_clock import SPEED_MAX, SPEED_MIN, LogClock

HOUR = 3600.0
DAY = 24 * HOUR
NOON = 1_000_000.0


class Machine:
    """A monotonic clock, and one on the wall that may be wrong."""

    def __init__(self) -> None:
        self.seconds = 50.0
        self.error = 0.0

    def wall(self) -> float:
        return NOON + self.seconds + self.error

    def log_clock(self) -> LogClock:
        return LogClock(lambda: self.seconds, self.wall)


def test_a_right_clock_is_followed_to_the_second() -> None:
    machine = Machine()
    clock = machine.log_clock()
    assert clock.begin() == 0.0
    for _ in range(100):
        machine.seconds += 7.0
        assert clock.stamp() == machine.wall()
    assert clock.after(30.0) == machine.wall() + 30.0
    assert clock.at_wall(machine.wall() + 99.0) == machine.wall() + 99.0
    assert clock.ahead_seconds == 0.0


@pytest.mark.parametrize("step", [0.5, 60.0, HOUR, 9 * DAY, -0.5, -60.0, -HOUR, -9 * DAY])
def test_a_clock_that_steps_is_approached_at_a_bounded_speed(step: float) -> None:
    # given log time that is in step, when the clock is set
    machine = Machine()
    clock = machine.log_clock()
    clock.begin()
    before = clock.stamp()
    machine.error = step
    # then it is reached neither at once nor never: at twice the speed, or at half of it
    gap = abs(step)
    until = gap if step > 0 else 2 * gap
    for part in (0.25, 0.5, 0.75):
        moment = machine.seconds
        machine.seconds += until / 4
        assert clock.now() == pytest.approx(before + (machine.seconds - 50.0) * (2.0 if step > 0 else 0.5))
        assert machine.seconds > moment, part
    machine.seconds += until / 4 + 1.0
    assert clock.now() == machine.wall()


@pytest.mark.parametrize("error", [0.0, 3.0, -3.0, HOUR, -HOUR, 9 * DAY, -9 * DAY])
@pytest.mark.parametrize("delay", [0.01, 1.0, 30.0, 5 * HOUR])
def test_a_delay_takes_as_long_as_it_says_whatever_the_clock(error: float, delay: float) -> None:
    # given log time that is far from the clock
    machine = Machine()
    clock = machine.log_clock()
    clock.begin()
    clock.stamp()
    machine.error = error
    due = clock.after(delay)
    assert clock.seconds_until(due) == pytest.approx(delay)
    # then it is due when the time has passed, and no sooner
    machine.seconds += delay * 0.9
    assert clock.now() < due
    machine.seconds += delay * 0.1 + 1e-6
    assert clock.now() >= due


def test_whoever_takes_over_goes_on_from_what_it_has_heard() -> None:
    for error in (0.0, HOUR, -HOUR, 30 * DAY):
        # given a standby whose clock is wrong, and a leader that it hears
        machine = Machine()
        machine.error = error
        clock = machine.log_clock()
        clock.read(NOON - 5.0)  # from the log, in its recovery
        clock.heard(NOON)
        machine.seconds += 4.0
        # when it leads, then log time has gone on at a bounded speed
        assert clock.begin() == 0.0
        assert NOON + 4 * SPEED_MIN <= clock.stamp() <= NOON + 4 * SPEED_MAX


def test_only_a_start_from_rest_jumps_and_only_ahead() -> None:
    machine = Machine()
    # given a log whose last record is a week old
    clock = machine.log_clock()
    clock.read(machine.wall() - 7 * DAY)
    assert clock.begin() == pytest.approx(7 * DAY)
    assert clock.now() == machine.wall()
    # and one that a clock has written which was ahead
    clock = machine.log_clock()
    ahead = machine.wall() + HOUR
    clock.read(ahead)
    assert clock.begin() == 0.0 and clock.now() == ahead
    machine.seconds += 10.0
    assert clock.now() == pytest.approx(ahead + 5.0)
    # and a new store has nothing to jump from
    assert machine.log_clock().begin() == 0.0


def test_what_is_read_again_after_it_was_heard_counts_as_heard() -> None:
    machine = Machine()
    clock = machine.log_clock()
    clock.heard(NOON)
    machine.seconds += 3.0
    clock.read(NOON + 2.0)
    machine.error = DAY
    assert clock.begin() == 0.0 and clock.now() == NOON + 2.0


@pytest.mark.parametrize("seed", range(30))
def test_two_managers_and_clocks_that_step_never_make_it_jump(seed: int) -> None:
    random = Random(seed)
    machines = [Machine(), Machine()]
    clocks = [machine.log_clock() for machine in machines]
    leader = 0
    clocks[0].begin()
    last, passed = clocks[0].stamp(), 0.0
    clocks[1].heard(last)
    for _ in range(3_000):
        seconds = random.choice([0.001, 0.05, 1.0, 4.0])
        for machine in machines:
            machine.seconds += seconds
            if random.random() < 0.02:
                machine.error = random.choice([0.0, 0.3, -2.0, 60.0, HOUR, -HOUR, 3 * DAY, -30 * DAY])
        passed += seconds
        if random.random() < 0.05:  # the other one leads from now on
            leader = 1 - leader
            assert clocks[leader].begin() == 0.0
        now = clocks[leader].stamp()
        assert SPEED_MIN * passed - 1e-6 <= now - last <= SPEED_MAX * passed + 1e-6
        clocks[1 - leader].heard(now)
        last, passed = now, 0.0
