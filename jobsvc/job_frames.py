"""What a worker and its job process say to each other, and the board that both can see.

Three pipes and a page of shared memory:

    jobs     worker -> child   a Setup, then lists of JobFrames
    results  child -> worker   one EndFrame for each job, written as soon as it has ended
    output   child -> worker   stdout and stderr of the job and of all that it starts, with marks between jobs
    board    both              who runs now, what was called back, how often the output was read

A frame is four bytes of length and msgpack. The child writes every result at once, so that a crash of the
next job cannot take it along; the worker reads them by the handful.

**The board.** Jobs are numbered by the worker, upwards for ever. The child writes the number of the job
that it is about to start into `current`, and only then looks at `recall_below`; the worker raises
`recall_below`, and only then looks at `current`. Each does a system call that locks between its write and
its read (the worker `FIONREAD`; the child `umask`, an atomic exchange in the kernel, which it needs anyway),
so at least one of them sees the other: a job that was called back and is not `current` will never start.
(Were that to fail, a job would run twice, which at-least-once allows, and its first attempt would be refused
as stale.)

**Whose output is it?** When a job has ended, the child writes a mark with its number into the output
pipe, but only if there may be something in front of it: bytes wait in the pipe, or the worker has read
some since the last mark. The worker raises `reads` before every read, so what is no longer in the pipe
shows there. All bytes between two marks belong to the job of the second one; a silent job costs one
`ioctl`, no write.
"""

from __future__ import annotations

import mmap
import os
import select
import struct

import msgspec

from .jobs import ErrorInfo, Outcome

JobKey = tuple[bytes, int]  # (job id, attempt)

MARK_TOKEN_BYTES = 24
_MARK_NUMBER = struct.Struct("<Q")
MARK_BYTES = MARK_TOKEN_BYTES + _MARK_NUMBER.size
LENGTH = struct.Struct("<I")
BOARD_BYTES = mmap.PAGESIZE
_PART_BYTES = 1 << 16  # what a pipe holds
READY = 0  # the number of the EndFrame that says "tasks loaded"; its data are a Loaded
RENEWED = 2**64 - 1  # the number of the EndFrame that says "no more jobs in this process"; its error says why


class GrowthLimits(msgspec.Struct, array_like=True, frozen=True):
    """What a process may have more than it had when its tasks were loaded, and a task's first run left."""

    jobs_max: int | None
    bytes_max: int
    descriptors_max: int
    threads_max: int
    left_bytes_max: int | None  # of memory since its tasks were loaded, whoever left it


class Setup(msgspec.Struct, array_like=True):
    """The first frame: what the child has to know before it runs anything."""

    tasks: tuple[str, ...]
    sys_path: list[str]
    allow_shell: bool
    allow_code: bool
    result_bytes_max: int
    error_bytes_max: int
    kill_grace_seconds: float
    growth: GrowthLimits
    mark_token: bytes


class Loaded(msgspec.Struct, array_like=True):
    """What a child has loaded: why it is not fit to run anything, if so, a line for each module."""

    problems: list[str] = []
    modules: dict[str, str] = {}  # of the project, with digests of their files
    tasks: list[str] = []


class JobFrame(msgspec.Struct, gc=False, array_like=True):
    """One job for the child."""

    number: int
    job_id: bytes
    task: str
    content: str
    payload: bytes


class EndFrame(msgspec.Struct, gc=False, array_like=True):
    """How a job ended that ended by itself. `error` is None if it succeeded."""

    number: int
    started_at: float  # wall clock
    ended_at: float
    seconds: float
    marked: bool  # a mark with this number is in the output pipe
    content: str = "json"
    data: bytes = b""
    error: ErrorInfo | None = None
    final: bool = False  # see `jobs.Finished`


class ReadyJob(msgspec.Struct, gc=False):
    """A job with its payload in hand, as the worker gives it to a runner."""

    job_id: bytes
    attempt: int
    task: str
    content: str
    payload: bytes
    timeout_seconds: float | None = None

    @property
    def key(self) -> JobKey:
        return (self.job_id, self.attempt)


class JobEnded(msgspec.Struct, gc=False):
    """A runner's word that one job has ended, and that nothing of it runs any more.

    A job that never ran is RELEASED, and ended when it started."""

    job_id: bytes
    attempt: int
    outcome: Outcome
    started_at: float  # wall clock
    ended_at: float
    seconds: float
    content: str = "json"
    data: bytes = b""
    error: ErrorInfo | None = None
    final: bool = False  # see `jobs.Finished`

    @property
    def never_ran(self) -> bool:
        return self.outcome is Outcome.RELEASED and self.ended_at <= self.started_at


class HeldBack(msgspec.Struct, frozen=True):
    """A runner can run nothing now: why, in words, and since when on the wall clock."""

    why: str
    since: float


class OutputChunk(msgspec.Struct, gc=False):
    """Some output of a job. Chunks of a job come in order, the last one before its JobEnded."""

    job_id: bytes
    attempt: int
    data: bytes


class RunningJob(msgspec.Struct, gc=False):
    """The job that runs now. `started` is on the event loop's clock."""

    job_id: bytes
    attempt: int
    task: str
    started: float


RunnerEvent = JobEnded | OutputChunk


class Board:
    """The page of shared memory. Each number is eight aligned bytes, written in one piece."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, BOARD_BYTES)
        self._numbers = memoryview(self._map).cast("Q")
        self._times = memoryview(self._map).cast("d")

    def begin(self, number: int, monotonic_seconds: float) -> None:
        self._times[1] = monotonic_seconds
        self._numbers[0] = number

    def clear(self) -> None:
        self._numbers[0] = 0

    @property
    def current(self) -> int:
        return self._numbers[0]

    @property
    def started(self) -> float:
        return self._times[1]

    @property
    def recall_below(self) -> int:
        return self._numbers[2]

    @property
    def left_bytes(self) -> int:
        """Memory that earlier jobs have left in the process: not the running one's."""
        return self._numbers[4]

    def leave_bytes(self, left_bytes: int) -> None:
        self._numbers[4] = left_bytes

    def recall(self, below: int) -> None:
        self._numbers[2] = below

    @property
    def reads(self) -> int:
        return self._numbers[3]

    def count_read(self) -> None:
        self._numbers[3] += 1

    def close(self) -> None:
        self._numbers.release()
        self._times.release()
        self._map.close()


_encoder = msgspec.msgpack.Encoder()


def frame(value: object) -> bytes:
    """A value with its length in front."""
    body = _encoder.encode(value)
    return LENGTH.pack(len(body)) + body


def mark(token: bytes, number: int) -> bytes:
    return token + _MARK_NUMBER.pack(number)


def mark_number(tail: bytes) -> int:
    """The number in the eight bytes that follow a mark's token."""
    (number,) = _MARK_NUMBER.unpack(tail)
    return int(number)


class FrameReader:
    """The child's end of the jobs pipe. Nothing is read ahead: a frame that waits shows to `poll`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._read_fd, self._close_fd = os.read, os.close  # a job may replace those of the module
        self._arrived = select.poll()
        self._arrived.register(fd, select.POLLIN)

    def read(self) -> bytes | None:
        """The next frame. None: the worker has closed the pipe, and there is nothing more to do."""
        if (head := self._exactly(LENGTH.size)) is None:
            return None
        (length,) = LENGTH.unpack(head)
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes | None:
        parts: list[bytes] = []
        while count > 0:
            if not (part := self._read_fd(self._fd, min(count, _PART_BYTES))):
                return None
            parts.append(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def is_quiet(self, milliseconds: float) -> bool:
        """Whether no frame arrives in this time."""
        return not self._arrived.poll(milliseconds)

    def close(self) -> None:
        self._close_fd(self._fd)
