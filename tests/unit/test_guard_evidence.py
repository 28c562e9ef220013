"""What follows from what was seen of a head, row by row."""

from __future__ import annotations

import itertools

import pytest

from jobsvc.guard_evidence import Ec2Says, Evidence, Verdict, judge
from jobsvc.head_pulse import Sign
from jobsvc.node_settings import GuardSettings

SETTINGS = GuardSettings()
SILENT, HOLD, GONE = SETTINGS.head_silent_seconds, SETTINGS.hold_seconds, SETTINGS.gone_seconds
LONG = 1e9
LIVES, UNSURE, DEAD = Verdict.LIVES, Verdict.UNSURE, Verdict.DEAD
ENDED, COMING, RUNS = Ec2Says.GONE, Ec2Says.COMING, Ec2Says.RUNS
ANSWERED, ASKED, NOT_ASKED = Sign.ANSWERED, Sign.ASKED, Sign.NOT_ASKED

# EC2 says, what the store says, for how long, EC2's checks find it impaired -> verdict
ROWS = [
    (ENDED, NOT_ASKED, 0.0, False, UNSURE),
    (ENDED, NOT_ASKED, GONE, False, DEAD),
    (RUNS, ANSWERED, 0.0, False, LIVES),
    (RUNS, ANSWERED, LONG, False, LIVES),
    (RUNS, ANSWERED, LONG, True, LIVES),
    (COMING, ANSWERED, LONG, False, LIVES),
    (RUNS, NOT_ASKED, LONG, False, UNSURE),
    (RUNS, NOT_ASKED, LONG, True, UNSURE),
    (COMING, NOT_ASKED, LONG, False, UNSURE),
    (RUNS, ASKED, SILENT - 1, True, UNSURE),
    (RUNS, ASKED, SILENT, True, DEAD),
    (RUNS, ASKED, 3 * SILENT - 1, False, UNSURE),
    (RUNS, ASKED, 3 * SILENT, False, DEAD),
    (COMING, ASKED, HOLD - 1, False, UNSURE),
    (COMING, ASKED, HOLD, False, DEAD),
]


@pytest.mark.parametrize(("ec2", "store", "seconds", "is_impaired", "verdict"), ROWS)
def test_each_row(ec2: Ec2Says, store: Sign, seconds: float, is_impaired: bool, verdict: Verdict) -> None:
    seen = Evidence(ec2=ec2, store=store, seconds=seconds, is_impaired=is_impaired)
    assert judge(seen, SETTINGS) is verdict


def everything() -> list[Evidence]:
    return [
        Evidence(ec2=ec2, store=store, seconds=seconds, is_impaired=is_impaired, port_answers=port_answers)
        for ec2, store, seconds, is_impaired, port_answers in itertools.product(
            Ec2Says, Sign, (0.0, GONE, SILENT, 3 * SILENT, HOLD, LONG), (False, True), (False, True)
        )
    ]


def test_a_port_that_answers_is_enough() -> None:
    assert {judge(seen, SETTINGS) for seen in everything() if seen.port_answers} == {LIVES}


def test_what_ec2_calls_running_is_ended_only_if_it_was_asked_and_did_not_answer() -> None:
    dead = [seen for seen in everything() if judge(seen, SETTINGS) is DEAD and seen.ec2 is not ENDED]
    assert dead
    assert {(seen.store, seen.port_answers) for seen in dead} == {(ASKED, False)}


def test_whoever_is_silent_both_ways_is_dead_in_the_end() -> None:
    for ec2 in Ec2Says:
        assert judge(Evidence(ec2=ec2, store=ASKED, seconds=HOLD), SETTINGS) is DEAD
