"""`jobsvc demo`: a service of its own, real work, and its leader killed in the middle of it.

The work: files of this project and of the Python that runs it, each hashed with sha512 many times, as
`jobsvc.sha512` jobs through the old endpoint over HTTP. Half way the leading manager is killed with SIGKILL.
A caller that does nothing but enqueue one small job after the other measures the longest pause that anybody
saw. At the end every result is compared with what hashlib says here.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from . import service
from .cli_output import progress_bar
from .client import Client
from .client_jobs import Job, JobSet
from .errors import Unavailable
from .settings import Settings

FILE_BYTES_MAX = 256 * 1024
ITERATIONS = 3_000
CALLERS = 8
WAIT_SECONDS = 180.0

Say = Callable[[str], None]


class DemoReport(msgspec.Struct):
    """What happened. `right` is what the exit code says."""

    jobs: int = 0
    seconds: float = 0.0
    jobs_per_second: float = 0.0
    leader_killed: str = ""
    new_leader: str = ""
    longest_pause_seconds: float = 0.0
    lost: int = 0
    wrong: int = 0
    api: str = ""
    dashboard: str = ""
    right: bool = False


def run_demo(jobs: int, *, keep: bool, say: Say) -> DemoReport:
    """Start, work, kill, check, end."""
    folder = Path(tempfile.mkdtemp(prefix="jobsvc-demo-"))
    run_dir = folder / "run"
    info = service.up(Settings(data=str(folder / "data")), run_dir=run_dir, say=say)
    try:
        with Client(info.urls) as client:
            report = _work(client, jobs, say)
        report.api, report.dashboard = info.urls[0], info.dashboard_url or ""
        return report
    finally:
        if keep:
            say(f"the service goes on; end it with: JOBSVC_RUN_DIR={run_dir} jobsvc down")
        else:
            service.down(run_dir=run_dir, say=say)
            shutil.rmtree(folder, ignore_errors=True)


def _work(client: Client, jobs: int, say: Say) -> DemoReport:
    report = DemoReport(jobs=jobs)
    after = client.feed_end()
    expected: dict[str, bytes] = {}
    pulse = _Pulse(client)
    pulse.start()
    began = time.monotonic()
    with progress_bar() as bar:
        task = bar.add_task("hashed", total=jobs)
        with ThreadPoolExecutor(CALLERS) as pool:
            for job, content in pool.map(lambda content: _enqueue(client, content), _contents(jobs)):
                expected[job.id] = content
        found = JobSet(client, list(expected), after)
        values: dict[str, str] = {}
        for job in found.as_completed(WAIT_SECONDS):
            values[job.id] = job.result(WAIT_SECONDS)
            bar.update(task, completed=len(values))
            if len(values) >= jobs // 2 and not report.leader_killed:
                report.leader_killed = _kill_leader(client, say)
    report.seconds = round(time.monotonic() - began, 2)
    report.longest_pause_seconds = round(pulse.stop(), 2)
    report.jobs_per_second = round(jobs / report.seconds)
    report.new_leader = leader_of(client)
    report.lost = jobs - len(values)
    report.wrong = sum(values[job_id] != sha512_rounds(content) for job_id, content in expected.items())
    report.right = report.lost == 0 and report.wrong == 0 and report.leader_killed != ""
    return report


def _enqueue(client: Client, content: bytes) -> tuple[Job, bytes]:
    answer = client.request("PUT", "/enqueue", params={"iterations": ITERATIONS}, content=content)
    return client.job(msgspec.json.decode(answer.content)["id"]), content


def sha512_rounds(content: bytes, iterations: int = ITERATIONS) -> str:
    """What a hash job must return: sha512 of the content, then of each digest."""
    digest = hashlib.sha512(content).digest()
    for _ in range(iterations - 1):
        digest = hashlib.sha512(digest).digest()
    return digest.hex()


def _contents(jobs: int) -> Iterator[bytes]:
    """The beginnings of real files, over and over, each time with another first byte."""
    folders = [Path(__file__).parent, Path(sysconfig.get_paths()["stdlib"])]
    files = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    contents = [path.read_bytes()[:FILE_BYTES_MAX] for path in files]
    for number in range(jobs):
        yield bytes([number // len(contents) % 256]) + contents[number % len(contents)]


def leader_of(client: Client) -> str:
    """Name and pid of the leading manager, or nothing if none leads now."""
    for manager in client.status()["managers"]:
        if manager["role"] == "leader":
            return f"{manager['name']} (pid {manager['pid']})"
    return ""


def _kill_leader(client: Client, say: Say) -> str:
    leader = leader_of(client)
    if not leader:
        raise Unavailable("no manager leads")
    os.kill(int(leader.rpartition(" ")[2].rstrip(")")), signal.SIGKILL)
    say(f"killed the leader: {leader}")
    return leader


class _Pulse:
    """A caller that enqueues one small job after the other, and remembers the longest wait."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._longest = 0.0
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _beat(self) -> None:
        try:
            for number in itertools.count():
                if self._stop.wait(0.02):
                    return
                began = time.monotonic()
                self._client.enqueue("jobsvc.echo", number)
                self._longest = max(self._longest, time.monotonic() - began)
        except BaseException as error:
            self._failure = error

    def stop(self) -> float:
        """The longest wait in seconds; raises what a call raised."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._longest
