"""What a raylet's logs say of processes that were to become workers, and ended before Ray knew them.

Ray tells nobody: it waits a minute, writes a line into its log, and starts another such process. Until then,
and after, their actor is only "being started". But the raylet writes down each process that it starts; one
that is gone, and has never opened a log of its own, ended on its way. What it said is in the raylet's own
error log. Only the logs of this machine can be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

TAIL_BYTES = 512 * 1024
SAID_BYTES = 4 * 1024
SAID_CHARACTERS_MAX = 200

_STARTED = re.compile(rb"\[(\d{4}-\d\d-\d\d [\d:]+).*Started worker process with pid (\d+) worker_id=(\w+)")
_RAYS_OWN = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:")


def words_about_the_dead(logs: Path, is_alive: Callable[[int], bool]) -> str | None:
    """The last process that ended on its way, what was said last, and where; None if all came through."""
    dead: tuple[str, int] | None = None
    count = 0
    for at, pid, worker in _STARTED.findall(_tail(logs / "raylet.out", TAIL_BYTES)):
        if not is_alive(int(pid)) and next(logs.glob(f"worker-{worker.decode()}-*"), None) is None:
            dead = at.decode(), int(pid)
            count += 1
    if dead is None:
        return None
    at, number = dead
    times = "" if count == 1 else f"; {count} have so far"
    said = _said_last(_tail(logs / "raylet.err", SAID_BYTES))
    saying = f"; what was said last: {said}" if said else ""
    what = f"a process for a worker ended before Ray knew it ({at}, pid {number}{times}){saying}"
    return f"{what}; Ray's log of it is {logs / 'raylet.err'}"


def _said_last(text: bytes) -> str:
    """The last line that Ray has not written itself."""
    lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
    others = [line for line in lines if line and not _RAYS_OWN.match(line)]
    return others[-1][:SAID_CHARACTERS_MAX] if others else ""


def _tail(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read()
    except OSError:
        return b""  # no log, no words
