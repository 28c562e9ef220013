"""Errors: each one tells the caller to fix the request, to retry, or to stop.

    JobsvcError
    ├── InvalidRequest      fix the request: `field` names what is wrong
    ├── Refused             the service understood and said no; `refusal.code` says why
    │   └── CompletionsLost a reader of the feed has missed some: look by id, go on after `cursor`
    ├── Unavailable         retry, with the same ids: nobody could answer, or the outcome is unknown
    ├── JobFailed           stop: the job ended without a result (failed or cancelled)
    ├── WaitTimedOut        the job goes on; only the waiting ended
    └── Fatal               stop: this process must not go on (fenced, store unfit, data missing)
        ├── Fenced          another manager leads; leave at once, acknowledge nothing
        ├── StoreUnfit      the store cannot keep the journal's promises
        ├── DataMissing     the log goes on beyond what can be replayed: an operator must look
        └── EventNotApplied an event that this version cannot apply: an operator must look

Inside the service a "no" is a value (`Refusal`), not an exception: it crosses processes, it is an
answer that must be durable like any other, and it must not abort the batch it came in. One table,
`REFUSALS`, says what each means over HTTP.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refusal"):
    """A request that was understood and not done. `code` is a key of `REFUSALS`."""

    code: str
    detail: str
    field: str | None = None
    retry_after_seconds: float | None = None


class RefusalMeaning(msgspec.Struct, frozen=True):
    """What a refusal code means to the caller: HTTP status, title, and whether to send it again."""

    status: int
    title: str
    retryable: bool = False


REFUSALS: dict[str, RefusalMeaning] = {
    "invalid": RefusalMeaning(400, "The request is not valid"),
    "unauthorized": RefusalMeaning(401, "A valid token is needed"),
    "not_allowed": RefusalMeaning(403, "The operator has not allowed this"),
    "unknown_job": RefusalMeaning(404, "No such job"),
    "unknown_queue": RefusalMeaning(404, "No such queue"),
    "not_found": RefusalMeaning(404, "Not found"),
    "method_not_allowed": RefusalMeaning(405, "The method does not fit this address"),
    "key_reused": RefusalMeaning(409, "The idempotency key was used for another request"),
    "wrong_state": RefusalMeaning(409, "The job is in a state that does not allow this"),
    "job_failed": RefusalMeaning(409, "The job has no result: it failed or was cancelled"),
    "expired_job": RefusalMeaning(410, "The job has passed its retention"),
    "too_large": RefusalMeaning(413, "The request is too large"),
    "unsupported_type": RefusalMeaning(415, "The body's type or encoding is not taken here"),
    "unknown_task": RefusalMeaning(422, "No such task"),
    "too_many_jobs": RefusalMeaning(503, "The service holds as many jobs as it may", retryable=True),
    "no_leader": RefusalMeaning(503, "No manager could answer in time", retryable=True),
    "unknown_outcome": RefusalMeaning(503, "Not known whether this was done: send it again", retryable=True),
    "overloaded": RefusalMeaning(503, "More requests wait than the service holds", retryable=True),
    "store_silent": RefusalMeaning(503, "The store did not answer", retryable=True),
    "internal": RefusalMeaning(500, "A defect in the service"),
}


class JobsvcError(Exception):
    """Base of all errors that jobsvc raises on purpose."""


class InvalidRequest(JobsvcError):
    """The request is wrong; sending it again changes nothing. `field` names the part to fix."""

    def __init__(self, detail: str, field: str | None = None) -> None:
        super().__init__(detail if field is None else f"{field}: {detail}")
        self.detail = detail
        self.field = field


class Refused(JobsvcError):
    """The service said no."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross processes: a pool of them waits for ever for one that cannot be made again."""
        return type(self), (self.refusal,), self.__dict__


class CompletionsLost(Refused):
    """The completion feed passed jobs that it tells no more. Go on after `cursor`."""

    def __init__(self, detail: str, cursor: str) -> None:
        super().__init__(Refusal("expired_job", f"{detail}; go on after {cursor}", "after"))
        self.detail = detail
        self.cursor = cursor

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.detail, self.cursor), self.__dict__


class Unavailable(JobsvcError):
    """Nobody answered in time. What was sent may have been done: send it again under the same ids."""


class JobFailed(JobsvcError):
    """The job ended as `failed` or `cancelled`; the message carries the last attempt's error."""

    def __init__(self, detail: str, state: str = "failed", error: object = None) -> None:
        super().__init__(detail)
        self.state = state
        self.error = error


class WaitTimedOut(JobsvcError):
    """The wait ended before the job did. The job goes on."""


class Fatal(JobsvcError):
    """This process must not go on."""


class Fenced(Fatal):
    """Another manager has taken over. Nothing that is not acknowledged may be acknowledged now."""


class StoreUnfit(Fatal):
    """The store does not keep exclusive creation, or a rule on it would delete the journal."""


class DataMissing(Fatal):
    """Objects exist beyond the point where replay ends: something that was acknowledged is gone."""


class EventNotApplied(Fatal):
    """The state machine raised for an event: this version cannot follow the history any further."""
