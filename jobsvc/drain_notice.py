"""The word that this machine will go away: a file that the node's watchdog writes and its workers read.

A worker that starts on a machine that is being drained finds the same file, and leaves at once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

NODE_DIR = "/run/jobsvc"
NODE_DIR_VARIABLE = "JOBSVC_NODE_DIR"
FILE_NAME = "drain.json"
POLL_SECONDS = 0.5
FORGOTTEN_SECONDS = 600.0  # past the deadline, and the machine is still here: it did not go away


class DrainNotice(msgspec.Struct, frozen=True, kw_only=True):
    deadline: float  # Unix seconds
    reason: str


def node_dir(environment: Mapping[str, str]) -> Path:
    return Path(environment.get(NODE_DIR_VARIABLE) or NODE_DIR)


def write_notice(folder: Path, notice: DrainNotice) -> None:
    """Whoever reads finds all of it or none."""
    fresh = folder / f"{FILE_NAME}.new"
    fresh.write_bytes(msgspec.json.encode(notice))
    fresh.replace(folder / FILE_NAME)


def drain_deadline(folder: Path, *, now: float, booted_at: float) -> float | None:
    """When this machine should be gone; None if it stays. All in Unix seconds; the past means at once.

    A file from before this boot, or of a deadline long past, tells of a machine that did not go away. A file
    that makes no sense means now: somebody wants us to leave.
    """
    path = folder / FILE_NAME
    try:
        written_at, text = path.stat().st_mtime, path.read_bytes()
    except FileNotFoundError:
        return None
    if written_at < booted_at:
        return None
    try:
        deadline = msgspec.json.decode(text, type=DrainNotice).deadline
    except msgspec.DecodeError:
        return now
    return None if deadline < now - FORGOTTEN_SECONDS else deadline


async def when_drained(
    drain: Callable[[float], None],
    folder: Path,
    *,
    booted_at: float,
    wall: Callable[[], float],
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Call `drain` with the seconds that are left, as soon as there is a notice; again if less is left."""
    told = math.inf
    while True:
        now = wall()
        deadline = drain_deadline(folder, now=now, booted_at=booted_at)
        if deadline is not None and deadline < told:
            told = deadline
            drain(max(0.0, deadline - now))
        await asyncio.sleep(poll_seconds)
