"""One session, and nothing left of it: a folder, a broker, the peer's client, and then none of them.

The keeper is the subreaper of all that a session starts: what peers' workers or Ray leave behind becomes its
child and is found. It reads standard input. When that ends, whoever asked for the measurement is gone, killed
perhaps, and so the session ends at once. Lines of the client go to standard output as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from jobsvc.process_tree import become_subreaper

from .brokers import broker
from .peer import ROOT
from .roster import PEERS

TERM_SECONDS = 20.0
END_SECONDS = 20.0
LOOK_SECONDS = 0.1
LOG_TAIL_LENGTH = 600


class Ended(Exception):
    """The session has no result."""


class Abandoned(Exception):
    """Whoever asked for the measurement is gone."""


def main() -> None:
    options = _options()
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked to end"))
    folder = Path(tempfile.mkdtemp(prefix="jb-", dir=options.data))
    folder.chmod(0o755)  # PostgreSQL has another user
    try:
        _keep(options, folder)
    except Abandoned:
        sys.exit("nobody listens any more")
    except Exception as error:  # whatever it is, it belongs into the results
        failed = {
            "measure": "failed",
            "value": None,
            "unit": "",
            "reason": f"{type(error).__name__}: {error}",
        }
        print(json.dumps(failed), flush=True)
        sys.exit(1)
    finally:
        end_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--peer", "--mode", "--part", "--python", "--data"):
        parser.add_argument(name, required=True)
    for name in ("--scale", "--crash-seconds", "--limit-seconds"):
        parser.add_argument(name, type=float, required=True)
    return parser.parse_args()


def _keep(options: argparse.Namespace, folder: Path) -> None:
    entry = PEERS[options.peer]
    log_path = folder / "log"
    with broker(entry.broker, options.mode, folder) as address, log_path.open("wb") as log:
        environment = {
            **os.environ,
            "BENCH_BROKER": address,
            "BENCH_MODE": options.mode,
            "BENCH_VARIANT": entry.variant,
            "BENCH_FOLDER": str(folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        words = [options.peer, options.part, str(options.scale), str(options.crash_seconds)]
        client = subprocess.Popen(
            [options.python, "-m", "benchmarks.peers.session", *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            code = _wait(client, time.monotonic() + options.limit_seconds)
        finally:
            _end(client)
    if code != 0:
        raise Ended(f"exit code {code}: {log_path.read_text(errors='replace')[-LOG_TAIL_LENGTH:]}")


def _wait(client: subprocess.Popen[bytes], deadline: float) -> int:
    while (code := client.poll()) is None:
        if time.monotonic() > deadline:
            raise Ended("took too long")
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            raise Abandoned
        reap_orphans(client.pid)
    return code


def _end(client: subprocess.Popen[bytes]) -> None:
    if client.poll() is None:
        client.terminate()
        try:
            client.wait(TERM_SECONDS)
        except subprocess.TimeoutExpired:
            client.kill()
            client.wait()


def reap_orphans(client: int) -> None:
    """Bury the dead that were adopted, or whoever waits for a killed process would wait for ever."""
    while True:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None or found.si_pid == client:
            return  # the client's own end is for its `Popen` to see
        os.waitpid(found.si_pid, os.WNOHANG)


def end_descendants() -> None:
    """SIGKILL until nobody is left: the killed leave orphans, which come here."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        living = psutil.Process().children(recursive=True)
        for process in living:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        if not living:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    main()
