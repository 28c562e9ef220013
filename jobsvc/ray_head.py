"""A Ray of the service's own, on loopback, beside whatever other Ray runs on this machine.

Everything that Ray would share with another one is chosen here: the temporary folder (short, because Ray
puts sockets under it, and a socket's path has 107 bytes), every port, the token of its processes.
Ray does not take 127.0.0.1 for an address of a node and would use the machine's; the switch that is meant
for laptops keeps it on loopback, and the service alive when the laptop changes its network.

Not started, because a service on one machine has no use for them: the autoscaler, the log monitor (it sends
logs to drivers), and the server for Ray clients, for which `ray start` has no switch but a hook.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .discovery import ServiceInfo, secret_file
from .errors import Unavailable
from .ports import free_ports
from .serve_proxy import proxy_environment
from .service_processes import INSTANCE_VARIABLE
from .settings import Settings

OBJECT_STORE_BYTES = 200 * 1024 * 1024
LOG_BYTES_MAX = 32 * 1024 * 1024
LOG_FILES_MAX = 3
START_SECONDS = 120.0
START_LOG = "start.log"
LINE_LENGTH_MAX = 400


class RayDidNotStart(Unavailable):
    """A port was taken in between, or the machine was so busy that Ray gave up (after 30 s, unasked)."""


def without_client_server(ray_parameters: Any, head: bool) -> None:
    """The hook that `ray start` calls before it starts anything."""
    ray_parameters.ray_client_server_port = None


def plan_head(info: ServiceInfo, settings: Settings, run_dir: Path) -> dict[str, str]:
    """Choose what the head will be, fill it into `info`, and return the environment of all its processes."""
    temp_dir = Path(tempfile.mkdtemp(prefix="jobsvc-", dir="/tmp"))
    info.temp_dir = str(temp_dir)
    info.instance = secrets.token_hex(16)
    info.ray_token_file = secret_file(run_dir / f"{info.service}.ray-token", secrets.token_hex(32))
    gcs, dashboard, *others = free_ports(4)
    info.ray_address = f"127.0.0.1:{gcs}"
    info.dashboard_url = f"http://127.0.0.1:{dashboard}"
    return driver_environment(info) | {
        INSTANCE_VARIABLE: info.instance,
        "SPT_NOENV": "1",  # a process that names its job in its title keeps its environment readable
        "RAY_START_HOOK": f"{__name__}.{without_client_server.__name__}",
        # Ray starts its workers at nice 15: managers and replicas would wait for whoever else is busy here.
        # Jobs step back instead (`job_process`).
        "RAY_worker_niceness": "0",
        "RAY_ROTATION_MAX_BYTES": str(LOG_BYTES_MAX),
        "RAY_ROTATION_BACKUP_COUNT": str(LOG_FILES_MAX),
        "AUTOSCALER_METRIC_PORT": str(others[0]),
        "DASHBOARD_METRIC_PORT": str(others[1]),
        **proxy_environment(settings, temp_dir),
    }


def driver_environment(info: ServiceInfo, paths: str | None = None) -> dict[str, str]:
    """What a program needs to speak to the service's Ray."""
    environment = service_environment(paths)
    if info.ray_token_file:
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback: see above
        environment["RAY_AUTH_MODE"] = "token"
        environment["RAY_AUTH_TOKEN_PATH"] = info.ray_token_file
        environment.pop("RAY_AUTH_TOKEN", None)
    return environment


def python_path() -> str:
    """Where the service looks for the modules of its tasks: first of all here, where the operator stands."""
    package_parent = str(Path(__file__).resolve().parent.parent)
    paths = [os.getcwd(), package_parent, os.environ.get("PYTHONPATH")]
    return os.pathsep.join(path for path in paths if path)


def service_environment(paths: str | None = None) -> dict[str, str]:
    """What every program of the service finds, whatever its Ray: this folder's modules, and no secrets.

    `paths`: the `python_path` of a service that was started elsewhere."""
    environment = dict(os.environ)
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    # A call to a process that has died fails at once; by default Ray waits a second for details.
    environment.setdefault("RAY_timeout_ms_task_wait_for_death_info", "20")
    environment["PYTHONPATH"] = paths or python_path()
    environment.pop("RAY_ADDRESS", None)
    environment.pop("JOBSVC_TOKEN", None)  # it has a file; children have no use for it
    return environment


def start_head(info: ServiceInfo, environment: dict[str, str]) -> None:
    """Raises RayDidNotStart with the last line of what Ray said; all of it is in `START_LOG`."""
    address, gcs = info.ray_address.rsplit(":", 1)
    options: dict[str, object] = {
        "temp-dir": info.temp_dir,
        "node-ip-address": address,
        "port": gcs,
        "dashboard-host": address,
        "dashboard-port": (info.dashboard_url or "").rsplit(":", 1)[1],
        "dashboard-agent-listen-port": free_ports(1)[0],
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": os.cpu_count() or 1,
        "object-store-memory": OBJECT_STORE_BYTES,
        "include-log-monitor": False,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--no-monitor"]
    command += [f"--{option}={value}" for option, value in options.items()]
    # Into a file, not a pipe: what `ray start` leaves running holds its output open.
    with (Path(info.temp_dir or "") / START_LOG).open("w+") as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # the service outlives the terminal
                timeout=START_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RayDidNotStart(f"Ray did not start in {START_SECONDS:g} s") from error
        output.seek(0)
        if done.returncode != 0:
            raise RayDidNotStart(f"Ray did not start: {last_line(output.read())}")


def last_line(said: str) -> str:
    """The last line with anything on it, which is where Python says what was wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return line if len(line) <= LINE_LENGTH_MAX else line[: LINE_LENGTH_MAX - 4] + " ..."
