"""An event loop on which time is a number: where a real loop would wait, this one moves the clock on.

One seed, one story: nothing here depends on the machine's speed. When nobody can ever wake again, `Deadlock`
is raised instead of hanging.

Processes are simulated by contexts. All tasks that descend from `start(process, …)` belong to that process;
`freeze` is SIGSTOP (its callbacks and expired timers queue up until `thaw`), `kill` is SIGKILL (nothing of
it runs again, no `finally` either).
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

Answer = TypeVar("Answer")

_process: contextvars.ContextVar[str] = contextvars.ContextVar("process")


class Deadlock(Exception):
    """Every task waits for another one."""


class VirtualLoop(asyncio.BaseEventLoop):
    # What BaseEventLoop keeps, and typeshed does not know.
    _ready: deque[asyncio.Handle]
    _scheduled: list[Any]  # a heap of timer handles

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._frozen: dict[str, list[asyncio.Handle]] = {}
        self._dead: set[str] = set()
        self._graves: list[
            asyncio.Handle
        ] = []  # what the killed would have done; kept, so that nothing unwinds
        self.set_exception_handler(lambda loop, context: None)  # tasks of the killed are never awaited

    def time(self) -> float:
        return self._now

    # --- processes ---

    def start(self, process: str, part: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        context = contextvars.Context()
        context.run(_process.set, process)
        return self.create_task(part, context=context)

    def freeze(self, process: str) -> None:
        self._frozen.setdefault(process, [])

    def thaw(self, process: str) -> None:
        self._ready.extend(self._frozen.pop(process, ()))

    def kill(self, process: str) -> None:
        self._dead.add(process)
        self._graves.extend(self._frozen.pop(process, ()))

    def _may_run(self, handle: asyncio.Handle) -> bool:
        process = handle._context.get(_process)  # type: ignore[attr-defined]
        if process in self._dead:
            self._graves.append(handle)
            return False
        if process in self._frozen:
            self._frozen[process].append(handle)
            return False
        return True

    # --- what BaseEventLoop leaves to its heirs ---

    def _run_once(self) -> None:
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise Deadlock(f"at {self._now:.3f} s")
            self._now = max(self._now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now:
            due = heapq.heappop(scheduled)
            due._scheduled = False
            ready.append(due)
        careful = self._frozen or self._dead
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled and (not careful or self._may_run(handle)):
                handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # popped when its time comes

    def _write_to_self(self) -> None:
        raise RuntimeError("no threads in a simulation")

    def finish(self) -> None:
        """Let everybody clean up, the killed too, after all has been judged."""
        for process in list(self._frozen):
            self.thaw(process)
        self._dead.clear()
        for _ in range(5):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self._ready.extend(self._graves)
            self._graves.clear()
            with suppress(Exception):
                self.run_until_complete(asyncio.wait(tasks, timeout=60))
        self.close()


def run(story: Coroutine[Any, Any, Answer], loop: VirtualLoop | None = None) -> Answer:
    """Run one story in virtual time. No garbage collection meanwhile: it would end killed tasks at random."""
    loop = loop if loop is not None else VirtualLoop()
    collects = gc.isenabled()
    gc.disable()
    try:
        return loop.run_until_complete(story)
    finally:
        loop.finish()
        if collects:
            gc.enable()
