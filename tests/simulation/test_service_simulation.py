"""Hundreds of lives of the whole service, each told by one number."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from jobsvc import recently_finished, segments

from .service_world import play


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Thousands of takeovers tell nothing in a log. And single jobs are frozen, too."""
    monkeypatch.setattr(segments, "FREEZE_MIN", 1)
    small = {"LAG": 0, "SOME": 1, "AT_ONCE_MIN": 2, "GROUP_MIN": 2, "GROUP_MAX": 3, "OPEN_MIN": 1}
    small["TOGETHER_MIN"] = 2
    for name, number in small.items():
        monkeypatch.setattr(recently_finished, name, number)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.lives(300, 20)
def test_every_accepted_job_ends_once(seeds: range) -> None:
    for seed in seeds:
        play(seed)


def test_one_seed_is_one_story() -> None:
    assert play(3).fingerprint() == play(3).fingerprint()
    assert play(3).fingerprint() != play(4).fingerprint()


def test_nobody_can_tell_what_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = [play(seed).fingerprint() for seed in range(1_000, 1_010)]
    monkeypatch.setattr(segments, "FREEZE_MIN", 10**9)
    for name in ("LAG", "AT_ONCE_MIN", "OPEN_MIN"):
        monkeypatch.setattr(recently_finished, name, 10**9)
    assert [play(seed).fingerprint() for seed in range(1_000, 1_010)] == frozen
