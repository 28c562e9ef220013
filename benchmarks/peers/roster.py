"""Who is measured, and with how many jobs.

Counts are such that a batch takes a few seconds on two cores: the quicker a peer is, the more it gets, and
nobody's start-up weighs much. Each runs jobs in two processes.
"""

from __future__ import annotations

from typing import NamedTuple

MODES = {  # what an answer to an enqueue promises
    "redis": ("always", "everysec"),
    "postgres": ("commit",),
    "jobsvc": ("fsync", "s3"),
    "none": ("none",),
}
DURABLE = frozenset({"always", "commit", "fsync", "s3"})
MEMORY_JOBS = 100_000


class Entry(NamedTuple):
    module: str  # of this package, without `_peer`
    broker: str  # a key of MODES
    noops: int
    shas: int
    memory_jobs: int = MEMORY_JOBS  # 0: another entry stands for this one, in memory and after a crash
    variant: str = ""
    note: str = ""

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES[self.broker]

    @property
    def environment(self) -> str:
        """The requirements file of its virtualenv; empty for the project's own."""
        if self.module in ("jobsvc", "hashing"):
            return ""
        return "ray" if self.module in ("ray_tasks", "serve") else self.module


TITLES = {
    "hashing": "no queue, 2 processes",
    "serve": "Serve task_consumer",
    "ray-tasks": "bare Ray tasks",
}

PEERS = {
    "jobsvc": Entry("jobsvc", "jobsvc", 60_000, 10_000),
    "hashing": Entry("hashing", "none", 0, 0, 0, note="the most there is for W2"),
    "celery": Entry("celery", "redis", 2_000, 1_000, note="acks late, rejects on worker loss"),
    "dramatiq": Entry("dramatiq", "redis", 5_000, 2_000, note="8 threads in each process, its default"),
    "rq": Entry("rq", "redis", 300, 200, note="forks for each job, its default"),
    "rq-simple": Entry("rq", "redis", 1_200, 600, 0, "simple", "rq without the fork"),
    "arq": Entry("arq", "redis", 400, 200, note="looks each 0.5 s and runs 10 at a time, its defaults"),
    "arq-fastpoll": Entry("arq", "redis", 3_000, 1_500, 0, "fastpoll", "arq, looking each 0.01 s"),
    "taskiq": Entry("taskiq", "redis", 5_000, 2_000, note="stream broker: its list broker has no acks"),
    "huey": Entry("huey", "redis", 4_000, 2_000, note="at most once"),
    "procrastinate": Entry("procrastinate", "postgres", 2_000, 800, note="keeps states, no results"),
    "procrastinate-c10": Entry(
        "procrastinate", "postgres", 2_000, 800, 0, "c10", "10 jobs at a time in each process"
    ),
    "serve": Entry("serve", "redis", 1_500, 800, 20_000, note="two replicas, Celery on Redis beneath"),
    "ray-tasks": Entry("ray_tasks", "none", 5_000, 3_000, note="lost with their caller"),
}
