"""How a job moves between its states: data, and nothing else. `queue_state` says what the states mean."""

from __future__ import annotations

from .errors import JobsvcError
from .events import Change
from .jobs import State

TRANSITIONS: dict[State, dict[Change, State]] = {
    State.SCHEDULED: {
        Change.PROMOTE: State.QUEUED,
        Change.CANCEL: State.CANCELLED,
    },
    State.QUEUED: {
        Change.LEASE: State.RUNNING,
        Change.CANCEL: State.CANCELLED,
    },
    State.RUNNING: {
        Change.SUCCEED: State.SUCCEEDED,
        Change.FAIL: State.FAILED,
        Change.RETRY_LATER: State.SCHEDULED,
        Change.GIVE_BACK: State.QUEUED,
        Change.CANCEL: State.CANCELLED,
    },
    State.SUCCEEDED: {},
    State.FAILED: {Change.REVIVE: State.QUEUED},
    State.CANCELLED: {Change.REVIVE: State.QUEUED},
}


class IllegalTransition(JobsvcError):
    """An event asked for a move that the table does not have: a defect, never a bad request."""
