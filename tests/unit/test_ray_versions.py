"""A Ray of another version is named, with both versions, before anything is put into it."""

from __future__ import annotations

import json
import sys
from importlib import metadata

import pytest

from jobsvc.errors import Unavailable
from jobsvc.ray_versions import check_versions

RAY = metadata.version("ray")
PYTHON = ".".join(map(str, sys.version_info[:3]))
OTHERS_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1] + 1}.1"


def told(ray: str, python: str) -> bytes:
    """What a head keeps of itself, among other things."""
    return json.dumps({"ray_version": ray, "python_version": python, "session_id": "x"}).encode()


@pytest.mark.parametrize(("ray", "python"), [("2.9.3", PYTHON), ("3.0.0", "3.8.1"), (RAY, OTHERS_PYTHON)])
def test_another_version_is_one_line_with_both(ray: str, python: str) -> None:
    asked = []

    def read(key: bytes, namespace: bytes) -> bytes:
        asked.append((key, namespace))
        return told(ray, python)

    with pytest.raises(Unavailable) as raised:
        check_versions("10.0.0.1:6379", read)
    said = str(raised.value)
    assert asked == [(b"CLUSTER_METADATA", b"cluster")]
    assert all(each in said for each in ("ray_address", "10.0.0.1:6379", ray, python, RAY, PYTHON))
    assert "\n" not in said


@pytest.mark.parametrize("data", [told(RAY, PYTHON), None, b"", b"{}", b"no json", b'{"ray_version": 7}'])
def test_the_same_version_and_a_head_that_tells_none_are_left_to_ray(data: bytes | None) -> None:
    check_versions("10.0.0.1:6379", lambda *_: data)


def test_the_key_is_the_one_under_which_ray_keeps_it() -> None:
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER

    asked: list[tuple[bytes, bytes]] = []
    check_versions("10.0.0.1:6379", lambda *what: asked.append(what))  # type: ignore[func-returns-value]
    assert asked == [(CLUSTER_METADATA_KEY, KV_NAMESPACE_CLUSTER)]
