"""Events: what has happened. The journal keeps them; `queue_state.apply` is the only thing that reads them.

An event says what was decided, never what to decide: replay must not depend on settings, clocks or the
version of a rule. Times are log time, unless a worker reported them. Tags are short because every record
carries them.
"""

from __future__ import annotations

import enum

import msgspec

from .jobs import Finished, JobOptions, NewJob


class Change(enum.Enum):
    """The causes that move a job between states; the letters label the arrows of the drawing."""

    PROMOTE = "p"  # its time has come
    LEASE = "l"  # a worker got the right to an attempt
    SUCCEED = "s"  # the attempt returned a result
    FAIL = "f"  # the attempt ended badly and nothing is left to spend
    RETRY_LATER = "r"  # the attempt ended badly; another one after the backoff
    GIVE_BACK = "b"  # the attempt ended without fault, or with the worker: another one at once
    CANCEL = "c"  # someone asked for it
    REVIVE = "v"  # someone put a dead job back

    __hash__ = object.__hash__  # as State's


class EpochBegan(msgspec.Struct, array_like=True, tag="ep"):
    """`jump_seconds`: log time went ahead by so much, because nobody had counted it for a while."""

    epoch: int
    manager: str
    jump_seconds: float = 0.0


class JobsEnqueued(msgspec.Struct, array_like=True, tag="en"):
    options: list[JobOptions]
    jobs: list[NewJob]


class JobsPromoted(msgspec.Struct, array_like=True, tag="pr"):
    ids: list[bytes]


class JobsLeased(msgspec.Struct, array_like=True, tag="le"):
    worker: str
    ids: list[bytes]


class AttemptsEnded(msgspec.Struct, array_like=True, tag="at"):
    """`changes[i]` and `run_ats[i]` say where the job of `finished[i]` goes."""

    worker: str
    node: str
    finished: list[Finished]
    changes: list[Change]
    run_ats: list[float | None]


class JobsCancelled(msgspec.Struct, array_like=True, tag="ca"):
    """Queued and scheduled jobs end; running ones are marked: their worker will confirm."""

    ids: list[bytes]


class JobsRevived(msgspec.Struct, array_like=True, tag="re"):
    ids: list[bytes]


class JobsPulled(msgspec.Struct, array_like=True, tag="pu"):
    ids: list[bytes]


class JobsRetired(msgspec.Struct, array_like=True, tag="rt"):
    """Terminal jobs past their retention leave memory."""

    ids: list[bytes]


class QueuePaused(msgspec.Struct, array_like=True, tag="qp"):
    queue: str
    paused: bool


class KeyRemembered(msgspec.Struct, array_like=True, tag="ke"):
    """The answer that a command's idempotency key gets from now on."""

    key: str
    fingerprint: bytes
    answer: bytes  # an encoded commands.Reply
    expires_at: float


Event = (
    EpochBegan
    | JobsEnqueued
    | JobsPromoted
    | JobsLeased
    | AttemptsEnded
    | JobsCancelled
    | JobsRevived
    | JobsPulled
    | JobsRetired
    | QueuePaused
    | KeyRemembered
)

_decoder = msgspec.msgpack.Decoder(list[Event])


def decode_events(body: bytes) -> list[Event]:
    """The events of one record's body, in order."""
    return _decoder.decode(body)
