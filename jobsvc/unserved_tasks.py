"""Jobs whose task is gone: they were right when they were taken, and the service's code has it no more.

They go on waiting, and somebody must be told. Nothing is counted on the way of a job. One look sees which
options have such a task; only if some do are their jobs counted, a slice at a time (`selections`), so that a
backlog of a million costs the leader one hundredth of its time for a minute.
"""

from __future__ import annotations

import asyncio
from itertools import islice

from .commands import Selection
from .jobs import Job, JobOptions, State
from .queue_state import QueueState
from .selections import next_slice

LOOK_SECONDS = 5.0
SLICE_PAUSE_SECONDS = 1.0  # a slice takes about 10 ms
OPTIONS_MAX = 20_000  # so many are looked at, the oldest first: tasks that are gone are older than the code
TASKS_MAX = 20  # so many are told
_JOBS_MAX = 1 << 62
_WAITS = frozenset({State.QUEUED, State.SCHEDULED})


class UnservedTasks:
    """The tasks that jobs wait for in vain, as far as it is known. `run` is a side task of the leader."""

    def __init__(self, state: QueueState) -> None:
        self._state = state
        self.known: frozenset[str] | None = None  # of the service's code, where that is known
        self.waiting: dict[str, int] = {}  # jobs by task

    def lacks(self, options: JobOptions) -> bool:
        """Whether the service's code has no such task. A function that came with its job needs none."""
        return self.known is not None and options.content != "pickle" and options.task not in self.known

    async def run(self) -> None:
        """For ever."""
        while True:
            waiting: dict[str, int] = {}
            for task in self._lacking():
                count = await self._count(task)
                if count:
                    waiting[task] = count
            self.waiting = waiting
            await asyncio.sleep(LOOK_SECONDS)

    def _lacking(self) -> list[str]:
        used = islice(self._state.options.values(), OPTIONS_MAX)
        return sorted({use.options.task for use in used if use.jobs and self.lacks(use.options)})[:TASKS_MAX]

    async def _count(self, task: str) -> int:
        """How many jobs wait for this task."""
        count, before = 0, None
        while True:
            found = next_slice(self._state, Selection(task=task), before, _JOBS_MAX, self._waits_in_vain, 0)
            count += len(found.jobs) + found.others
            before = found.before
            if before is None:
                return count
            await asyncio.sleep(SLICE_PAUSE_SECONDS)

    def _waits_in_vain(self, job: Job) -> bool:
        return job.state in _WAITS and self.lacks(job.options)
