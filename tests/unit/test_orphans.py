"""Packs that nobody refers to."""

from __future__ import annotations

import time

import pytest
import uuid_utils

from jobsvc.orphans import ORPHAN_SECONDS, made_at, orphaned

NOW = 1_800_000_000.0
FRESH = f"results/{int(NOW * 1000):012x}-life-000001"
OLD = f"results/{int((NOW - ORPHAN_SECONDS - 1) * 1000):012x}-life-000001"


def test_a_pack_tells_when_it_was_made() -> None:
    now = time.time()
    assert made_at(f"payloads/{uuid_utils.uuid7()}") == pytest.approx(now, abs=10.0)
    assert made_at(FRESH) == NOW
    assert made_at("payloads/not-of-ours") is None
    assert made_at("payloads/") is None


def test_only_what_is_old_and_not_referred_to_is_an_orphan() -> None:
    assert orphaned([FRESH, OLD, "payloads/strange"], {}, NOW) == [OLD]
    assert orphaned([FRESH, OLD], {OLD: 1}, NOW) == []
