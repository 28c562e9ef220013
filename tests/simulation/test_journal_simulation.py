"""Thousands of lives of the journal, each told by one number; and proof that the rules in it are needed.

The ablations take one rule away and must be caught: if they pass, the simulation has gone blind.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobsvc import journal, read_ahead, snapshots

from . import journal_world
from .journal_world import Violation, play


@pytest.mark.lives(1_400, 100)
def test_rough_worlds_lose_nothing(seeds: range) -> None:
    for seed in seeds:
        play(seed, "rough")


@pytest.mark.lives(500, 100)
def test_worlds_that_prune_behind_sleeping_leaders_lose_nothing(seeds: range) -> None:
    for seed in seeds:
        play(seed, "steered")


def test_one_seed_is_one_story() -> None:
    assert play(7).store.fingerprint() == play(7).store.fingerprint()
    assert play(7).store.fingerprint() != play(8).store.fingerprint()


# --- ablations -----------------------------------------------------------------------------------


async def _forgive(*arguments: Any) -> None:
    return None


async def _believe(self: Any, position: Any, early: bytes | None) -> bytes | None:
    """A read-ahead that hands on that nothing was there when it looked."""
    return early


def _whatever_came_first(self: Any, n: int) -> asyncio.Task[bytes | None] | None:
    """A read-ahead that hands records on in the order of their answers."""
    come = [each for each, task in self._ahead.items() if task.done()]
    return self._ahead.pop(come[0] if come else n, None)


# Seeds of the steered weather that are good with all rules on.
ABLATIONS = {
    "J7": (journal.LogReader, "_refuse_if_stale_on_takeover", _forgive, (43, 49, 68, 108, 124, 262)),
    "J9": (journal, "_refuse_void_claim", _forgive, (5, 7, 11, 12, 15, 18)),
    "J11": (snapshots, "_keeps_takeovers", lambda position, ends: False, (0, 1, 2, 3, 5, 6)),
    "not there": (read_ahead.ReadAhead, "_at_its_turn", _believe, (0, 5, 6, 7, 8, 9)),
    "in order": (read_ahead.ReadAhead, "_taken", _whatever_came_first, (18, 51, 64, 88, 127, 161)),
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
