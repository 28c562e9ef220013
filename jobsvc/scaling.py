"""Scaling: how many workers a pool should have. Level-triggered: wanted against observed, every second.

Wanted follows the work, not the number of jobs: the seconds of work in the backlog, by what jobs of the same
tasks have taken lately, divided by the time in which it should be worked off. A task that was never measured
counts as a long one. A pool never wants more workers than it has jobs, nor fewer than are busy.

What is really there: a worker that has run one job for `LONG_SECONDS` may run it for hours. It is counted
for itself, and the other jobs need others: one at least, and half as many again as are taken up so, so that a
pool of long jobs grows to what it may be in a few looks, whatever was measured before.

Nothing is remembered between two looks but the measured seconds, so a lost message or a new leader cannot
leave a pool too large or too small.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping

import msgspec

from .settings import PoolSettings

UNKNOWN_JOB_SECONDS = 5.0  # until the first job of a task has been measured
LONG_SECONDS = 1.5  # who has run one job for so long is not there for others
TASKS_MAX = 10_000  # measured in one pool
MEASURE_WEIGHT = 0.2


class JobSeconds:
    """Seconds that a job takes: an average that follows the latest reports."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, jobs: int, seconds: float) -> None:
        if jobs <= 0:
            return
        latest = seconds / jobs
        weight = 1 - (1 - MEASURE_WEIGHT) ** min(jobs, 50)
        self.seconds = latest if self.seconds is None else self.seconds + weight * (latest - self.seconds)


class TaskSeconds:
    """The same for each task of a pool. What was reported last stays; beyond `TASKS_MAX` the others go."""

    def __init__(self) -> None:
        self._by_task: dict[str, JobSeconds] = {}

    def add(self, task: str, jobs: int, seconds: float) -> None:
        known = self._by_task.pop(task, None) or JobSeconds()
        known.add(jobs, seconds)
        self._by_task[task] = known
        if len(self._by_task) > TASKS_MAX:
            del self._by_task[next(iter(self._by_task))]

    def of(self, task: str) -> float:
        known = self._by_task.get(task)
        return UNKNOWN_JOB_SECONDS if known is None or known.seconds is None else known.seconds

    def mean(self, tasks: Mapping[str, int]) -> float | None:
        """Of so many jobs of these tasks; None if there are none."""
        jobs = sum(tasks.values())
        return sum(self.of(task) * number for task, number in tasks.items()) / jobs if jobs else None


def wanted_workers(
    pool: PoolSettings, *, queued: int, running: int, job_seconds: float | None, busy_long: int = 0
) -> int:
    """How many workers this pool should have now. `running` are leased, and include the `busy_long` ones."""
    seconds = UNKNOWN_JOB_SECONDS if job_seconds is None else job_seconds
    others = queued + running - busy_long
    work = others * seconds
    for_the_work = math.ceil(work / pool.target_drain_seconds) if pool.target_drain_seconds > 0 else others
    if busy_long:
        for_the_work = max(for_the_work, busy_long // 2 + 1)
    wanted = busy_long + min(max(for_the_work, 1), others)
    return max(pool.min_workers, min(wanted, pool.max_workers))


def while_held_back(pool: PoolSettings, wanted: int, *, staying: int, here: int, held_back: int) -> int:
    """How many are wanted where workers can run nothing. `here` of those that stay have reported.

    Where no worker can work, more of them would not either: the backlog is then no reason to start any."""
    if here == 0 or held_back < here:
        return wanted
    return max(pool.min_workers, min(wanted, staying))


# --- what a pool waits for -----------------------------------------------------------------------

RECENT_SECONDS = 300.0
REFUSAL_SECONDS = 60.0  # for so long other types are tried


class MachineRequest(msgspec.Struct, frozen=True):
    """Machines of one type that were asked for. `problem` is what the cloud said, if it refused."""

    node_type: str
    count: int
    at: float  # wall-clock seconds
    problem: str | None = None


class Machines(msgspec.Struct, frozen=True):
    """What Ray's autoscaler is doing about resources that are not there."""

    requested: list[MachineRequest] = []
    starting: int = 0  # machines that exist and are not ready
    refused: list[MachineRequest] = []
    impossible: list[dict[str, float]] = []  # resources that no machine type has
    here: list[dict[str, float]] | None = None  # of each machine; None where others may be added

    def refused_lately(self, now: float) -> frozenset[str]:
        """Machine types of which the cloud had none just now."""
        late = (request for request in self.refused if now - request.at < REFUSAL_SECONDS)
        return frozenset(request.node_type for request in late)


def shape_of(pool: PoolSettings) -> dict[str, float]:
    """The resources of one worker, by Ray's names."""
    shape = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, "memory": float(pool.memory_bytes or 0)}
    return {name: amount for name, amount in (shape | pool.resources).items() if amount}


def impossible(machines: Machines, shape: dict[str, float]) -> str | None:
    """Why no worker of this shape can ever be placed, in words; None if one can, or may be."""
    if shape in machines.impossible:
        return f"no machine type of the cluster has this pool's shape ({_amounts(shape)})"
    if machines.here is None or any(_fits(shape, machine) for machine in machines.here):
        return None
    short = {
        name: amount
        for name, amount in shape.items()
        if all(machine.get(name, 0) < amount for machine in machines.here)
    }
    return f"no machine here has what a worker of this pool needs ({_amounts(short or shape)})"


def _fits(shape: dict[str, float], machine: dict[str, float]) -> bool:
    return all(machine.get(name, 0) >= amount for name, amount in shape.items())


def _amounts(shape: dict[str, float]) -> str:
    return ", ".join(f"{name}: {amount:g}" for name, amount in sorted(shape.items()))


def outlook(machines: Machines, shape: dict[str, float], now: float) -> str | None:
    """Why workers of this shape are not there yet, in words; None if the autoscaler has nothing to say."""
    never = impossible(machines, shape)
    if never is not None:
        return never
    count = sum(request.count for request in machines.requested) + machines.starting
    parts = []
    if count:
        asked_at = min((request.at for request in machines.requested), default=None)
        parts.append(f"waiting for {count} machine{'s' if count > 1 else ''}{since(asked_at)}")
    refused = [request for request in machines.refused if now - request.at < RECENT_SECONDS]
    if refused:
        latest = max(refused, key=lambda request: request.at)
        parts.append(f"{latest.node_type} was refused: {_one_line(latest.problem)}")
    return "; ".join(parts) or None


def since(at: float | None) -> str:
    """For the end of a text; empty if it is not known since when."""
    if at is None:
        return ""
    return f" since {datetime.datetime.fromtimestamp(at, datetime.UTC):%H:%M:%S} UTC"


def _one_line(text: str | None, characters_max: int = 200) -> str:
    return " ".join((text or "no reason was given").split())[:characters_max]
