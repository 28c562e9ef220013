"""The range of every setting that is a number, and the form of every name: what lies outside is a mistake.

A bound says where a value makes sense no more, not what is wise: a lease of half a second works, one of no
time does not. Beyond the upper ones a service would hold memory, requests or objects that no machine has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .errors import InvalidRequest

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
DAY = 86_400.0
YEAR = 366 * DAY

Range = tuple[float, float]  # both ends belong to it

SETTINGS: dict[str, Range] = {
    "port": (1, 65_535),
    "replicas": (1, 100),
    "lease_seconds": (0.1, DAY),
    "heartbeat_seconds": (0.01, DAY),
    "outbox_after_seconds": (0, DAY),
    "orphan_seconds": (0.1, 30 * DAY),
    "takeover_silence_seconds": (2, DAY),  # a leader shows life each second
    "stepdown_seconds": (0.1, DAY),
    "idle_record_seconds": (0.01, DAY),
    "commit_interval_seconds": (0, 60),
    "request_deadline_seconds": (0.01, DAY),
    "prefetch_seconds": (0, DAY),
    "prefetch_jobs_max": (1, 1_000_000),
    "kill_grace_seconds": (0, DAY),
    "log_bytes_max": (0, GIB),
    "result_bytes_max": (1, 5 * GIB),  # what S3 takes in one PUT
    "request_bytes_max": (1, 5 * GIB),
    "inline_bytes_max": (0, MIB),
    "batch_jobs_max": (1, 1_000_000),
    "labels_max": (0, 1_000),
    "label_bytes_max": (1, 64 * KIB),
    "error_bytes_max": (1, MIB),
    "max_jobs": (1, 100_000_000),
    "retention_seconds": (0, 100 * YEAR),
    "retained_jobs_max": (0, 100_000_000),
    "idempotency_seconds": (0, YEAR),
    "snapshot_log_bytes": (1, 64 * GIB),
    "snapshot_records": (1, 100_000_000),
}
POOL: dict[str, Range] = {
    "num_cpus": (0, 10_000),
    "num_gpus": (0, 10_000),
    "memory_bytes": (1, 1024 * 1024 * GIB),
    "min_workers": (0, 100_000),
    "max_workers": (0, 100_000),
    "idle_seconds": (0, YEAR),
    "target_drain_seconds": (0, YEAR),
    "job_memory_bytes_max": (1, 1024 * 1024 * GIB),
    "max_jobs_per_process": (1, 1_000_000_000),
    "process_growth_bytes_max": (0, 1024 * 1024 * GIB),
    "process_growth_descriptors_max": (0, 1_000_000_000),
    "process_growth_threads_max": (0, 1_000_000),
}
# Part of file names, of Ray's names of actors, and of URLs.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
QUEUE_NAME_LENGTH_MAX = 128
_QUEUE_NAME = re.compile(rf"[A-Za-z0-9_.:@+-]{{1,{QUEUE_NAME_LENGTH_MAX}}}")
_SHOWN_MAX = 100  # characters of a name that is wrong
_PREFIX = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,99}){1,10}")


def check_numbers(values: Mapping[str, Any], ranges: Mapping[str, Range], where: str = "") -> None:
    """Raise InvalidRequest for the first value that is no number in its range. None is no value."""
    for name, (least, most) in ranges.items():
        value = values.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise InvalidRequest(f"must be {_number(least)} to {_number(most)}, not {value!r}", where + name)


def check_name(name: str, field: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{shown(name)} is no name: 1 to 100 letters, digits, '.', '_' and '-', the first no '.' or '-'",
            field,
        )


def is_queue_name(name: object) -> bool:
    return isinstance(name, str) and _QUEUE_NAME.fullmatch(name) is not None


def check_queue_name(name: object, field: str) -> None:
    if not is_queue_name(name):
        raise InvalidRequest(
            f"{shown(name)} is no name of a queue: 1 to {QUEUE_NAME_LENGTH_MAX} letters, digits and _.:@+-",
            field,
        )


def shown(name: object) -> str:
    """What was given for a name, however long it is."""
    text = repr(name)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}...'"


def check_route_prefix(prefix: str) -> None:
    if prefix and not _PREFIX.fullmatch(prefix):
        raise InvalidRequest(f"{prefix!r} is not /NAME or /NAME/NAME", "route_prefix")


def check_url(url: str | None, field: str) -> None:
    """An address as a program would open it; None is no value."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, brackets that do not close
        good = False
    if not good or not url.isprintable() or " " in url:
        raise InvalidRequest(f"{url!r} is not http://HOST:PORT or https://HOST", field)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
