"""stdin, stdout and stderr of a job process, put back after each job with all that was to be said.

Whatever a job did to the descriptors 0, 1 and 2, or to the objects in `sys`, they are the process's own
again. An object that was closed, or taken apart, is there for good in whatever modules hold it, as the
handlers of loggers do: the process is renewed.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import sys
import termios
from operator import attrgetter
from typing import Any, TextIO

STDIN, STDOUT, STDERR = 0, 1, 2
_LONG_SECONDS = 0.001
_AS_OPENED: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "line_buffering": True}
_looks = attrgetter("encoding", "errors", "line_buffering", "write_through")


class JobStreams:
    """Made before anything of the tasks runs."""

    def __init__(self) -> None:
        self._input_fd, self._output_fd = os.dup(STDIN), os.dup(STDOUT)  # ours, whatever becomes of 0 and 1
        self._waiting = bytearray(4)
        self._set_blocking, self._dup2 = os.set_blocking, os.dup2  # not as `tripwires` or a job leaves them
        self._flush_c = ctypes.CDLL(None).fflush
        self._take()

    def _take(self) -> None:
        """Make them anew."""
        sys.stdin = sys.__stdin__ = self._stdin = open(STDIN, closefd=False)  # type: ignore[misc]  # noqa: SIM115
        sys.stdout = sys.__stdout__ = self._stdout = _open_text(STDOUT)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._stderr = _open_text(STDERR)  # type: ignore[misc]
        self._as_taken = _looks(self._stdout)

    def put_back(self, seconds: float, with_input: bool = True) -> bool:
        """After a job of so many seconds. True if one of them had to be made anew."""
        if seconds > _LONG_SECONDS:  # what it starts may do this, too: the descriptors are the same for all
            self._set_blocking(self._output_fd, True)
        if with_input:
            self._dup2(self._input_fd, STDIN)
        self._dup2(self._output_fd, STDOUT)
        self._dup2(self._output_fd, STDERR)
        anew = False
        try:
            if not (sys.stdout is self._stdout and sys.stderr is self._stderr and sys.stdin is self._stdin):
                self._put_objects()
        except AttributeError:
            self._put_objects()  # one was deleted
        try:
            if not _looks(self._stdout) == _looks(self._stderr) == self._as_taken or self._stdin.closed:
                self._reconfigure()
            if self._stdout.__dict__ or self._stderr.__dict__:
                self._stdout.__dict__.clear()  # as a `write` that is set on the object
                self._stderr.__dict__.clear()
            self._stdout.flush()
            self._stderr.flush()
        except ValueError:
            anew = True  # closed, or detached
        if anew:
            self._take()
        self._flush_c(None)  # all that `printf` and the like have kept back
        return anew

    def _reconfigure(self) -> None:
        for each in (self._stdout, self._stderr):
            each.reconfigure(**_AS_OPENED, write_through=False)
        if self._stdin.closed:
            raise ValueError("stdin was closed")

    def _put_objects(self) -> None:
        for name, ours in (("stdout", self._stdout), ("stderr", self._stderr)):
            theirs = getattr(sys, name, None)
            if theirs is not ours and theirs is not None:
                _flush(theirs)
        sys.stdin, sys.stdout, sys.stderr = self._stdin, self._stdout, self._stderr

    def write(self, data: bytes) -> None:
        """Past all buffers."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._output_fd, rest) :]
            except BlockingIOError:
                self._set_blocking(self._output_fd, True)  # the job had it otherwise

    def waiting_bytes(self) -> int:
        """How much the worker has not read yet."""
        fcntl.ioctl(self._output_fd, termios.FIONREAD, self._waiting)
        return int.from_bytes(self._waiting, sys.byteorder)


def _open_text(fd: int) -> io.TextIOWrapper:
    raw = open(fd, "wb", buffering=8192, closefd=False)  # noqa: SIM115  open for life
    return io.TextIOWrapper(raw, **_AS_OPENED)


def _flush(theirs: TextIO | Any) -> None:
    """It may be anything, in any condition; its text is all we want."""
    try:
        theirs.flush()
    except Exception as error:
        os.write(STDERR, f"output of this job could not be flushed: {error}\n".encode())
