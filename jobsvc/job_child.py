"""One job process as its worker sees it: the pipes, the board, and what was sent and not yet answered.

Nothing here waits. `job_runner` decides what to send, when to read and when to kill.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import termios
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from .job_deaths import memory_error
from .job_frames import BOARD_BYTES, LENGTH, Board, EndFrame, JobFrame, Loaded, ReadyJob, Setup, frame
from .job_output import OutputKeeper, OutputSplitter
from .jobs import ErrorInfo
from .process_tree import TOKEN_VARIABLE, ProcessTree

_PIPE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_OUTPUT_BYTES_PER_TURN = 1 << 22  # then other things get their turn
OUTPUT_PAUSE_SECONDS = 0.01
_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent)
_decode_end = msgspec.msgpack.Decoder(EndFrame).decode


class JobChild:
    """A started job process. `token` is random text, known to nobody else."""

    def __init__(self, setup: Setup, environment: Mapping[str, str], token: str, log_bytes_max: int) -> None:
        self.sent: dict[int, ReadyJob] = {}
        self.sent_bytes = 0
        self.ready = False  # its tasks are loaded, and it may run jobs
        self.is_unfit = False  # it has turned out that it cannot
        self.loaded = Loaded()
        self.jobs_left = setup.growth.jobs_max or sys.maxsize  # that it will still run
        self.exited = asyncio.Event()
        self.keeper = OutputKeeper(log_bytes_max)  # output since the last mark
        self.outputs: dict[int, bytes] = {}  # output in front of a mark, by its number
        self._log_bytes_max = log_bytes_max
        self._splitter = OutputSplitter(setup.mark_token)
        self._received = bytearray()
        self._to_write: deque[memoryview] = deque()
        self._loop = asyncio.get_running_loop()
        self._spawn(environment, token)
        self.tree = ProcessTree(self.pid, token)
        self.write(frame(setup))

    def _spawn(self, environment: Mapping[str, str], token: str) -> None:
        """Raises OSError where there is nothing to make a process of; then nothing stays open."""
        opened: list[int] = []
        try:
            for _ in range(4):
                opened += os.pipe()
            opened.append(os.memfd_create(f"jobsvc-board-{token}"))
            jobs_end, self._jobs_fd, self.results_fd, results_end, *more = opened
            self.output_fd, output_end, control_end, self._control_fd, board_fd = more
            os.ftruncate(board_fd, BOARD_BYTES)
            self.board = Board(board_fd)
            given = (jobs_end, results_end, control_end, board_fd)
            path = [_PACKAGE_PARENT, *filter(None, [environment.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobsvc.job_process", str(os.getpid()), *map(str, given)],
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=output_end,
                pass_fds=given,
                start_new_session=True,
                env={**environment, "PYTHONPATH": os.pathsep.join(path), TOKEN_VARIABLE: token},
            )
            self.pid = self._process.pid
            self.pid_fd = os.pidfd_open(self.pid)
        except OSError:
            for fd in opened:
                os.close(fd)  # a child that was started sees it, and ends
            raise
        for fd in (*given, output_end):
            os.close(fd)
        for fd in (self._jobs_fd, self.results_fd, self.output_fd):
            os.set_blocking(fd, False)
        for fd in (self.results_fd, self.output_fd):
            _enlarge(fd)

    # --- jobs ---

    def send(self, jobs: Iterable[tuple[int, ReadyJob]]) -> None:
        frames = []
        for number, job in jobs:
            self.sent[number] = job
            self.sent_bytes += len(job.payload)
            frames.append(JobFrame(number, job.job_id, job.task, job.content, job.payload))
        self.write(frame(frames))

    def settle(self, number: int) -> ReadyJob | None:
        """The job has been answered for."""
        job = self.sent.pop(number, None)
        if job is not None:
            self.sent_bytes -= len(job.payload)
        return job

    def recall(self, below: int) -> None:
        """Whatever has not started and has a number below this one will not start any more.

        When this returns, `board.current` is the job that runs, if any; those of `sent` that are neither
        that one nor in what `read_results` gives now have not started.
        """
        self.board.recall(below)
        self._output_waiting()  # a system call that locks: see job_frames about the board

    @property
    def current(self) -> tuple[int, float] | None:
        """Number and start of the job that runs now."""
        while (number := self.board.current) in self.sent:
            started = self.board.started
            if self.board.current == number:
                return number, started
        return None

    def too_large(self, bytes_max: int | None) -> ErrorInfo | None:
        """The error of the job that runs, if its processes use more memory than this.

        What earlier jobs have left in the process is not this one's.
        """
        left = self.board.left_bytes
        if bytes_max is None or (used := self.tree.outgrows(bytes_max + left)) is None:
            return None
        return memory_error(used - left, bytes_max)

    # --- pipes ---

    def write(self, data: bytes) -> None:
        self._to_write.append(memoryview(data))
        if len(self._to_write) == 1:
            self._write_on()

    def _write_on(self) -> None:
        try:
            while self._to_write:
                first = self._to_write[0]
                written = os.write(self._jobs_fd, first)
                if written < len(first):
                    self._to_write[0] = first[written:]
                else:
                    self._to_write.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._jobs_fd, self._write_on)
            return
        except BrokenPipeError:
            self._to_write.clear()  # it has died; its exit says what becomes of its jobs
        self._loop.remove_writer(self._jobs_fd)

    def read_results(self) -> list[EndFrame]:
        """All results that have come so far."""
        while data := _read(self.results_fd):
            self._received += data
        ends = []
        at = 0
        received = memoryview(self._received)
        while at + LENGTH.size <= len(received):
            (length,) = LENGTH.unpack_from(received, at)
            if at + LENGTH.size + length > len(received):
                break
            at += LENGTH.size
            ends.append(_decode_end(received[at : at + length]))
            at += length
        received.release()
        if at:
            del self._received[:at]
        return ends

    def read_output(self, everything: bool = False) -> None:
        """Take what waits in the output pipe. Bytes before a mark go to `outputs`, the rest to `keeper`."""
        taken = 0
        while self._output_waiting() and (everything or taken < _OUTPUT_BYTES_PER_TURN):
            self.board.count_read()
            data = _read(self.output_fd)
            if not data:
                return
            taken += len(data)
            for piece, number in self._splitter.feed(data):
                self.keeper.add(piece)
                if number is not None:
                    self.outputs[number] = self.keeper.take_all()
                    self.keeper = OutputKeeper(self._log_bytes_max)

    def rest_of_output(self) -> bytes:
        """What came after the last mark, when the process has died."""
        self.read_output(everything=True)
        self.keeper.add(self._splitter.rest())
        return self.keeper.take_all()

    def _output_waiting(self) -> int:
        waiting = bytearray(4)
        fcntl.ioctl(self.output_fd, termios.FIONREAD, waiting)
        return int.from_bytes(waiting, sys.byteorder)

    # --- end ---

    def watch(self, take_results: Callable[[], float], exited: Callable[[], None]) -> None:
        """Call back when there are results, which returns the pause until the next look, and at the end."""
        self._loop.add_reader(self.results_fd, self._results_waiting, take_results)
        self._loop.add_reader(self.output_fd, self._output_ready)
        self._loop.add_reader(self.pid_fd, exited)

    def _results_waiting(self, take_results: Callable[[], float]) -> None:
        self._loop.remove_reader(self.results_fd)
        pause_seconds = take_results()
        if not self.exited.is_set():
            self._loop.call_later(pause_seconds, self._watch_results, take_results)

    def _watch_results(self, take_results: Callable[[], float]) -> None:
        if not self.exited.is_set():
            self._loop.add_reader(self.results_fd, self._results_waiting, take_results)

    def _output_ready(self) -> None:
        self._loop.remove_reader(self.output_fd)
        self.read_output()
        if not self.exited.is_set():
            self._loop.call_later(OUTPUT_PAUSE_SECONDS, self._watch_output)

    def _watch_output(self) -> None:
        if not self.exited.is_set():
            self._loop.add_reader(self.output_fd, self._output_ready)

    def close(self) -> int:
        """Bury a process that has exited. Returns its exit code, or minus the signal that ended it."""
        for fd in (self.results_fd, self.output_fd, self.pid_fd):
            self._loop.remove_reader(fd)
        self._loop.remove_writer(self._jobs_fd)
        for fd in (self.results_fd, self.output_fd, self.pid_fd, self._jobs_fd, self._control_fd):
            os.close(fd)
        self.board.close()
        return self._process.wait()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return b""


def _enlarge(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass  # over this user's share: the pipe works as it is, with more turns
