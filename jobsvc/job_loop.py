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

_QUICK_SECONDS = 50e-6  # nobody has waited for anything in a job so short
_GRACE_SECONDS = 1.0  # for what is cancelled

_policy = getattr(asyncio.events, "_get_event_loop_policy", asyncio.get_event_loop_policy)


class JobLoop:
    """Made when the tasks are loaded; a loop that they have set is taken."""

    def __init__(self) -> None:
        self._policy = _policy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there may be none yet: that is no fault
            try:
                self._loop = self._policy.get_event_loop()
            except RuntimeError:
                self._renew()
        self._debug = self._loop.get_debug()

    def run(self, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        if self._loop.is_closed():
            self._renew()  # the task has closed it, and then called something that needs it
        return self._loop.run_until_complete(coroutine)

    def put_back(self, seconds: float) -> bool:
        """After a job of so many seconds. True if something of it could not be ended."""
        if self._loop.is_closed():
            self._renew()
        elif not self._is_default():
            self._make_default()
        loop = self._loop
        if seconds < _QUICK_SECONDS and not getattr(loop, "_ready", True):
            return False
        if asyncio._get_running_loop() is not None:
            asyncio._set_running_loop(None)
        loop.set_exception_handler(None)
        loop.set_task_factory(None)
        loop.set_debug(self._debug)
        return self._end_rest()

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
        for later in getattr(loop, "_scheduled", ()):
            later.cancel()
        if getattr(loop, "_ready", ()):
            loop.run_until_complete(asyncio.sleep(0))
        return bool(running)

    def _is_default(self) -> bool:
        try:
            return _policy() is self._policy and self._policy.get_event_loop() is self._loop
        except RuntimeError:
            return False  # it was set to none

    def _make_default(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_event_loop_policy(self._policy)
        asyncio.set_event_loop(self._loop)

    def _renew(self) -> None:
        self._loop = self._policy.new_event_loop()
        self._make_default()
