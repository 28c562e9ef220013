"""Handles of the client: one job, and a set of jobs that were sent together."""

from __future__ import annotations

import html
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from .errors import JobFailed, WaitTimedOut

if TYPE_CHECKING:
    from .client import Client

TERMINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
LONG_POLL_SECONDS = 20.0


class Job:
    """One job. Attributes ask the service when they have to; a finished job is remembered."""

    def __init__(self, client: Client, job_id: str) -> None:
        self.id = job_id
        self._client = client
        self._document: dict[str, Any] | None = None
        self._value: Any = None
        self._has_value = False

    def __repr__(self) -> str:
        state = self._document["state"] if self._document else "?"
        return f"<Job {self.id} {state}>"

    def _repr_html_(self) -> str:
        document = self.refresh()
        cells = "".join(
            f"<td>{html.escape(str(document[name]))}</td>" for name in ("id", "task", "state", "attempt")
        )
        return (
            f"<table><tr><th>id</th><th>task</th><th>state</th><th>attempt</th></tr><tr>{cells}</tr></table>"
        )

    def refresh(self) -> dict[str, Any]:
        """The job's document as it is now."""
        if self._document is None or self._document["state"] not in TERMINAL_STATES:
            self._document = self._client.get(f"/v1/jobs/{self.id}")
        assert self._document is not None
        return self._document

    @property
    def state(self) -> str:
        return str(self.refresh()["state"])

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The attempts that have ended, oldest first."""
        attempts: list[dict[str, Any]] = self.refresh()["attempts"]
        return attempts

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until the job has ended; returns its document. Raises WaitTimedOut."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = (
                LONG_POLL_SECONDS if deadline is None else min(LONG_POLL_SECONDS, deadline - time.monotonic())
            )
            answer = self._client.request(
                "GET",
                f"/v1/jobs/{self.id}",
                headers={"Prefer": f"wait={max(0.0, left):.3f}"},
                wait_seconds=max(0.0, left),
            )
            document: dict[str, Any] = msgspec.json.decode(answer.content)
            self._document = document
            if document["state"] in TERMINAL_STATES:
                return document
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimedOut(f"job {self.id} is {document['state']} after {timeout:g} s")

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned. Raises JobFailed, WaitTimedOut."""
        if self._has_value:
            return self._value
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = (
                LONG_POLL_SECONDS if deadline is None else min(LONG_POLL_SECONDS, deadline - time.monotonic())
            )
            answer = self._client.request(
                "GET",
                f"/v1/jobs/{self.id}/result",
                headers={"Prefer": f"wait={max(0.0, left):.3f}"},
                wait_seconds=max(0.0, left),
                good=(200, 202, 409),
            )
            if answer.status_code == 200:
                self._keep(answer.headers.get("Content-Type", ""), answer.content)
                return self._value
            if answer.status_code == 409:
                raise self._failure()
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimedOut(f"job {self.id} has no result after {timeout:g} s")

    def _keep(self, content_type: str, content: bytes) -> None:
        is_json = content_type.startswith("application/json")
        self._value = msgspec.json.decode(content) if is_json else content
        self._has_value = True

    def keep_result(self, value: Any) -> None:
        """Remember a result that came another way."""
        self._value, self._has_value = value, True

    def _failure(self) -> JobFailed:
        document = self.refresh()
        last = document["attempts"][-1]["error"] if document["attempts"] else None
        text = f"{last['type']}: {last['message']}" if last else document["state"]
        return JobFailed(f"job {self.id} ({document['task']}): {text}", document["state"], last)

    def cancel(self) -> str:
        """Ask for the end of this job; returns its state: `running` means asked for, not yet confirmed."""
        self._document = None
        answer = self._client.request("POST", f"/v1/jobs/{self.id}/cancel")
        return str(msgspec.json.decode(answer.content)["state"])

    def retry(self) -> str:
        """Put a failed or cancelled job back, its attempts unspent."""
        self._document, self._has_value = None, False
        answer = self._client.request("POST", f"/v1/jobs/{self.id}/retry")
        return str(msgspec.json.decode(answer.content)["state"])

    def logs(self, attempt: int | None = None) -> str:
        """What the job has written to stdout and stderr."""
        params = {} if attempt is None else {"attempt": attempt}
        headers = {"Accept": "text/plain"}
        return self._client.request("GET", f"/v1/jobs/{self.id}/logs", params=params, headers=headers).text


class JobSet:
    """Jobs that were sent together. Waiting reads the completion feed from where they were sent."""

    def __init__(self, client: Client, ids: Sequence[str], after: int) -> None:
        self.ids = list(ids)
        self._client = client
        self._after = after
        self._open = set(self.ids)
        self._ended: dict[str, str] = {}  # id -> state
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Job]:
        return (self.job(job_id) for job_id in self.ids)

    def __repr__(self) -> str:
        return f"<JobSet of {len(self)}, {len(self._open)} not ended>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{name}</td><td>{count}</td></tr>" for name, count in self.counts().items())
        return f"<table><tr><th>state</th><th>jobs</th></tr>{rows}</table>"

    def job(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None:
            job = self._jobs[job_id] = Job(self._client, job_id)
        return job

    def counts(self) -> dict[str, int]:
        """Jobs by state, as far as the feed has been read; `open` are those not known to have ended."""
        return {"open": len(self._open), **Counter(self._ended.values())}

    def as_completed(self, timeout: float | None = None) -> Iterator[Job]:
        """Each job as it ends, those that have ended already first. Raises WaitTimedOut."""
        yield from [self.job(job_id) for job_id in self._ended]
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._open:
            left = LONG_POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimedOut(
                    f"{len(self._open)} of {len(self)} jobs have not ended after {timeout:g} s"
                )
            yield from self._read_feed(min(left, LONG_POLL_SECONDS))

    def _read_feed(self, wait_seconds: float) -> list[Job]:
        page = self._client.feed(self._after, wait_seconds)
        ended: list[Job] = []
        for entry in page.entries:
            if entry.id not in self._open:
                continue
            self._open.discard(entry.id)
            self._ended[entry.id] = entry.state
            job = self.job(entry.id)
            if entry.state == "succeeded" and entry.result is not None:
                job.keep_result(entry.result)
            ended.append(job)
        self._after = page.next
        return ended

    def wait(self, timeout: float | None = None) -> dict[str, int]:
        """Wait until all have ended; returns the counts by state."""
        for _ in self.as_completed(timeout):
            pass
        return {name: count for name, count in self.counts().items() if name != "open"}

    def results(self, timeout: float | None = None) -> list[Any]:
        """Results in the order of the items. Raises JobFailed for the first that has none."""
        self.wait(timeout)
        return [self.job(job_id).result(timeout) for job_id in self.ids]
