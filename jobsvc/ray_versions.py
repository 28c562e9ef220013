"""Whether the Ray at an address is of the version that runs here, asked before anything is put into it.

Ray's processes speak only with those of their own version, of Ray and of Python. What they say when they are
not is many lines, and for some versions a silence. A head tells its version to whoever asks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata

import msgspec

from .errors import Unavailable

# where a head keeps it, in all versions since 2.0
_KEY, _NAMESPACE = b"CLUSTER_METADATA", b"cluster"

Read = Callable[[bytes, bytes], bytes | None]  # of the head's own key-value store


class _Told(msgspec.Struct):
    ray_version: str = ""
    python_version: str = ""


def check_versions(address: str, read: Read) -> None:
    """Raise Unavailable with both versions, if they differ. A head that tells none is left to Ray."""
    data = read(_KEY, _NAMESPACE)
    try:
        there = msgspec.json.decode(data or b"{}", type=_Told)
    except msgspec.DecodeError:
        return
    here = _Told(metadata.version("ray"), ".".join(map(str, sys.version_info[:3])))
    if not there.ray_version or (there.ray_version, _line(there)) == (here.ray_version, _line(here)):
        return
    raise Unavailable(
        f"ray_address: {address} is Ray {there.ray_version} on Python {there.python_version}, and jobsvc runs"
        f" here with Ray {here.ray_version} on Python {here.python_version}: both must be the same"
    )


def _line(told: _Told) -> list[str]:
    """Of Python, what must be the same in any case. Whether more must, Ray has a setting for."""
    return told.python_version.split(".")[:2]
