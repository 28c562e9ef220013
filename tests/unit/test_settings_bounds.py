"""Every setting has a range, and what lies outside it is refused by name."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from jobsvc import settings_bounds
from jobsvc.errors import InvalidRequest
from jobsvc.settings import DEFAULT_POOL, PoolSettings, Settings

PAIRS = {"heartbeat_seconds": {"lease_seconds": 86_400.0}, "lease_seconds": {"heartbeat_seconds": 0.01}}
POOL_PAIRS = {"min_workers": {"max_workers": 100_000}}


def numbers_of(kind: type[msgspec.Struct]) -> set[str]:
    fields = msgspec.structs.fields(kind)
    return {field.name for field in fields if field.type in (int, float, int | None, float | None)}


def outside(least: float, most: float) -> list[Any]:
    step = 1 if isinstance(least, int) else 0.001
    return [least - step, most + 1, -math.inf, math.inf, math.nan, "1", True]


def test_no_number_is_without_a_range() -> None:
    assert numbers_of(Settings) == settings_bounds.SETTINGS.keys()
    assert numbers_of(PoolSettings) == settings_bounds.POOL.keys()


@pytest.mark.parametrize("name", settings_bounds.SETTINGS)
def test_a_setting_outside_its_range_is_named(name: str) -> None:
    least, most = settings_bounds.SETTINGS[name]
    for value in outside(least, most):
        with pytest.raises(InvalidRequest, match=f"^{name}: must be .* to .*, not "):
            Settings(**{name: value, **PAIRS.get(name, {})})
    if name != "heartbeat_seconds":  # at most half of a lease
        Settings(**{name: most, **PAIRS.get(name, {})})
    if name != "lease_seconds":
        Settings(**{name: least, **PAIRS.get(name, {})})


@pytest.mark.parametrize("name", settings_bounds.POOL)
def test_a_pool_outside_its_range_is_named(name: str) -> None:
    least, most = settings_bounds.POOL[name]

    def with_pool(value: Any) -> Settings:
        odd = PoolSettings(**{name: value, **POOL_PAIRS.get(name, {})})
        return Settings(pools={DEFAULT_POOL: PoolSettings(), "odd": odd})

    for value in outside(least, most):
        with pytest.raises(InvalidRequest, match=rf"^pools\.odd\.{name}: must be .* to .*, not "):
            with_pool(value)
    with_pool(least)
    with_pool(most)


@pytest.mark.parametrize("name", ["", "../up", "a b", "a/b", ".x", "-x", "x" * 101, "\n", "ä"])
def test_a_name_that_no_file_could_have(name: str) -> None:
    with pytest.raises(InvalidRequest, match="^service: .* is no name"):
        Settings(service=name)
    with pytest.raises(InvalidRequest, match="^pools: .* is no name"):
        Settings(pools={DEFAULT_POOL: PoolSettings(), name: PoolSettings()})


@pytest.mark.parametrize("field", ["s3_endpoint_url", "ray_dashboard_url"])
@pytest.mark.parametrize(
    "url", ["", "here", "localhost:9000", "ftp://a", "http://", "http://a:x", "http://[::1", "http://a b"]
)
def test_an_address_that_none_could_open(field: str, url: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: .* is not http"):
        Settings(**{field: url})
