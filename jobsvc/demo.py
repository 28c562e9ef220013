"""`jobsvc demo`: a service of its own, real work, and its leader killed in the middle of it.

The work: the project's own files, each hashed with sha512 some thousand times, as `jobsvc.sha512` jobs by the
old endpoint over HTTP, round after round, each round with one iteration more. When half of the results are
there, the leading manager is killed with SIGKILL. A caller that does nothing but enqueue one small job after
the other and look at it measures the longest pause that anybody saw. At the end every result is compared with
what hashlib says here; each file's chain of digests is computed once for all rounds.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from . import service
from .client import Client
from .client_tables import ProgressLine
from .errors import JobsvcError, Unavailable
from .jobs import HASH_TASK
from .settings import Settings

WORK_SECONDS = 10.0  # how long the jobs should keep the workers busy
FILES_MAX = 200
FILE_BYTES_MAX = 256 * 1024
ITERATIONS_MIN, ITERATIONS_MAX = 1_000, 100_000
CALLERS = 8
PAIR_SECONDS = 60.0
STILL_SECONDS = 60.0  # nothing ends for so long: what is missing is lost
PULSE_SECONDS = 0.02

Say = Callable[[str], None]


class Work(NamedTuple):
    """One job to do."""

    content: bytes
    iterations: int


class DemoReport(msgspec.Struct):
    """What happened. `right` is what the exit code says."""

    jobs: int = 0
    files: int = 0
    iterations: int = 0
    seconds: float = 0.0
    jobs_per_second: float = 0.0
    leader_killed: str = ""
    new_leader: str = ""
    longest_pause_seconds: float = 0.0
    caller_errors: list[str] = []
    lost: int = 0
    wrong: int = 0
    twice: int = 0
    api: str = ""
    dashboard: str = ""
    right: bool = False

    def rows(self) -> Iterator[tuple[str, str]]:
        yield "work", f"{self.jobs:,} jobs: {self.files} files, {self.iterations:,} rounds of sha512 and more"
        yield "took", f"{self.seconds:.1f} s, {self.jobs_per_second:,.0f} jobs/s"
        yield "leader killed", self.leader_killed or "none"
        yield "leader now", self.new_leader or "none"
        yield "longest pause", f"{self.longest_pause_seconds:.2f} s"
        yield "lost", str(self.lost)
        yield "wrong", str(self.wrong)
        yield "finished twice", str(self.twice)
        yield "errors that callers saw", str(len(self.caller_errors))
        yield "API", self.api
        yield "Ray dashboard", self.dashboard
        yield "result", "all is right" if self.right else "NOT right"


def run_demo(jobs: int, *, keep: bool, say: Say) -> DemoReport:
    """Start, work, kill, check, end."""
    folder = Path(tempfile.mkdtemp(prefix="jobsvc-demo-"))
    run_dir = folder / "run"
    try:
        info = service.up(Settings(data=str(folder / "data")), run_dir=run_dir, say=say)
        say(f"API {info.urls[0]}   Ray dashboard {info.dashboard_url}")
        with Client(info.urls) as client:
            report = _Demo(client, jobs, say).run()
        report.api, report.dashboard = info.urls[0], info.dashboard_url or ""
        return report
    finally:
        if keep:
            say(f"the service goes on; end it with: JOBSVC_RUN_DIR={run_dir} jobsvc down")
        else:
            service.down(run_dir=run_dir, say=say)
            shutil.rmtree(folder, ignore_errors=True)


def project_files() -> list[Path]:
    """Files of this package, and of the checkout that it is in, if it is in one."""
    package = Path(__file__).parent
    found = sorted(package.rglob("*.py"))
    checkout = package.parent
    if (checkout / "pyproject.toml").exists():
        for pattern in ("*.md", "*.toml", "*.lock", "docs/*", "tests/**/*.py", "benchmarks/*.py"):
            found += sorted(path for path in checkout.glob(pattern) if path.is_file())
    return found[:FILES_MAX]


def chosen_iterations(jobs: int) -> int:
    """As many as keep this machine's cores busy for about `WORK_SECONDS`."""
    tried = 20_000
    began = time.perf_counter()
    hashes_of(b"", {tried})
    each = (time.perf_counter() - began) / tried
    wanted = WORK_SECONDS * (os.cpu_count() or 1) / jobs / each
    return int(min(max(wanted, ITERATIONS_MIN), ITERATIONS_MAX))


def hashes_of(content: bytes, iterations: Collection[int]) -> dict[int, str]:
    """What hash jobs of this content must return, by iterations: sha512 of it, then of each digest."""
    found: dict[int, str] = {}
    digest = content
    for number in range(1, max(iterations) + 1):
        digest = hashlib.sha512(digest).digest()
        if number in iterations:
            found[number] = digest.hex()
    return found


class _Demo:
    def __init__(self, client: Client, jobs: int, say: Say) -> None:
        self._client = client
        self._say = say
        self._jobs = jobs
        self._work_by_id: dict[str, Work] = {}
        self._results: dict[str, str] = {}
        self._killed_pid = 0
        self._next_line = 0.1
        self.report = DemoReport(jobs=jobs)

    def run(self) -> DemoReport:
        report = self.report
        self._wait_for_pair()
        files = [path.read_bytes()[:FILE_BYTES_MAX] for path in project_files()]
        report.files = min(len(files), self._jobs)
        report.iterations = chosen_iterations(self._jobs)
        after = self._client.feed_end()
        self._say(f"hashing {report.files} files, {self._jobs:,} jobs")
        began = time.monotonic()
        with _Pulse(self._client.urls) as pulse:
            callers = ThreadPoolExecutor(CALLERS, "caller")
            try:
                for number in range(self._jobs):
                    rounds_before, file = divmod(number, len(files))
                    callers.submit(self._enqueue, Work(files[file], report.iterations + rounds_before))
                self._collect(after)
            finally:
                callers.shutdown(cancel_futures=True)
            report.seconds = time.monotonic() - began
        report.longest_pause_seconds = pulse.longest_seconds
        report.caller_errors += pulse.errors
        self._judge()
        return report

    def _wait_for_pair(self) -> None:
        deadline = time.monotonic() + PAIR_SECONDS
        while not {"leader", "standby"} <= {each["role"] for each in self._client.status()["managers"]}:
            if time.monotonic() > deadline:
                raise Unavailable("there is no leader with a standby")
            time.sleep(0.1)

    def _enqueue(self, work: Work) -> None:
        try:
            answer = self._client.request(
                "PUT", "/enqueue", params={"iterations": work.iterations}, content=work.content
            )
            self._work_by_id[msgspec.json.decode(answer.content)["id"]] = work
        except JobsvcError as error:
            self.report.caller_errors.append(str(error))

    def _collect(self, after: int) -> None:
        """Read results from the feed until all are there, and kill the leader when half of them are."""
        last_news = time.monotonic()
        with ProgressLine("hashed", self._jobs) as line:
            while len(self._results) < self._jobs and time.monotonic() < last_news + STILL_SECONDS:
                page = self._client.feed(after, 1.0)
                after = page.next
                for entry in page.entries:
                    if entry.task == HASH_TASK:
                        last_news = time.monotonic()
                        self.report.twice += entry.id in self._results
                        self._results[entry.id] = str(entry.result or entry.state)
                line.update(len(self._results))
                self._tell(line.is_shown)
                if len(self._results) >= self._jobs // 2 and not self._killed_pid:
                    self._kill_leader()
                time.sleep(PULSE_SECONDS)

    def _tell(self, is_shown: bool) -> None:
        """A line for each tenth, where no bar is shown."""
        share = len(self._results) / self._jobs
        if share >= self._next_line and not is_shown:
            self._say(f"{share:.0%} hashed")
            self._next_line = int(share * 10 + 1) / 10

    def _leader(self) -> tuple[str, int]:
        for manager in self._client.status()["managers"]:
            if manager["role"] == "leader":
                return f"{manager['name']} (pid {manager['pid']})", manager["pid"]
        return "", 0

    def _kill_leader(self) -> None:
        leader, pid = self._leader()
        if pid:
            os.kill(pid, signal.SIGKILL)
            self._killed_pid, self.report.leader_killed = pid, leader
            self._say(f"killed the leader: {leader}")

    def _judge(self) -> None:
        report = self.report
        report.jobs_per_second = len(self._results) / report.seconds
        report.new_leader, pid = self._leader()
        report.lost = self._jobs - len(self._results.keys() & self._work_by_id.keys())
        rounds: dict[bytes, set[int]] = {}
        for work in self._work_by_id.values():
            rounds.setdefault(work.content, set()).add(work.iterations)
        right = {content: hashes_of(content, iterations) for content, iterations in rounds.items()}
        for job_id, work in self._work_by_id.items():
            found = self._results.get(job_id)
            report.wrong += found is not None and found != right[work.content][work.iterations]
        trouble = report.lost or report.wrong or report.twice or report.caller_errors
        report.right = not trouble and pid not in (0, self._killed_pid) and self._killed_pid != 0


class _Pulse:
    """A caller that enqueues one small job after the other, looks at it, and remembers the longest wait."""

    def __init__(self, urls: list[str]) -> None:
        self.longest_seconds = 0.0
        self.errors: list[str] = []
        self._client = Client(urls)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> _Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _beat(self) -> None:
        for number in itertools.count():
            if self._stop.wait(PULSE_SECONDS):
                return
            try:
                began = time.monotonic()
                job = self._client.enqueue("jobsvc.echo", number)
                looked = time.monotonic()
                job.refresh()
                ended = time.monotonic()
            except JobsvcError as error:
                self.errors.append(str(error))
            else:
                self.longest_seconds = max(self.longest_seconds, looked - began, ended - looked)
