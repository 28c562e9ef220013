"""The job process: where tasks run. Started by a worker, and made to be killed.

    python -m jobsvc.job_process PARENT_PID JOBS_FD RESULTS_FD CONTROL_FD BOARD_FD

It leads a session of its own, so that one signal reaches the job and what it started. It dies with its
worker, in two ways: the kernel kills it (PR_SET_PDEATHSIG), and a guard, forked before anything else,
sees the control pipe close and kills the whole process group. The guard is a process because a thread
would wait for a task that holds the interpreter's lock.

The loop: read a frame of jobs, run one after the other, write each result at once (`job_frames` says
why). Between two jobs everything is made as it was: the event loop (`job_loop`), what the job has started
(`job_children`), what a process has (`process_state`), stdout and stderr (`job_streams`). Where that cannot
be, or where what stays has grown too much (`process_growth`), the process ends before its next job, and the
worker starts another. A task sees SIGTERM as `JobKilled`, so that its `finally` blocks run; one
that takes no notice is killed when the grace is over.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from types import CoroutineType, FrameType
from typing import Any, NoReturn

import msgspec
from setproctitle import setproctitle

from .code_calls import says_its_python
from .job_calls import Call, JobKilled, NoSecondRun, call_by_value, call_of_task, check_fits, write_result
from .job_children import JobChildren
from .job_deaths import code_error
from .job_frames import READY, RENEWED, Board, EndFrame, FrameReader, JobFrame, Loaded, Setup, frame, mark
from .job_loop import JobLoop
from .job_streams import JobStreams
from .jobs import TASK_UNKNOWN, ErrorInfo, id_text
from .process_growth import ProcessGrowth
from .process_state import ProcessState
from .process_tree import become_subreaper
from .project_code import project_modules
from .tasks import CODE_REFUSED, Registry, TasksNotLoaded, builtin_registry

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_KILLED_EXIT_CODE = 128 + signal.SIGTERM
_OOM_SCORE = 900  # when memory runs out, the kernel should take the job and not its worker
_JOB_NICENESS = 5  # managers and replicas on this machine go first
_LOOK_SECONDS = 0.02  # of jobs, or without any, between two looks at everything; each takes 0.1 to 0.4 ms
_LOOKS_A_CLOSE_ONE = 5  # of those that short jobs share
_IDLE_MILLISECONDS = 2  # without jobs, before there is time for a look
_INTERRUPTIONS_MAX = 100
_QUICK_SECONDS = 0.00002  # in less no process is started, and no file opened and closed
_TITLE_IDLE = "jobsvc job (idle)"
_traceback_of = vars(BaseException)["__traceback__"].__get__  # whatever a class makes of it


class _TaskUnknown(Exception):
    """No task has this name here: nothing of the job has run."""


class JobProcess:
    """The loop, and what it restores between jobs."""

    def __init__(self, jobs_fd: int, results_fd: int, board: Board) -> None:
        self._jobs = FrameReader(jobs_fd)
        self._results_fd = results_fd
        self._board = board
        self._pid = os.getpid()
        self._streams = JobStreams()
        self._state = ProcessState()
        self._wall, self._clock = time.time, time.perf_counter  # a job may replace those of the module
        self._monotonic, self._getpid, self._write_fd = time.monotonic, os.getpid, os.write
        self._reads = 0
        self._in_job = False
        self._unseen_seconds = 0.0  # of jobs, since everything was looked at
        self._looks = 0
        self._look_due = 0.0  # in idle time: lone jobs that come one after the other share a look
        self._registry = Registry()
        self._is_fork = False
        os.register_at_fork(after_in_child=self._forget_pipes)

    # --- life ---

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._on_term)
        setup = msgspec.msgpack.decode(self._jobs.read() or b"", type=Setup)
        sys.path[:] = setup.sys_path
        self._setup = setup
        loaded = self._load(setup)
        self._children = JobChildren(setup.kill_grace_seconds)
        self._loop = JobLoop()
        setproctitle(_TITLE_IDLE)  # the first time it moves the environment
        self._streams.put_back(0.0)
        self._state.settle()
        self._growth = ProcessGrowth(setup.growth)
        self._end_output(READY)
        self._write(EndFrame(READY, 0.0, 0.0, 0.0, True, "msgpack", msgspec.msgpack.encode(loaded)))
        if loaded.problems:
            return  # the worker tries a fresh process later
        decode = msgspec.msgpack.Decoder(list[JobFrame]).decode
        while (body := self._jobs.read()) is not None:
            for job in decode(body):
                self._run_job(job)
            self._board.clear()
            setproctitle(_TITLE_IDLE)
            pause = max(_IDLE_MILLISECONDS, (self._look_due - self._clock()) * 1000)
            if self._jobs.is_quiet(pause):
                self._look()

    def _load(self, setup: Setup) -> Loaded:
        """Import the tasks, and say what was found. A process with half of them is not fit to run any."""
        self._registry = builtin_registry(setup.allow_shell)
        before = list(sys.modules)
        problems: list[str] = []
        for module in setup.tasks:
            try:
                self._registry.add_module(module)
            except TasksNotLoaded as error:
                traceback.print_exc()
                problems.append(error.detail)
        return Loaded(problems, project_modules(before), self._registry.names())

    def _write(self, end: EndFrame) -> None:
        data = frame(end)
        while (written := self._write_fd(self._results_fd, data)) < len(data):
            data = data[written:]

    def _on_term(self, number: int, at: FrameType | None) -> None:
        if os.getpid() == self._pid and self._in_job:
            raise JobKilled
        os._exit(_KILLED_EXIT_CODE)

    def _forget_pipes(self) -> None:
        """In a process that a task forked: it must not be able to take jobs or to write results.

        Once: in a fork of that one, the same numbers may be files of its own.
        """
        if not self._is_fork:
            self._is_fork = True
            self._jobs.close()
            os.close(self._results_fd)

    # --- one job ---

    def _run_job(self, job: JobFrame) -> None:
        board = self._board
        board.begin(job.number, self._monotonic())
        self._state.put_umask()  # a system call that locks: see job_frames about the board
        if job.number < board.recall_below:
            board.clear()
            return
        setproctitle(f"jobsvc job {job.task} {id_text(job.job_id)}")
        is_first = job.content != "pickle" and self._growth.begins(job.task)
        started_at = self._wall()
        started = self._clock()
        try:
            content, data, error, final = self._outcome(job)
        except Exception as late:  # an alarm that it had set, after it had returned
            content, data, error, final = "json", b"", self._error_info(late), False
        seconds = self._clock() - started
        if self._getpid() != self._pid:
            self._leave_fork()
        left = self._clear_up(seconds)
        marked = self._end_output(job.number)
        self._write(
            EndFrame(
                job.number, started_at, started_at + seconds, seconds, marked, content, data, error, final
            )
        )
        if left:
            self._leave(left)
        if self._growth.count():
            self._leave([f"it has run {self._setup.growth.jobs_max} jobs"], in_order=True)
        self._unseen_seconds += seconds
        if is_first or self._unseen_seconds > _LOOK_SECONDS:
            self._looks += 1
            is_close = is_first or seconds > _LOOK_SECONDS or self._looks % _LOOKS_A_CLOSE_ONE == 0
            self._look(is_first, is_close)

    # --- between two jobs ---

    def _clear_up(self, seconds: float) -> list[str]:
        """Make everything as it was. Names what only another process has as it was."""
        try:
            return self._clear_up_once(seconds)
        except Exception as error:  # the same as below
            interrupted = [f"{type(error).__name__} after the job"]
        while True:
            try:
                interrupted += self._state.put_all()
                return interrupted + self._clear_up_once(seconds)
            except Exception as error:  # of a handler that the job has set, for a signal or an alarm
                interrupted.append(f"{type(error).__name__} after the job")
                if len(interrupted) > _INTERRUPTIONS_MAX:
                    raise

    def _clear_up_once(self, seconds: float) -> list[str]:
        left = []
        if self._loop.put_back():
            left.append("a coroutine that cannot be cancelled")
        did_much = seconds > _QUICK_SECONDS or bool(self._state.called)
        if did_much and self._children.any() and self._children.end():
            left.append("processes that the job had left")  # its modules may know a pool that has none now
        if put := self._state.put_back():
            left += put
        if self._streams.put_back(seconds, did_much):
            left.append("stdin, stdout or stderr closed")
        return left

    def _look(self, was_first: bool = False, closely: bool = True) -> None:
        """What is too dear for each job: all that C code may have changed, and what has grown."""
        self._loop.put_back(all_of_it=True)
        left = self._state.put_all(closely)
        if self._children.any() and self._children.end():
            left.append("processes that a job had left")
        if left:
            self._leave(left)
        if grown := self._growth.look(was_first):
            self._leave(grown, in_order=True)
        self._board.leave_bytes(self._growth.left_bytes)
        self._unseen_seconds = 0.0
        self._look_due = self._clock() + _LOOK_SECONDS

    def _leave(self, why: list[str], in_order: bool = False) -> NoReturn:
        """End this process; the worker starts the next one, and sends it what has not started here.

        `in_order`: nothing is wrong with it, so modules may do what they want to have done at the end.
        """
        self._board.clear()
        self._write(EndFrame(RENEWED, 0.0, 0.0, 0.0, False, error=ErrorInfo("Renewed", "; ".join(why))))
        if in_order:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends what takes too long
            signal.setitimer(signal.ITIMER_REAL, max(self._setup.kill_grace_seconds, 0.001))
            try:
                atexit._run_exitfuncs()
            finally:
                os._exit(0)
        os._exit(0)

    def _leave_fork(self) -> None:
        """The task forked, and the other half came back here."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    def _leave_killed(self) -> None:
        try:
            self._streams.put_back(0.0)
        finally:
            os._exit(_KILLED_EXIT_CODE)

    # --- one job ---

    def _outcome(self, job: JobFrame) -> tuple[str, bytes, ErrorInfo | None, bool]:
        """Content and bytes of the result, the error, and whether another run would end in the same way."""
        try:
            self._in_job = True
            try:
                content, data = self._state.context.copy().run(self._result, job)
            finally:
                self._in_job = False
            return content, data, None, False
        except JobKilled:
            self._leave_killed()
        except _TaskUnknown as error:
            return "json", b"", self._cut(ErrorInfo(TASK_UNKNOWN, str(error))), False
        except NoSecondRun as error:
            return "json", b"", self._cut(ErrorInfo(error.kind, str(error))), True
        except SystemError as error:  # what bytecode of another Python raises, if it ends no process
            info, final = (
                self._error_info(error),
                job.content == "pickle" and not says_its_python(job.payload),
            )
            return "json", b"", self._cut(code_error(info)) if final else info, final
        except BaseException as error:  # SystemExit and KeyboardInterrupt end the job, not the process
            return "json", b"", self._error_info(error), False
        raise AssertionError("not reached")

    def _result(self, job: JobFrame) -> tuple[str, bytes]:
        call = self._resolve(job)
        return write_result(self._call(call), self._setup.result_bytes_max, call[3])

    def _call(self, call: Call) -> Any:
        function, args, kwargs, _ = call
        try:
            value = function(*args, **kwargs)
        except TypeError as error:
            check_fits(call, error, error.__traceback__ and error.__traceback__.tb_next)
            raise
        return self._loop.run(value) if type(value) is CoroutineType else value

    def _resolve(self, job: JobFrame) -> Call:
        if job.content == "pickle":
            if not self._setup.allow_code:
                raise NoSecondRun("PermissionError", CODE_REFUSED)
            return call_by_value(job.payload)
        definition = self._registry.get(job.task)
        if definition is None:
            raise _TaskUnknown(f"no task is named {job.task!r} here")
        if definition.refused is not None:
            raise NoSecondRun("PermissionError", definition.refused)
        return call_of_task(definition, job.content, job.payload)

    # --- output ---

    def _end_output(self, number: int) -> bool:
        """Write the job's mark if there may be output of it."""
        waiting = self._streams.waiting_bytes()
        reads = self._board.reads
        if waiting == 0 and reads == self._reads and number != READY:
            return False
        self._reads = reads
        self._streams.write(mark(self._setup.mark_token, number))
        return True

    # --- errors ---

    def _error_info(self, error: BaseException) -> ErrorInfo:
        kind = type(error)
        try:
            name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        except BaseException as second:  # of its own code, which may raise anything, here and below
            name = f"(its name cannot be had: {type(second).__name__})"
        own_frames = _traceback_of(error)
        while own_frames is not None and own_frames.tb_frame.f_code.co_filename == __file__:
            own_frames = own_frames.tb_next
        try:
            message = str.__str__(str(error))
        except BaseException as second:
            message = f"(its text cannot be had: {type(second).__name__})"
        try:
            text = "".join(traceback.format_exception(kind, error, own_frames))
        except BaseException as second:
            text = f"(its traceback cannot be had: {type(second).__name__})"
        return self._cut(ErrorInfo(name, message, text))

    def _cut(self, error: ErrorInfo) -> ErrorInfo:
        bytes_max = self._setup.error_bytes_max
        message = cut_text(error.message, bytes_max // 4)
        room = max(bytes_max - len(message.encode()), 0)
        return ErrorInfo(cut_text(error.type, 200), message, cut_text(error.traceback, room))


def cut_text(text: str, bytes_max: int) -> str:
    """The text as UTF-8 within the bound: head and tail are kept, the middle goes. Never fails."""
    data = str.encode(text, "utf-8", "backslashreplace")
    if len(data) <= bytes_max:
        return data.decode()
    gap = b"\n... cut ...\n"
    room = max(bytes_max - len(gap), 0)
    head = data[: room // 3].decode("utf-8", "ignore")
    tail = data[len(data) - (room - room // 3) :].decode("utf-8", "ignore")
    return head + gap.decode() + tail


# --- start ----------------------------------------------------------------------------------------


def _die_with(parent_pid: int, libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)  # it died before the kernel was told


def _start_guard(control_fd: int, other_fds: list[int], libc: ctypes.CDLL) -> None:
    """Fork the guard: it kills this process group when the worker's end of the control pipe closes.

    It is forked twice, so that it is a child of the worker: all children of this process are a job's.
    """
    group = os.getpid()
    if (between := os.fork()) != 0:
        os.close(control_fd)
        os.waitpid(between, 0)
        return
    try:
        if os.fork() != 0:
            os._exit(0)
        os.setpgid(0, 0)
        for fd in other_fds:
            os.close(fd)
        libc.prctl(_PR_SET_NAME, b"jobsvc guard", 0, 0, 0)
        while os.read(control_fd, 1):
            pass
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nobody was left
    finally:
        os._exit(0)


def _expect_to_be_chosen() -> None:
    try:
        with open("/proc/self/oom_score_adj", "r+") as score:
            if int(score.read()) < _OOM_SCORE:
                score.seek(0)
                score.write(str(_OOM_SCORE))
    except OSError:
        pass  # not a right of this process here; the worker's own memory cap still holds


def main(arguments: list[str]) -> None:
    parent_pid, jobs_fd, results_fd, control_fd, board_fd = map(int, arguments)
    libc = ctypes.CDLL(None)
    _die_with(parent_pid, libc)
    _start_guard(control_fd, [0, 1, 2, jobs_fd, results_fd, board_fd], libc)
    become_subreaper()
    os.nice(_JOB_NICENESS)
    for fd in (jobs_fd, results_fd):
        os.set_inheritable(fd, False)
    board = Board(board_fd)
    os.close(board_fd)
    _expect_to_be_chosen()
    faulthandler.enable()
    process = JobProcess(jobs_fd, results_fd, board)
    try:
        process.run()
    except BrokenPipeError:
        os._exit(1)  # the worker is gone; so is whoever would read what this process has to say


if __name__ == "__main__":
    main(sys.argv[1:])
