"""Hundreds of lives of the whole service, each told by one number."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from .service_world import play

SEEDS_PER_TEST = 20


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of takeovers tell nothing in a log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, 300, SEEDS_PER_TEST))
def test_every_accepted_job_ends_once(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        play(seed)


def test_one_seed_is_one_story() -> None:
    assert play(3).fingerprint() == play(3).fingerprint()
    assert play(3).fingerprint() != play(4).fingerprint()
