"""Runs a worker's jobs in a process that can be killed: the worker's side of `job_process`.

A worker hands in jobs; they run one at a time, in order; each one's end comes back as an event, and then
nothing of it runs any more. The runner keeps one job process and feeds it a bounded number of jobs ahead.
Every way in which a job process can end is one path, `_bury`: what it had answered counts, the job that
was running gets its outcome, what had not started goes to the next process.

How a job ends                                         outcome     error
    the task returns                                   SUCCEEDED   -
    it raises, SystemExit and KeyboardInterrupt too    RAISED      the exception's type
    its arguments do not fit the task                  RAISED      TypeError; final
    its code, which came with it, cannot be loaded     RAISED      CodeNotLoaded; final
    its result cannot be stored                        RAISED      ResultNotStorable; final
    it ran for timeout_seconds                         TIMED_OUT   TimedOut
    the worker called `kill`                           as told     -
    its processes outgrew job_memory_bytes_max         CRASHED     OutOfMemory
    its process died of a signal                       CRASHED     ProcessKilled, with the signal's name
    its process left, by os._exit for one              CRASHED     ProcessExited, with the exit code
    no process is fit to run it: see `hold_back`       RELEASED    -
    the process has no task of this name               RELEASED    TaskUnknown

An end that is final would be the same in every other run, so the job gets none.

Killing is TERM to everything, `kill_grace_seconds`, KILL to everything; the next job process starts up
meanwhile, but gets no job before the last process of the old one is gone. A task that turns its TERM into
another exception is still reported as killed; one that finishes in its grace has succeeded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from .hold_back import HoldBack
from .job_child import JobChild
from .job_deaths import crash_error, start_failure
from .job_frames import (
    READY,
    RENEWED,
    EndFrame,
    HeldBack,
    JobKey,
    Loaded,
    ReadyJob,
    RunnerEvent,
    RunningJob,
)
from .job_output import ChunkPace
from .job_start import start_child
from .jobs import ErrorInfo, Outcome
from .process_tree import become_subreaper
from .runner_news import RunnerNews
from .service_code import ServiceCode
from .settings import DEFAULT_POOL, MIB, Settings

SENT_JOBS_MAX = 256
SENT_BYTES_MAX = 4 * MIB
# Between two reads of results, which are taken by the handful: a part of what the jobs sent ahead will last.
RESULTS_PAUSE_SECONDS = 0.002
RESULTS_PAUSE_SECONDS_MAX = 0.02
JOB_COST_SECONDS = 15e-6  # of a job that does nothing
LOOK_SECONDS = 0.25  # between two looks at time, memory and output of a running job
FUNERALS_SECONDS = 5.0
START_SECONDS_MAX = 120.0
SLOW_START_SECONDS = 10.0  # then what waits for the process goes where one is ready
_KILL_LOOK_SECONDS = 0.02
_AFTER_KILL_SECONDS_MAX = 5.0

_log = logging.getLogger("jobsvc.worker")
_decode_loaded = msgspec.msgpack.Decoder(Loaded).decode


class _Kill:
    """A killing under way."""

    def __init__(self, number: int, outcome: Outcome, error: ErrorInfo | None, grace_seconds: float) -> None:
        self.number = number
        self.outcome = outcome
        self.error = error
        self.grace_seconds = grace_seconds


class ProcessRunner:
    """The JobRunner of real workers. Its methods are for one event loop, which must outlive it."""

    def __init__(self, settings: Settings, pool: str = DEFAULT_POOL) -> None:
        self._settings = settings
        self._pool = settings.pools[pool]
        self._queue: deque[ReadyJob] = deque()
        self._next_number = READY + 1
        self._child: JobChild | None = None
        self._dying: JobChild | None = None
        self._kill: _Kill | None = None
        self._burials: set[asyncio.Task[None]] = set()
        self._news = RunnerNews()
        self._work = asyncio.Event()
        self._closed = False
        self._hold = HoldBack()
        self._try_now = asyncio.Event()
        self._code: ServiceCode | None = None  # that jobs may run with; None: any
        self._is_renewing = False  # the process has other code: it gets no more jobs
        self._funerals_due = 0.0
        self._chunk_pace = ChunkPace()
        self._look_task: asyncio.Task[None] | None = None

    # --- what a worker calls ---

    async def start(self) -> None:
        become_subreaper()
        self._child = self._started()
        self._look_task = asyncio.create_task(self._look(), name="jobsvc look after the job")
        self._look_task.add_done_callback(self._task_ended)

    def submit(self, jobs: Iterable[ReadyJob]) -> None:
        self._queue.extend(jobs)
        if self._hold.told is not None:
            self._give_back()
        self._feed()

    def withdraw(self, keys: set[JobKey]) -> set[JobKey]:
        """Take back jobs that have not started. Returns those that will not start any more."""
        if self._child is not None and any(job.key in keys for job in self._child.sent.values()):
            self._recall(self._child)
        taken = {job.key for job in self._queue if job.key in keys}
        self._queue = deque(job for job in self._queue if job.key not in taken)
        self._feed()
        return taken

    def kill(self, key: JobKey, outcome: Outcome) -> bool:
        """End the job if it is the one that runs; its end will have this outcome. False: it does not run."""
        number = self._running_number(key)
        if number is None:
            return False
        return self._begin_kill(_Kill(number, outcome, None, self._settings.kill_grace_seconds))

    @property
    def current(self) -> RunningJob | None:
        child = self._dying or self._child
        running = child.current if child is not None else None
        if child is None or running is None:
            return None
        job = child.sent[running[0]]
        return RunningJob(job.job_id, job.attempt, job.task, running[1])

    @property
    def held_back(self) -> HeldBack | None:
        """Why it can run nothing now, and since when. `next_events` returns when this has changed."""
        return self._hold.told

    async def next_events(self) -> list[RunnerEvent]:
        """What has happened since the last call; waits until something has."""
        return await self._news.next()

    def use_code(self, code: ServiceCode) -> None:
        """From now on jobs run with this code. What runs with other code may end, or has `grace_seconds`."""
        before, self._code = self._code, code
        child = self._child
        if child is None or not child.ready:
            self._hold.begins_anew()
            self._try_now.set()
            return  # the one that comes up will be looked at
        is_reload = before is not None and before.edition != code.edition
        differs = code.problem_of(child.loaded.modules, child.loaded.tasks) is not None
        self._is_renewing = is_reload or differs
        if not self._is_renewing:
            self._feed()
            return
        self._recall(child)
        if not self._renew_idle(child):
            loop = asyncio.get_running_loop()
            loop.call_later(code.grace_seconds, self._renew_busy, child)

    async def close(self) -> None:
        """Kill whatever runs. No event comes of it."""
        if self._closed:
            return
        self._closed = True
        if self._look_task is not None:
            self._look_task.cancel()
        for child in filter(None, (self._child, self._dying)):
            child.tree.signal_all(signal.SIGKILL)
            if child is self._child and not child.exited.is_set():  # else its burial is on its way
                await self._bury(child)
        if self._burials:
            await asyncio.wait(self._burials)

    # --- starting, feeding, calling back ---

    def _started(self) -> JobChild | None:
        try:
            child = start_child(self._settings, self._pool)
        except OSError as error:  # no memory, processes or descriptors are left: there may be some later
            self._hold.failed(f"no job process can be started: {error.strerror}", time.time())
            self._give_back()
            self._keep(asyncio.create_task(self._replace(), name="jobsvc start a job process"))
            return None
        child.watch(lambda: self._results_waiting(child), lambda: self._exited(child))
        self._started_at = time.monotonic()
        self._is_renewing = False
        self._work.set()
        return child

    def _feed(self) -> None:
        child = self._child
        if child is None or not child.ready or self._dying is not None or not self._queue:
            return
        if self._is_renewing:
            return
        jobs = []
        room = min(SENT_JOBS_MAX, child.jobs_left) - len(child.sent)
        room_bytes = SENT_BYTES_MAX - child.sent_bytes
        while self._queue and room > 0 and room_bytes > 0:
            job = self._queue.popleft()
            jobs.append((self._next_number, job))
            self._next_number += 1
            room -= 1
            room_bytes -= len(job.payload)
        if jobs:
            child.send(jobs)
            self._work.set()

    def _recall(self, child: JobChild) -> None:
        """Bring back what was sent and has not started, to the front of the queue."""
        child.recall(self._next_number)
        running = child.board.current
        self._take_results(child)
        unstarted = [number for number in child.sent if number != running]
        jobs = [job for number in unstarted if (job := child.settle(number)) is not None]
        self._queue.extendleft(reversed(jobs))

    def _running_number(self, key: JobKey) -> int | None:
        """The job's number if it runs now; calls back what was sent behind it, so that it stays so."""
        child = self._child
        if child is None or self._dying is not None:
            return None
        if not any(job.key == key for job in child.sent.values()):
            return None
        self._recall(child)
        running = child.current
        if running is not None and child.sent[running[0]].key == key:
            return running[0]
        self._feed()
        return None

    # --- what the job process says ---

    def _results_waiting(self, child: JobChild) -> float:
        """Returns the seconds until the next look."""
        taken = self._take_results(child)
        self._feed()
        if self._is_renewing:
            self._renew_idle(child)
        return _results_pause(len(child.sent), taken)

    def _take_results(self, child: JobChild) -> list[EndFrame]:
        ends = child.read_results()
        if any(end.marked for end in ends):
            child.read_output(everything=True)
        for end in ends:
            output = child.outputs.pop(end.number, b"")
            if (job := child.settle(end.number)) is not None:
                child.jobs_left -= 1
                kill = self._kill
                killed = kill is not None and kill.number == end.number
                self._news.ended(job, end, output, (kill.outcome, kill.error) if kill and killed else None)
            elif end.number == READY:
                self._has_loaded(child, _decode_loaded(end.data))
            elif end.number == RENEWED:
                _log.info("job process %d is renewed: %s", child.pid, end.error and end.error.message)
        if child.outputs and not child.sent:
            child.outputs.clear()  # nobody is left to claim them
        return ends

    # --- processes that cannot work ---

    def _has_loaded(self, child: JobChild, loaded: Loaded) -> None:
        child.loaded = loaded
        problem = "; ".join(loaded.problems) or None
        if problem is None and self._code is not None:
            problem = self._code.problem_of(loaded.modules, loaded.tasks)
        if problem is not None:
            self._is_unfit(child, problem)
            return
        child.ready = True
        if self._hold.ends():
            self._news.ability_changed()

    def _is_unfit(self, child: JobChild, why: str) -> None:
        """It has run no job and will run none. Its burial starts the next one."""
        child.is_unfit = True
        self._hold.failed(why, time.time())
        self._give_back()
        child.tree.signal_all(signal.SIGKILL)
        if not child.exited.is_set():
            os.kill(child.pid, signal.SIGKILL)

    def _give_back(self) -> None:
        """Held back: what waits here could run elsewhere."""
        self._news.given_back(self._queue, time.time())
        self._queue.clear()
        self._news.ability_changed()

    def _renew_idle(self, child: JobChild) -> bool:
        """End a process whose code is another, if it runs nothing; its burial starts the next one."""
        if child.sent:
            return False
        child.tree.signal_all(signal.SIGKILL)
        if not child.exited.is_set():
            os.kill(child.pid, signal.SIGKILL)
        return True

    def _renew_busy(self, child: JobChild) -> None:
        """Its time is over: what it still runs is given back."""
        if self._is_renewing and child is self._child and (running := child.current) is not None:
            self._begin_kill(_Kill(running[0], Outcome.RELEASED, None, self._settings.kill_grace_seconds))

    # --- looking after the running job ---

    async def _look(self) -> None:
        while True:
            await self._work.wait()
            child = self._child
            if child is not None and not child.ready:
                self._look_at_start(child)
            if child is not None and time.monotonic() > self._funerals_due:
                self._funerals_due = time.monotonic() + FUNERALS_SECONDS
                child.tree.living_members()  # buries what ended jobs have left behind
            wait = LOOK_SECONDS
            if child is not None and child.sent and self._dying is None:
                wait = self._look_at(child)
            elif child is None or child.ready:
                self._work.clear()
                continue
            await asyncio.sleep(wait)

    def _look_at_start(self, child: JobChild) -> None:
        seconds = time.monotonic() - self._started_at
        if seconds > START_SECONDS_MAX:
            self._is_unfit(child, f"its job process has not loaded the tasks in {START_SECONDS_MAX:g} s")
        elif seconds > SLOW_START_SECONDS and self._hold.told is None:
            self._hold.begins("its job process is still loading the tasks", time.time() - seconds)
            self._give_back()

    def _look_at(self, child: JobChild) -> float:
        """Returns the seconds until the next look."""
        running = child.current
        if running is None:
            return LOOK_SECONDS / 5
        number, started = running
        job = child.sent[number]
        seconds = time.monotonic() - started
        if job.timeout_seconds is not None and seconds >= job.timeout_seconds:
            error = ErrorInfo("TimedOut", f"the job ran for more than {job.timeout_seconds:g} s")
            grace = self._settings.kill_grace_seconds
            self._kill_number(_Kill(number, Outcome.TIMED_OUT, error, grace))
            return LOOK_SECONDS
        if (too_large := child.too_large(self._pool.job_memory_bytes_max)) is not None:
            self._kill_number(_Kill(number, Outcome.CRASHED, too_large, 0.0))
            return LOOK_SECONDS
        self._look_at_output(child, number, job, seconds)
        left = [each.timeout_seconds for each in child.sent.values() if each.timeout_seconds is not None]
        wait = min([LOOK_SECONDS, *(seconds / 2 for seconds in left)])
        if job.timeout_seconds is not None:
            wait = min(wait, job.timeout_seconds - seconds)
        return max(wait, 0.005)

    def _look_at_output(self, child: JobChild, number: int, job: ReadyJob, seconds: float) -> None:
        """Hand on what a longer job has written so far."""
        if not self._chunk_pace.begins(number, seconds):
            return
        child.read_output()  # after `number` was seen to run: what follows the last mark is its own
        waiting = child.keeper.waiting_bytes
        if number not in child.outputs and self._chunk_pace.is_due(seconds, waiting):
            self._news.output(job, child.keeper.take())

    # --- killing and burying ---

    def _kill_number(self, kill: _Kill) -> None:
        child = self._child
        if child is None or kill.number not in child.sent:
            return
        if self._running_number(child.sent[kill.number].key) == kill.number:
            self._begin_kill(kill)

    def _begin_kill(self, kill: _Kill) -> bool:
        child = self._child
        assert child is not None
        if child.exited.is_set():
            return False  # it has died by itself; its burial says how
        self._kill = kill
        self._dying = child
        self._child = self._started()
        self._keep(asyncio.create_task(self._kill_and_bury(child, kill), name="jobsvc kill a job"))
        return True

    async def _kill_and_bury(self, child: JobChild, kill: _Kill) -> None:
        loop = asyncio.get_running_loop()
        if kill.grace_seconds > 0:
            child.tree.signal_all(signal.SIGTERM)
            deadline = loop.time() + kill.grace_seconds
            while loop.time() < deadline and kill.number in child.sent:
                if child.exited.is_set() and not child.tree.living_members():
                    break
                await asyncio.sleep(_KILL_LOOK_SECONDS)
        await self._bury(child)

    def _exited(self, child: JobChild) -> None:
        asyncio.get_running_loop().remove_reader(child.pid_fd)
        child.exited.set()
        if child is not self._dying and not self._closed:
            self._keep(asyncio.create_task(self._bury(child), name="jobsvc bury a job process"))

    async def _bury(self, child: JobChild) -> None:
        """Make sure that nothing of it runs any more, settle its jobs, go on with the next process."""
        child.tree.signal_all(signal.SIGKILL)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _AFTER_KILL_SECONDS_MAX
        while not child.exited.is_set() or (child.tree.living_members() and loop.time() < deadline):
            if not child.exited.is_set():
                await child.exited.wait()
            else:
                await asyncio.sleep(_KILL_LOOK_SECONDS)
                child.tree.signal_all(signal.SIGKILL)
        victim = child.board.current
        self._take_results(child)
        output = child.rest_of_output()
        started = child.board.started
        exit_code = child.close()
        if self._closed:
            return
        self._settle(child, victim, started, output, exit_code)
        if child is self._dying:
            self._dying = self._kill = None
        else:
            self._child = None
            await self._replace()
        self._feed()

    def _settle(self, child: JobChild, victim: int, started: float, output: bytes, exit_code: int) -> None:
        if not child.ready:
            if not child.is_unfit:
                self._hold.failed(start_failure(exit_code, output), time.time())
        elif (job := child.settle(victim)) is not None:
            seconds = time.monotonic() - started
            kill = self._kill if child is self._dying else None
            by_kill = kill is not None and kill.number == victim
            outcome, error = (
                (kill.outcome, kill.error)
                if kill is not None and by_kill
                else (Outcome.CRASHED, crash_error(exit_code))
            )
            ended_at = time.time()
            self._news.output(job, output)
            self._news.died(job, outcome, error, ended_at - seconds, ended_at)
        self._queue.extendleft(reversed(child.sent.values()))
        child.sent.clear()
        if self._hold.told is not None:
            self._give_back()

    async def _replace(self) -> None:
        self._try_now.clear()
        try:
            async with asyncio.timeout(self._hold.pause_seconds):
                await self._try_now.wait()
        except TimeoutError:
            pass  # it has not become more likely, but perhaps it works
        if not self._closed:
            self._child = self._started()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._burials.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._burials.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._news.defect(error)


def _results_pause(sent: int, taken: Sequence[EndFrame]) -> float:
    """Seconds until the next look: a third of what the jobs sent ahead last, if they are like the last."""
    seconds = sum(end.seconds for end in taken) / max(len(taken), 1) + JOB_COST_SECONDS
    return min(max(RESULTS_PAUSE_SECONDS, (sent - 1) * seconds / 3), RESULTS_PAUSE_SECONDS_MAX)
