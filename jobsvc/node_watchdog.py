"""The watchdog of a node, on every machine but the head: `python -m jobsvc.node_watchdog`.

It is no part of Ray, because it is for the times when Ray is not to be relied on. Every two seconds it asks:

- **Will EC2 take this machine?** A spot notice comes two minutes before the end: workers and Ray are told
  (`drain_notice`, `ray drain-node`). A rebalance recommendation says that a notice is likely: the same, with
  ten minutes (`JOBSVC_REBALANCE_SECONDS`; 0 ignores it). Jobs that run longer go back, and run elsewhere.
- **Is there a head?** A machine whose head is gone costs money and serves nobody. If the head's port has not
  answered for `JOBSVC_NO_HEAD_SECONDS` (600; an hour on the manager node, whose guard brings heads back), the
  machine is shut down, which terminates it. Only silence that was watched counts: a step adds its own length,
  and never more than `STEP_SECONDS_MAX`, so a machine that slept, or whose clock was set, does not wake up to
  its end.
- **Is it still the same Ray?** When the head's port was refused and then answers, the head's Ray has been
  started anew, and this node's raylet belongs to one that is gone. It would find out within a minute, and a
  leader on it would lead on meanwhile, where nobody of the new Ray can reach it. So `jobsvc-ray` is started
  again at once. (A port that just does not answer says nothing: a network was cut, and will be mended.)
- **Does the raylet live?** `ray start --block` does not end when its raylet left in good order, and then
  systemd sees nothing wrong. With a head there and no raylet, and no drain, which is a raylet's good reason
  to leave, `jobsvc-ray` is started again.

The decisions are in `NodeWatchdog`, which touches nothing; what touches the machine is `Machine`.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from .drain_notice import DrainNotice, node_dir, write_notice
from .imds import Imds, imds_client
from .logs import log_as_json
from .node_settings import WatchdogSettings, numbers_from
from .node_units import RAY_UNIT
from .ports import Answer, knock

POLL_SECONDS = 2.0
STEP_SECONDS_MAX = 10.0
SPOT_MARGIN_SECONDS = 10.0  # workers are out before EC2 pulls the plug
RAYLET_SECONDS = 45.0  # a machine that the autoscaler drains because it is idle ends sooner
RAYLET_PAUSE_SECONDS = 60.0  # Ray needs time to start
RETRY_SECONDS = 10.0
COMMAND_SECONDS = 60.0

_log = logging.getLogger("jobsvc.watchdog")


class Notices(Protocol):
    def spot_notice(self) -> float | None: ...

    def rebalance_notice(self) -> float | None: ...


class Actions(Protocol):
    """What the watchdog asks of its machine. False: it did not work, and will be asked for again."""

    def head(self) -> tuple[str | None, Answer]:
        """The address of our head, if anybody has said it, and what is said there."""
        ...

    def raylet_lives(self) -> bool: ...

    def write_notice(self, notice: DrainNotice) -> None: ...

    def drain_ray(self, notice: DrainNotice, seconds_left: float) -> bool: ...

    def restart_ray(self) -> bool: ...

    def shut_down(self) -> bool: ...


class NodeWatchdog:
    """One machine's. `step` is called every `POLL_SECONDS`, or whenever the machine gets to it."""

    def __init__(
        self,
        settings: WatchdogSettings,
        notices: Notices,
        machine: Actions,
        *,
        monotonic: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._notices = notices
        self._machine = machine
        self._monotonic = monotonic
        self._wall = wall
        self._stepped_at = monotonic()
        self._no_head_seconds = 0.0
        self._no_raylet_seconds = 0.0
        self._refused_by: str | None = None
        self._notice: DrainNotice | None = None
        self._is_ray_drained = False
        self._not_before = 0.0  # of the next try of what did not work

    def step(self) -> None:
        now = self._monotonic()
        passed = min(now - self._stepped_at, STEP_SECONDS_MAX)
        self._stepped_at = now
        self._look_for_notices()
        address, answer = self._machine.head()
        is_head_there = answer is Answer.ACCEPTED
        if self._is_another_ray(address, answer) and self._notice is None:
            _log.warning("the head's Ray was started anew, and so is this node's")
            self._machine.restart_ray()
            self._not_before = now + RAYLET_PAUSE_SECONDS
        self._no_head_seconds = 0.0 if is_head_there else self._no_head_seconds + passed
        is_whole = self._notice is not None or not is_head_there or self._machine.raylet_lives()
        self._no_raylet_seconds = 0.0 if is_whole else self._no_raylet_seconds + passed
        if now < self._not_before:
            return
        if self._no_head_seconds >= self._settings.no_head_seconds:
            _log.error("no head for %.0f s: this machine shuts down", self._no_head_seconds)
            self._try(self._machine.shut_down(), RETRY_SECONDS)
        elif self._notice is not None and not self._is_ray_drained:
            left = max(0.0, self._notice.deadline - self._wall())
            self._is_ray_drained = self._try(self._machine.drain_ray(self._notice, left), RETRY_SECONDS)
        elif self._no_raylet_seconds >= RAYLET_SECONDS:
            _log.warning("the head answers, and no raylet runs here: Ray is started again")
            self._machine.restart_ray()
            self._not_before = now + RAYLET_PAUSE_SECONDS

    def _is_another_ray(self, address: str | None, answer: Answer) -> bool:
        """True when the port that was refused answers. With another address, this node has been told."""
        if answer is Answer.REFUSED:
            self._refused_by = address
        elif answer is Answer.ACCEPTED:
            was_refused = self._refused_by is not None and self._refused_by == address
            self._refused_by = None
            return was_refused
        return False

    def _look_for_notices(self) -> None:
        """A spot notice counts whenever it comes; a recommendation only before one."""
        spot = self._notices.spot_notice()
        if spot is not None:
            self._announce(spot - SPOT_MARGIN_SECONDS, "EC2 takes this spot instance away")
            return
        if self._settings.rebalance_seconds > 0:
            likely_since = self._notices.rebalance_notice()
            if likely_since is not None:
                deadline = likely_since + self._settings.rebalance_seconds
                self._announce(deadline, "EC2 recommends to leave this spot instance")

    def _announce(self, deadline: float, reason: str) -> None:
        if self._notice is not None and self._notice.deadline <= deadline:
            return  # said already
        notice = DrainNotice(deadline=deadline, reason=reason)
        self._machine.write_notice(notice)
        _log.warning("%s, %.0f s from now", reason, deadline - self._wall())
        self._notice, self._is_ray_drained = notice, False

    def _try(self, worked: bool, pause_seconds: float) -> bool:
        if not worked:
            self._not_before = self._monotonic() + pause_seconds
        return worked


class Machine:
    """The rim: files, processes, commands."""

    def __init__(self, folder: Path, *, is_root: bool) -> None:
        self._folder = folder
        self._sudo = [] if is_root else ["sudo", "-n"]

    def head(self) -> tuple[str | None, Answer]:
        address = self._head()
        return address, Answer.NONE if address is None else knock(address)

    def raylet_lives(self) -> bool:
        return raylet_node_id() is not None

    def write_notice(self, notice: DrainNotice) -> None:
        write_notice(self._folder, notice)

    def drain_ray(self, notice: DrainNotice, seconds_left: float) -> bool:
        """Keep Ray from placing anything here. True too if there is no raylet that it could use."""
        address, node_id = self._head(), raylet_node_id()
        if node_id is None:
            return True
        words = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address or ""]
        words += ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        words += ["--reason-message", notice.reason]
        words += ["--deadline-remaining-seconds", str(math.ceil(seconds_left))]
        return address is not None and _done(words)

    def restart_ray(self) -> bool:
        return _done([*self._sudo, "systemctl", "restart", RAY_UNIT])

    def shut_down(self) -> bool:
        return _done([*self._sudo, "shutdown", "-h", "now"])

    def _head(self) -> str | None:
        try:
            return (self._folder / "head").read_text().strip() or None
        except FileNotFoundError:
            return None


def raylet_node_id() -> str | None:
    """The id of this node in Ray, as its raylet was started with."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet":
            for word in process.info["cmdline"] or ():
                if word.startswith("--node_id="):
                    return str(word.partition("=")[2])
    return None


def _done(words: list[str]) -> bool:
    """Run it; what goes wrong is logged, and its caller tries again."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.error("`%s` failed: %s", " ".join(words), error)
        return False
    if done.returncode != 0:
        _log.error("`%s` failed: %s", " ".join(words), done.stderr[-1000:])
    return done.returncode == 0


def main() -> None:
    log_as_json()
    watchdog = NodeWatchdog(
        numbers_from(os.environ, "JOBSVC_", WatchdogSettings),
        Imds(imds_client(os.environ), time.monotonic),
        Machine(node_dir(os.environ), is_root=os.geteuid() == 0),
        monotonic=time.monotonic,
        wall=time.time,
    )
    while True:
        watchdog.step()
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
