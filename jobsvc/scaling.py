"""Scaling: how many workers a pool should have. Level-triggered: wanted against observed, every second.

Wanted follows the work, not the number of jobs: the seconds of work in the backlog, by what jobs of this
pool have taken lately, divided by the time in which it should be worked off. A pool never wants more
workers than it has jobs, nor fewer than are busy. Nothing is remembered between two looks but the
measured seconds per job, so a lost message or a new leader cannot leave a pool too large or too small.
"""

from __future__ import annotations

import math

from .settings import PoolSettings

UNKNOWN_JOB_SECONDS = 1.0  # until the first job of a pool has been measured
MEASURE_WEIGHT = 0.2


class JobSeconds:
    """Seconds that a job of this pool takes: an average that follows the latest reports."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, jobs: int, seconds: float) -> None:
        if jobs <= 0:
            return
        latest = seconds / jobs
        weight = 1 - (1 - MEASURE_WEIGHT) ** min(jobs, 50)
        self.seconds = latest if self.seconds is None else self.seconds + weight * (latest - self.seconds)


def wanted_workers(pool: PoolSettings, *, queued: int, running: int, job_seconds: float | None) -> int:
    """How many workers this pool should have now."""
    seconds = UNKNOWN_JOB_SECONDS if job_seconds is None else job_seconds
    work = (queued + running) * seconds
    for_the_work = math.ceil(work / pool.target_drain_seconds) if pool.target_drain_seconds > 0 else queued
    wanted = min(max(for_the_work, 1 if queued + running else 0), queued + running)
    return max(pool.min_workers, min(wanted, pool.max_workers))
