"""Thousands of lives of the journal, each told by one number; and proof that the rules in it are needed.

The three ablations take one rule away and must be caught: if they pass, the simulation has gone blind.
"""

from __future__ import annotations

from typing import Any

import pytest

from jobsvc import journal, snapshots

from . import journal_world
from .journal_world import Violation, play

SEEDS_PER_TEST = 100


@pytest.mark.parametrize("first", range(0, 1400, SEEDS_PER_TEST))
def test_rough_worlds_lose_nothing(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        play(seed, "rough")


@pytest.mark.parametrize("first", range(0, 500, SEEDS_PER_TEST))
def test_worlds_that_prune_behind_sleeping_leaders_lose_nothing(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        play(seed, "steered")


def test_one_seed_is_one_story() -> None:
    assert play(7).store.fingerprint() == play(7).store.fingerprint()
    assert play(7).store.fingerprint() != play(8).store.fingerprint()


# --- ablations -----------------------------------------------------------------------------------


async def _forgive(*arguments: Any) -> None:
    return None


# Seeds of the steered weather that are good with all rules on: test_worlds_that_prune… plays them too.
ABLATIONS = {
    "J7": (journal.LogReader, "_refuse_if_stale_on_takeover", _forgive, (43, 68, 70, 108, 124, 262)),
    "J9": (journal, "_refuse_void_claim", _forgive, (4, 7, 8, 10, 15, 19)),
    "J11": (snapshots, "_keeps_takeovers", lambda position, ends: False, (0, 1, 2, 3, 8, 9)),
}


@pytest.mark.parametrize("rule", ABLATIONS)
def test_without_this_rule_something_is_lost(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, instead, seeds = ABLATIONS[rule]
    for seed in seeds:
        play(seed, "steered")
    monkeypatch.setattr(owner, name, instead)
    caught = 0
    for seed in seeds:
        try:
            play(seed, "steered")
        except Violation:
            caught += 1
    assert caught >= len(seeds) / 2, f"without {rule} only {caught} of {len(seeds)} worlds broke"


def test_a_violation_tells_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_world, "CALM_SECONDS", -1.0)
    with pytest.raises(Violation, match=r"replay: python -m tests\.simulation\.journal_world 3 rough"):
        play(3)
