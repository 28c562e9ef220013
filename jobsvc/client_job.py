"""The handle of one job.

A handle remembers what it was last told; `refresh` asks again. A job that has ended is not asked for its
state any more. In `async` code a job may be awaited for its result.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from . import client_tables as tables
from .client_core import TERMINAL_STATES, Answer, Wait, job_path, long_poll, problem_of
from .client_feed import FeedItem
from .client_http import LineStream
from .client_logs import follow_logs
from .errors import JobFailed
from .value_types import ValueType

if TYPE_CHECKING:
    from .client import Client


class Job:
    """One job."""

    __slots__ = ("_asked_at", "_client", "_document", "_error", "_returns", "_state", "_value", "id")

    def __init__(
        self,
        client: Client,
        job_id: str,
        document: dict[str, Any] | None = None,
        entry: FeedItem | None = None,
        returns: ValueType | None = None,
    ) -> None:
        self.id = job_id
        self._client = client
        self._returns = returns  # what the task's annotation says of the result
        self._document: dict[str, Any] | None = None
        self._asked_at: float | None = None
        self._state: str | None = None  # as last told
        self._error: dict[str, Any] | None = None
        self._value: Any = UNSET
        if document is not None:
            self._remember(document)
        if entry is not None:
            self.ended(entry)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self._state or 'not asked yet'}>"

    def _repr_html_(self) -> str:
        known = self._document or {}
        rows = [("id", self.id), ("state", tables.state_text(self._state or "-"))]
        rows += [(name, known[name]) for name in ("task", "queue", "attempt", "waiting") if known.get(name)]
        if self._error:
            rows.append(("error", self.known_error))
        return tables.table(("job", ""), rows, tables.as_of(self._asked_at))

    def _remember(self, document: dict[str, Any]) -> dict[str, Any]:
        self._document, self._state, self._asked_at = document, document["state"], time.time()
        self._error = document.get("error")
        return document

    @property
    def known_error(self) -> str:
        """Why it has failed, in a line, as last told; nobody is asked."""
        return f"{self._error['type']}: {self._error['message']}" if self._error else ""

    @property
    def known_state(self) -> str:
        """The state as last told; nobody is asked."""
        return self._state or "not asked yet"

    # --- looking ---

    def refresh(self) -> dict[str, Any]:
        """Ask the service; returns the job's document as it is now."""
        return self._remember(self._client.get(self.path()))

    def path(self, rest: str = "") -> str:
        """Its address, or that of a part of it."""
        return job_path(self.id, rest)

    @property
    def state(self) -> str:
        """The state now. A job that has ended is not asked again."""
        known = self._state
        return known if known in TERMINAL_STATES else str(self.refresh()["state"])

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The attempts that have ended, oldest first, as they are now."""
        attempts: list[dict[str, Any]] = self.refresh()["attempts"]
        return attempts

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until the job has ended; returns its document. Raises WaitTimedOut.

        With a timeout of 0 it looks once; without one it waits for as long as it takes.
        """
        talks = self._client.talks
        document = self._client.run(lambda now: talks.job_end(self.path(), Wait(timeout, now), now))
        return self._remember(document)

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned: JSON, or bytes. Raises JobFailed, WaitTimedOut."""
        return self._result(timeout)

    def fetch(self) -> Any:
        """The result of a job that has ended. Raises JobFailed, and WaitTimedOut if it was put back."""
        return self._result(0.0, has_ended=True)

    def _result(self, timeout: float | None, *, has_ended: bool = False) -> Any:
        if self._value is UNSET:
            talks = self._client.talks
            answer = self._client.run(
                lambda now: talks.job_result(
                    self.id, self.path("/result"), Wait(timeout, now), now, has_ended=has_ended
                )
            )
            self.take_result(answer)
        return self._value

    def take_result(self, answer: Answer) -> Any:
        """What the service says of the result. Raises JobFailed if there will be none."""
        if answer.status_code == 409:
            problem = problem_of(answer)
            self._state = problem.state or "failed"
            raise failure(self.id, self._state, problem.error)
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        read = msgspec.json.decode if self._returns is None else self._returns.read_result
        self._value = read(answer.content) if is_json else answer.content
        self._state = "succeeded"
        return self._value

    def look(self, seconds: float) -> None:
        """Wait until it has ended, or for a moment. Raises Unavailable if nobody answers."""
        poll = long_poll(self.path(), seconds)
        answer = self._client.request("GET", poll.path, headers=poll.headers, wait_seconds=seconds)
        self._remember(msgspec.json.decode(answer.content))

    def __await__(self) -> Generator[Any, None, Any]:
        """`await job` is its result."""
        return self._awaited().__await__()

    async def _awaited(self) -> Any:
        while self._value is UNSET:
            here = await self._client.here()
            outcome = await here.outcome(self)
            if isinstance(outcome, FeedItem):
                self.ended(outcome)
            else:
                self.take_result(outcome)
        return self._value

    def ended(self, entry: FeedItem) -> None:
        """The feed has told that this job has ended."""
        self._state, self._error = entry.state, entry.error
        if entry.state == "succeeded" and entry.result is not UNSET:
            self._value = entry.result if self._returns is None else self._returns.of_result(entry.result)

    # --- changing ---

    def cancel(self) -> str:
        """Ask for the end of this job; returns its state: `running` means asked for, not yet confirmed."""
        return self._change("/cancel")

    def retry(self) -> str:
        """Put a failed or cancelled job back, its attempts unspent; returns its state."""
        return self._change("/retry")

    def _change(self, rest: str) -> str:
        answer = self._client.request("POST", self.path(rest))
        self._value = UNSET
        return str(self._remember(msgspec.json.decode(answer.content))["state"])

    # --- logs ---

    def logs(self, attempt: int | None = None, tail: int | None = None) -> str:
        """What the job has written to stdout and stderr: of the latest attempt, or of the one given."""
        chosen = {"attempt": attempt, "tail": tail}
        params = {name: value for name, value in chosen.items() if value is not None}
        return self._client.request("GET", self.path("/logs"), params=params).text

    def follow(self, attempt: int | None = None) -> Iterator[str]:
        """What the job writes, as it comes, until it has ended; with `attempt`, until that attempt has."""
        return follow_logs(self, attempt)

    def log_stream(self, attempt: int) -> contextlib.AbstractContextManager[LineStream]:
        """The event stream of one attempt's output, opened once."""
        return self._client.stream(self.path("/logs"), {"attempt": attempt})


def failure(job_id: str, state: str, error: Any) -> JobFailed:
    """What `result` raises for a job that has ended without one."""
    error = error if isinstance(error, dict) else None
    text = f"job {job_id} has failed" if state == "failed" else f"job {job_id} was {state}"
    if error is not None and state == "failed":
        text += f": {error['type']}: {error['message']}"
    failed = JobFailed(text, state, error)
    if error is not None and error.get("traceback"):
        failed.add_note(f"The job's own traceback:\n{error['traceback']}")
    return failed
