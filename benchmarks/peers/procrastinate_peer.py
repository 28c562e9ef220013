"""Procrastinate on PostgreSQL. It keeps no results: a job's result is that its state is `succeeded`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import procrastinate
import psycopg

from .. import work
from .peer import RESULT_SECONDS, Peer, address, variant

BATCH_JOBS = 1000
RESULT_LOOK_SECONDS = 0.002
TABLES = ("procrastinate_jobs", "procrastinate_events")

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=address()))


@app.task(name="noop")
async def noop(text: str) -> list[float]:
    return work.noop(text)


@app.task(name="sha")
async def sha(text: str) -> list[object]:
    return work.sha(text)


@app.task(name="nap")
async def nap(text: str) -> list[float]:
    work.note("start", text)
    await asyncio.sleep(work.NAP_SECONDS)
    return work.napped(text)


TASKS = {"noop": noop, "sha": sha, "nap": nap}


class Driver(Peer):
    memory_of = "tables and indexes on disk"
    bulk_by = f"Task.batch_defer_async(), {BATCH_JOBS:,} at once"

    def open(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(app.open_async())
        self._postgres = psycopg.connect(address(), autocommit=True)
        self._loop.run_until_complete(app.schema_manager.apply_schema_async())

    def close(self) -> None:
        self._postgres.close()
        self._loop.run_until_complete(app.close_async())

    def worker_commands(self) -> list[list[str]]:
        at_once = "10" if variant() == "c10" else "1"
        worker = ["-m", "procrastinate", f"--app={__name__}.app", "--log-level=warning", "worker"]
        return [[*worker, "--concurrency", at_once]] * 2

    def enqueue_each(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        async def send() -> list[Any]:
            return [await TASKS[kind].defer_async(text=each) for each in arguments]

        return self._loop.run_until_complete(send())

    def enqueue_bulk(self, kind: str, arguments: Sequence[str]) -> list[Any]:
        async def send() -> list[Any]:
            jobs: list[Any] = []
            for first in range(0, len(arguments), BATCH_JOBS):
                part = ({"text": each} for each in arguments[first : first + BATCH_JOBS])
                jobs += await TASKS[kind].batch_defer_async(*part)
            return jobs

        return self._loop.run_until_complete(send())

    def finished(self) -> int:
        return self._number("select count(*) from procrastinate_jobs where status = 'succeeded'")

    def result(self, handle: Any) -> Any:
        """Only that it has succeeded."""
        deadline = time.monotonic() + RESULT_SECONDS
        while time.monotonic() < deadline:
            row = self._postgres.execute("select status from procrastinate_jobs where id = %s", (handle,))
            if row.fetchone() == ("succeeded",):
                return [0.0, None]
            time.sleep(RESULT_LOOK_SECONDS)
        raise TimeoutError(f"job {handle} has not succeeded")

    def results(self, handles: Sequence[Any]) -> list[Any]:
        """The time of the event `started` stands for the one that a result would carry."""
        query = """select job_id, extract(epoch from min(at)) from procrastinate_events
                   where type = 'started' group by job_id"""
        started = dict(self._postgres.execute(query).fetchall())
        return [[float(started[handle]), None] for handle in handles]

    def held(self) -> int:
        return self._number("select count(*) from procrastinate_jobs where status in ('todo', 'doing')")

    def memory_bytes(self) -> int:
        """On disk: tables and their indexes."""
        return sum(self._number("select pg_total_relation_size(%s)", table) for table in TABLES)

    def _number(self, query: str, *values: str) -> int:
        row = self._postgres.execute(query, values).fetchone()
        assert row is not None
        return int(row[0])
