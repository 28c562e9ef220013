"""A desk before a runner: it hands in jobs and keeps what is said about them, for tests of job processes."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from jobsvc.job_frames import HeldBack, JobEnded, JobKey, OutputChunk, ReadyJob
from jobsvc.job_runner import ProcessRunner
from jobsvc.jobs import Outcome
from jobsvc.settings import PoolSettings, Settings
from jobsvc.worker_parts import JobRunner

NASTY = "tests.unit.nasty_tasks"
PATIENCE_SECONDS = 30.0
_numbers = iter(range(1, 1_000_000))


def job(task: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> ReadyJob:
    name = task if "." in task else f"nasty_tasks.{task}"
    payload = msgspec.json.encode({"args": args, "kwargs": kwargs})
    return ReadyJob(next(_numbers).to_bytes(16, "big"), 1, name, "json", payload, timeout)


class Desk:
    """Hands jobs to a runner and keeps what it says about them."""

    def __init__(self, runner: JobRunner) -> None:
        self.runner = runner
        self.ends: list[JobEnded] = []
        self.output: dict[JobKey, bytes] = {}
        self.chunks: dict[JobKey, int] = {}

    def submit(self, *jobs: ReadyJob) -> None:
        self.runner.submit(jobs)

    async def listen(self) -> None:
        for event in await asyncio.wait_for(self.runner.next_events(), PATIENCE_SECONDS):
            key = (event.job_id, event.attempt)
            if isinstance(event, OutputChunk):
                assert key not in {(end.job_id, end.attempt) for end in self.ends}, "output after the end"
                self.output[key] = self.output.get(key, b"") + event.data
                self.chunks[key] = self.chunks.get(key, 0) + 1
            else:
                self.ends.append(event)

    async def end_of(self, wanted: ReadyJob) -> JobEnded:
        while True:
            found = [end for end in self.ends if (end.job_id, end.attempt) == wanted.key]
            if found:
                assert len(found) == 1, "a job ended twice"
                return found[0]
            await self.listen()

    async def run(self, *jobs: ReadyJob) -> list[JobEnded]:
        self.submit(*jobs)
        return [await self.end_of(each) for each in jobs]

    async def run_one(self, wanted: ReadyJob) -> JobEnded:
        return (await self.run(wanted))[0]

    async def until_running(self, wanted: ReadyJob) -> None:
        await until(lambda: is_running(self.runner, wanted))

    async def until_held_back(self, words: str = "") -> HeldBack:
        while (held_back := self.runner.held_back) is None or words not in held_back.why:
            await self.listen()
        return held_back

    async def until_able(self) -> None:
        while self.runner.held_back is not None:
            await self.listen()

    async def goes_on(self) -> None:
        """The next job runs as if nothing had happened."""
        after = job("jobsvc.echo", "after")
        end = await self.run_one(after)
        assert (end.outcome, end.data) == (Outcome.SUCCEEDED, b'"after"')
        assert after.key not in self.output

    def said(self, wanted: ReadyJob) -> str:
        return self.output.get(wanted.key, b"").decode()


def is_running(runner: JobRunner, wanted: ReadyJob) -> bool:
    current = runner.current
    return current is not None and (current.job_id, current.attempt) == wanted.key


async def until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)


async def published_pids(place: Place) -> list[int]:
    await until(place.exists)
    return [int(each) for each in place.read().split()]


class Place:
    """A path that a job and its test share, gone afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = str(path)

    def exists(self) -> bool:
        return self.path.exists()

    def read(self) -> str:
        return self.path.read_text()

    def touch(self) -> None:
        self.path.touch()


def is_alive(pid: int) -> bool:
    """Not so for one that has given its memory back: on a busy machine its exit may take a while more."""
    try:
        has_memory = Path(f"/proc/{pid}/statm").read_text().split()[0] != "0"
        return has_memory and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@asynccontextmanager
async def desk(pool: PoolSettings | None = None, **settings: Any) -> AsyncIterator[Desk]:
    chosen = {"tasks": (NASTY,), "kill_grace_seconds": 0.5, **settings}
    runner = ProcessRunner(Settings(pools={"default": pool or PoolSettings()}, **chosen))
    await runner.start()
    try:
        yield Desk(runner)
    finally:
        await runner.close()


Story = Callable[..., Coroutine[Any, Any, None]]


def told(story: Story) -> Callable[..., None]:
    """Let pytest run an async story."""

    @functools.wraps(story)
    def run(**fixtures: Any) -> None:
        asyncio.run(story(**fixtures))

    return run
