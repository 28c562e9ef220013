"""jobsvc and other job queues, the same work on the same machine: `python -m benchmarks.compare`.

Each measurement is a session of its own (`benchmarks.peers.keeper`): a fresh broker or service, two worker
processes, one client on the same cores. Sessions go in rounds, every peer once in each, so that a noisy
minute does not fall upon one peer alone. Every number is a line of JSON, written at once, with the machine,
the versions and the load before it; tables and picture are made from those lines, also later:

    python -m benchmarks.compare --report FILE.jsonl

A peer that cannot be measured, or fails, is told with its reason; the others go on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from .compare_lines import Line, latest, read_lines
from .compare_plot import picture
from .compare_report import report
from .machine import cpu
from .peers import environments
from .peers.environments import Unmeasured
from .peers.peer import ROOT
from .peers.roster import PEERS

ROUNDS = 3
QUICK_SCALE, QUICK_CRASH_SECONDS = 0.02, 12.0
CRASH_SECONDS = 20.0
MEMORIES_AT_ONCE, CRASHES_AT_ONCE = 2, 4  # neither is a matter of speed: these jobs wait, or sleep
SESSION_SECONDS_MAX = 420.0
KEEPER_SECONDS_MAX = 90.0  # beyond the session's own limit, for ending everything
SYNC_WRITES, SYNC_BYTES = 200, 8192


class Session(NamedTuple):
    """What is measured in one go."""

    peer: str
    mode: str
    part: str
    round: int


# --- what is to be done ------------------------------------------------------------------------------


def sessions(peers: list[str], parts: list[str], rounds: int) -> Iterator[Session]:
    """Speed in rounds; memory and crash once, except that jobsvc's own crash is in every round.

    For jobsvc the time after a crash is a figure; for others it is whether the jobs run at all.
    """
    for number in range(1, rounds + 1):
        for peer in peers:
            entry = PEERS[peer]
            if "speed" in parts:
                for mode in entry.modes:
                    yield Session(peer, mode, "speed", number)
            if "crash" in parts and peer == "jobsvc":
                yield Session(peer, entry.modes[0], "crash", number)
    for part in ("memory", "crash"):
        for peer in peers:
            entry = PEERS[peer]
            if part in parts and entry.memory_jobs and (peer, part) != ("jobsvc", "crash"):
                # what a queue holds, and whom it forgets, does not depend on fsync; filling it does
                quickest = "everysec" if "everysec" in entry.modes else entry.modes[0]
                yield Session(peer, quickest, part, 1)


# --- doing it ----------------------------------------------------------------------------------------


class Run:
    """Sessions one after the other, or a few at once, and where their lines go."""

    def __init__(self, options: argparse.Namespace, facts: dict[str, Any]) -> None:
        self._options = options
        self._facts = facts
        self._pythons: dict[str, str] = {}
        self._keepers: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def prepare(self, peers: list[str]) -> list[str]:
        """Make environments; returns who can be measured."""
        for peer in peers:
            print(f"{peer}: making it ready", flush=True)
            try:
                self._pythons[peer] = environments.python_of(PEERS[peer])
            except Unmeasured as error:
                self._write(Session(peer, "", "setup", 0), {"measure": "failed", "reason": str(error)}, 0.0)
        return [peer for peer in peers if peer in self._pythons]

    def all(self, wanted: list[Session]) -> None:
        """Alone whatever is a figure of speed or of jobsvc, the rest side by side."""
        try:
            for session in wanted:
                if session.part == "speed" or session.peer == "jobsvc":
                    self.one(session)
            for part, at_once in (("memory", MEMORIES_AT_ONCE), ("crash", CRASHES_AT_ONCE)):
                others = [each for each in wanted if each.part == part and each.peer != "jobsvc"]
                with ThreadPoolExecutor(at_once) as pool:
                    list(pool.map(self.one, others))
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        """A keeper ends its session when nobody listens any more."""
        self._stopped = True
        for keeper in list(self._keepers):
            _hang_up(keeper)

    def one(self, session: Session) -> None:
        if self._stopped:
            return
        load, began = os.getloadavg()[0], time.monotonic()
        keeper = subprocess.Popen(
            self._command(session),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is ours: keepers learn of it by their pipe, and tidy up
        )
        self._keepers.add(keeper)
        try:
            failed = self._read(session, keeper, load)
        finally:
            _hang_up(keeper)
            _wait_or_kill(keeper)
            self._keepers.discard(keeper)
        if keeper.returncode != 0 and not failed:
            failed = True
            reason = f"its keeper ended with {keeper.returncode}"
            self._write(session, {"measure": "failed", "reason": reason}, load)
        if not failed:
            seconds = time.monotonic() - began
            self._write(session, {"measure": "session", "value": seconds, "unit": "s"}, load)

    def _read(self, session: Session, keeper: subprocess.Popen[str], load: float) -> bool:
        assert keeper.stdout is not None
        failed = False
        for text in keeper.stdout:
            try:
                found = json.loads(text)
            except ValueError:
                print(text, end="", file=sys.stderr)  # a library that talks
                continue
            failed = failed or found["measure"] == "failed"
            self._write(session, found, load)
        return failed

    def _command(self, session: Session) -> list[str]:
        options = {
            "--peer": session.peer,
            "--mode": session.mode,
            "--part": session.part,
            "--python": self._pythons[session.peer],
            "--data": str(self._options.data),
            "--scale": str(self._options.scale),
            "--crash-seconds": str(self._options.crash_seconds),
            "--limit-seconds": str(SESSION_SECONDS_MAX + self._options.crash_seconds),
        }
        words = [word for pair in options.items() for word in pair]
        return [sys.executable, "-m", "benchmarks.peers.keeper", *words]

    def _write(self, session: Session, found: dict[str, Any], load: float) -> None:
        line = {
            "at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            **session._asdict(),
            **found,
            "load_before": round(load, 2),
            "scale": self._options.scale,
            "versions": environments.versions(PEERS[session.peer]),
            **self._facts,
        }
        with self._lock, self._options.lines.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        value = found.get("value")
        told = found.get("reason", "not seen") if value is None else f"{value:,.4g} {found['unit']}"
        print(f"{' '.join(map(str, session))}: {found['measure']} {told}", flush=True)


def _hang_up(keeper: subprocess.Popen[str]) -> None:
    assert keeper.stdin is not None
    try:
        keeper.stdin.close()
    except BrokenPipeError:
        return


def _wait_or_kill(keeper: subprocess.Popen[str]) -> None:
    """One that hangs is a failure of its session, not of the run."""
    try:
        keeper.wait(KEEPER_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()


# --- where it is done --------------------------------------------------------------------------------


def facts(data: Path) -> dict[str, Any]:
    """What the numbers depend on."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    disks = [each for each in psutil.disk_partitions(all=True) if data.is_relative_to(each.mountpoint)]
    disk = max(disks, key=lambda each: len(each.mountpoint)).fstype
    return {
        "machine": f"{cpu()}, Linux {platform.release()}, Python {platform.python_version()}, {disk}",
        "sync_ms": round(sync_seconds(data) * 1000, 3),
        "commit": commit,
    }


def sync_seconds(data: Path) -> float:
    """One small write and its fdatasync: what durability costs on this disk, for everybody."""
    with tempfile.TemporaryFile(dir=data, buffering=0) as file:
        began = time.perf_counter()
        for _ in range(SYNC_WRITES):
            file.write(bytes(SYNC_BYTES))
            os.fdatasync(file.fileno())
        return (time.perf_counter() - began) / SYNC_WRITES


# --- the command -------------------------------------------------------------------------------------


def main() -> None:
    options = _options()
    if options.report is not None:
        print(publish(options.report, options.picture))
        return
    measured = {_session_of(line) for line in read_lines(options.lines) if line.measure == "session"}
    options.lines.parent.mkdir(parents=True, exist_ok=True)
    run = Run(options, facts(options.data))
    peers = run.prepare(options.only)
    run.all([each for each in sessions(peers, options.parts, options.rounds) if each not in measured])
    print(publish(options.lines, options.picture))


def _session_of(line: Line) -> Session:
    return Session(line.peer, line.mode, line.part, line.round)


def publish(lines: Path, picture_path: Path | None) -> str:
    """Writes tables and picture beside the lines, or the picture where it is wanted; returns the tables."""
    found = latest(read_lines(lines))
    text = report(found)
    lines.with_suffix(".md").write_text(text)
    (picture_path or lines.with_suffix(".svg")).write_text(picture(found))
    return text


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = list(PEERS)
    parser.add_argument("--only", type=lambda text: text.split(","), default=known, help=", ".join(known))
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["speed", "memory", "crash"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--scale", type=float, help="of all numbers of jobs")
    parser.add_argument("--crash-seconds", type=float, help="how long killed workers' jobs are waited for")
    parser.add_argument("--quick", action="store_true", help="one round, few jobs: proves that all work")
    # /var/tmp is on a disk where /tmp may be memory, where fsync costs nothing
    parser.add_argument("--data", type=Path, default=Path("/var/tmp"), help="for brokers and stores")
    parser.add_argument("--resume", dest="lines", type=Path, metavar="FILE", help="go on with these lines")
    parser.add_argument("--report", type=Path, metavar="FILE", help="tables and picture of these lines")
    parser.add_argument("--picture", type=Path, metavar="SVG", help="where the picture goes")
    options = parser.parse_args()
    if unknown := set(options.only) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    defaults = (QUICK_SCALE, QUICK_CRASH_SECONDS, 1) if options.quick else (1.0, CRASH_SECONDS, ROUNDS)
    options.scale = options.scale or defaults[0]
    options.crash_seconds = options.crash_seconds or defaults[1]
    options.rounds = options.rounds or defaults[2]
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    options.lines = options.lines or environments.FOLDER / f"compare-{stamp}.jsonl"
    return options


if __name__ == "__main__":
    main()
