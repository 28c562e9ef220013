"""Tasks that the workers of a pool do not have: their jobs wait, and cost nobody a lease.

A job whose task is in no module any more comes back from its worker without charge. Of a hundred thousand
such jobs each one would be leased, refused and put off, again and again. So the first refusal holds back the
task itself, in that pool: what is queued of it is set aside (`ready_lanes`), and after a pause that doubles
up to a minute one job of it is tried. If a worker runs that one, or the service gets code that has the
task, all of them go back to their places.

This is what a leadership knows and no part of the state: a new leader asks once more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from .jobs import TASK_UNKNOWN, Finished, Job, Outcome
from .ready_lanes import Lanes

PAUSE_SECONDS_MAX = 60.0
_RELEASED = Outcome.RELEASED


class _Hold:
    """How often a task was refused in a row, and until when nobody is asked again."""

    __slots__ = ("times", "until")

    def __init__(self) -> None:
        self.times = 0
        self.until = float("-inf")


class HeldTasks:
    """One leadership's. `clock` is the event loop's."""

    def __init__(self, lanes: Lanes, clock: Callable[[], float]) -> None:
        self._lanes = lanes
        self._clock = clock
        self._holds: dict[tuple[str, str], _Hold] = {}  # by pool and task

    def __bool__(self) -> bool:
        return bool(self._holds)

    def note(self, pool: str, jobs: Mapping[bytes, Job], finished: Iterable[Finished]) -> None:
        """What a worker of this pool has said of these jobs."""
        for each in finished:
            job = jobs.get(each.job_id)
            if job is None or job.options.content == "pickle":
                continue
            if each.outcome is not _RELEASED:
                self._is_known(pool, job.options.task)
            elif each.error is not None and each.error.type == TASK_UNKNOWN:
                self._is_unknown(pool, job.options.task)

    def _is_unknown(self, pool: str, task: str) -> None:
        hold = self._holds.setdefault((pool, task), _Hold())
        if self._clock() < hold.until and not self._lanes.is_tried(pool, task):
            return  # it was leased before the first one came back
        hold.times += 1
        hold.until = self._clock() + min(2.0 ** min(hold.times, 10), PAUSE_SECONDS_MAX)
        self._lanes.hold(pool, task)

    def _is_known(self, pool: str, task: str) -> None:
        if self._holds and self._holds.pop((pool, task), None) is not None:
            self._lanes.release(pool, task)

    def use_tasks(self, tasks: Collection[str]) -> None:
        """The service's code from now on has these."""
        for pool, task in [key for key in self._holds if key[1] in tasks]:
            self._is_known(pool, task)

    def try_again(self) -> bool:
        """One job of each task whose pause is over may go. Returns whether there is any."""
        now, found = self._clock(), False
        for (pool, task), hold in [*self._holds.items()]:
            if now < hold.until:
                continue
            hold.until = now + PAUSE_SECONDS_MAX  # if it never comes back, another one is tried
            if self._lanes.try_one(pool, task):
                found = True
            else:
                self._is_known(pool, task)  # there is no job of it left
        return found
