"""Starting a job process: what it is told, what it finds in its environment, and what it must not."""

from __future__ import annotations

import os
import secrets
import sys

from .job_child import JobChild
from .job_frames import MARK_TOKEN_BYTES, GrowthLimits, Setup
from .settings import PoolSettings, Settings

_SECRET_VARIABLES = ("JOBSVC_TOKEN",)  # not for jobs


def start_child(settings: Settings, pool: PoolSettings) -> JobChild:
    """A job process that loads the tasks."""
    setup = Setup(
        settings.tasks,
        sys.path,
        settings.allow_shell,
        settings.allow_code,
        settings.result_bytes_max,
        settings.error_bytes_max,
        settings.kill_grace_seconds,
        GrowthLimits(
            pool.max_jobs_per_process,
            pool.growth_bytes_max,
            pool.process_growth_descriptors_max,
            pool.process_growth_threads_max,
            pool.job_memory_bytes_max,
        ),
        secrets.token_bytes(MARK_TOKEN_BYTES),
    )
    environment = {name: value for name, value in os.environ.items() if name not in _SECRET_VARIABLES}
    return JobChild(setup, environment, secrets.token_hex(16), settings.log_bytes_max)
