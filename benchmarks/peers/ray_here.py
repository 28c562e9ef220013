"""A Ray of its own for the two peers that need one."""

from __future__ import annotations

import os
from typing import Any

from .peer import ROOT, folder

OBJECT_STORE_BYTES = 512 * 2**20


def start_ray(**options: Any) -> None:
    """Without a dashboard: jobsvc's Ray has one, so this is in the peers' favour."""
    import ray

    inherited = {name: value for name, value in os.environ.items() if name.startswith("BENCH_")}
    ray.init(
        address="local",
        include_dashboard=False,
        _temp_dir=str(folder() / "r"),  # short: the paths of Ray's sockets have a limit
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), **inherited}},
        **options,
    )
