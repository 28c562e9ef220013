"""The event loop of a job process. It is kept, so that clients that a task keeps open go on working.

It is what `asyncio.get_event_loop` gives in every job, whatever the one before it has set or closed. What a
job has left on it is cancelled: tasks, and calls that were to come later. Files that are watched stay; they
belong to whoever keeps them open.
"""

from __future__ import annotations

import asyncio
import warnings
from types import CoroutineType
from typing import Any

_GRACE_SECONDS = 1.0  # for what is cancelled

_policy = getattr(asyncio.events, "_get_event_loop_policy", asyncio.get_event_loop_policy)


class _NoThreads:
    """In place of what a policy of another make does not have: the loop is set after each job."""

    _loop = None


class JobLoop:
    """Made when the tasks are loaded; a loop that they have set is taken."""

    _loop: Any  # what it has to do is in attributes that are Python's own affair
    _has_run: bool  # since they were last looked at
    _is_heard: bool
    _slow_seconds: float

    def __init__(self) -> None:
        self._policy = _policy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there may be none yet: that is no fault
            try:
                self._loop = self._policy.get_event_loop()
            except RuntimeError:
                self._loop = self._policy.new_event_loop()
        self._make_default()
        self._threads = getattr(self._policy, "_local", _NoThreads())  # which loop is the default in which
        self._debug = self._loop.get_debug()
        self._hear()

    def run(self, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        if self._loop.is_closed():
            self._renew()  # the task has closed it, and then called something that needs it
        return self._loop.run_until_complete(coroutine)

    def put_back(self, all_of_it: bool = False) -> bool:
        """After a job. True if something of it could not be ended."""
        loop = self._loop
        if loop.is_closed():
            self._renew()
        elif not (_policy() is self._policy and self._threads._loop is loop):
            self._make_default()
        if not (self._has_run or all_of_it or loop._ready or loop._scheduled or loop._stopping):
            return False
        if self._is_heard and not self._has_run and self._is_as_it_was():
            return False
        self._has_run = not self._is_heard
        if asyncio._get_running_loop() is not None:
            asyncio._set_running_loop(None)
        self._loop.set_exception_handler(None)
        self._loop.set_task_factory(None)
        self._loop.set_debug(self._debug)
        if self._is_heard:
            self._reopen()
        return self._end_rest()

    def _is_as_it_was(self) -> bool:
        """One that has not run, and on which nothing waits."""
        loop = self._loop
        waits = loop._ready or loop._scheduled or loop._stopping or asyncio._get_running_loop() is not None
        bent = loop._exception_handler is not None or loop._task_factory is not None
        return not (waits or bent or loop._debug is not self._debug)

    def _reopen(self) -> None:
        """What ends a part of a loop ends it for good; this loop goes on."""
        loop = self._loop
        loop._stopping = loop._asyncgens_shutdown_called = False
        loop.slow_callback_duration = self._slow_seconds
        if loop._executor_shutdown_called:
            loop._executor_shutdown_called, loop._default_executor = False, None

    def _end_rest(self) -> bool:
        loop = self._loop
        running: set[asyncio.Task[Any]] = set()
        if left := asyncio.all_tasks(loop):
            for each in left:
                each.cancel()
            ended, running = loop.run_until_complete(asyncio.wait(left, timeout=_GRACE_SECONDS))
            for each in ended:
                if not each.cancelled():
                    each.exception()  # seen: or the next job's log would say that nobody has
        if self._is_heard:
            for later in tuple(loop._scheduled):
                later.cancel()
            if loop._ready or loop._scheduled:
                loop.run_until_complete(asyncio.sleep(0))  # what was to come at once comes now
        return bool(running)

    def _make_default(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_event_loop_policy(self._policy)
        asyncio.set_event_loop(self._loop)

    def _renew(self) -> None:
        self._loop = self._policy.new_event_loop()
        self._make_default()
        self._hear()

    def _hear(self) -> None:
        """Know when it runs: until then, all that there is on it shows. Loops of another make do not tell."""
        self._has_run = True
        self._is_heard = isinstance(self._loop, asyncio.BaseEventLoop)
        if not self._is_heard:
            return
        run_forever = self._loop.run_forever
        self._slow_seconds = self._loop.slow_callback_duration

        def heard() -> None:
            self._has_run = True
            run_forever()

        self._loop.run_forever = heard
