"""A service on one machine: start it, find it, end it.

`up` starts a Ray of its own (own temporary folder, free ports, loopback, own token), puts managers and the
Serve application into it, waits until the service answers, writes down where it is, and returns; the service
stays. `down` ends every process that belongs to it and nothing else. Both may be repeated.

What belongs to a service is told by its temporary folder, whose name is unique: every Ray process of it
carries the folder in its command line or its environment, and everything else is a child of one of those.

Ports: Serve sets SO_REUSEPORT, so two clusters of one user would share a port without an error and split the
requests between them. So a port is tried first with a plain bind, and by connecting to it; a taken one
means the next free one, and where the service ended up is in the discovery file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import msgspec
import psutil

from .access import check_bind
from .errors import InvalidRequest, Unavailable
from .settings import PoolSettings, Settings, encode_settings

READY_SECONDS = 60.0
TERM_SECONDS = 5.0
PORTS_TRIED = 100
OBJECT_STORE_BYTES = 256 * 1024 * 1024
RUN_DIR_VARIABLE = "JOBSVC_RUN_DIR"

Say = Callable[[str], None]


class ServiceInfo(msgspec.Struct):
    """Where a service is, and what `up` started for it."""

    service: str
    urls: list[str]
    dashboard_url: str | None
    ray_address: str
    data: str
    temp_dir: str | None = None  # of the Ray that `up` started; None if the Ray is not ours to end
    token_file: str | None = None
    ray_token_file: str | None = None


def run_dir_from_environment() -> Path:
    """The folder of discovery files."""
    chosen = os.environ.get(RUN_DIR_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".jobsvc" / "run"


def discovery_file(service: str, run_dir: Path | None = None) -> Path:
    return (run_dir or run_dir_from_environment()) / f"{service}.json"


def find_service(service: str = "jobsvc", run_dir: Path | None = None) -> ServiceInfo | None:
    """What `up` wrote down, whether or not it still lives."""
    try:
        return msgspec.json.decode(discovery_file(service, run_dir).read_bytes(), type=ServiceInfo)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        return None  # half a file of a crash long ago: as good as none


def answers(info: ServiceInfo, timeout_seconds: float = 2.0) -> bool:
    """True if the service says that it is ready."""
    for url in info.urls:
        try:
            if httpx.get(f"{url}/readyz", timeout=timeout_seconds).status_code == 200:
                return True
        except httpx.HTTPError:
            continue
    return False


# --- up ----------------------------------------------------------------------------------------------


def up(
    settings: Settings,
    *,
    token: str | None = None,
    ray_address: str | None = None,
    run_dir: Path | None = None,
    say: Say = print,
) -> ServiceInfo:
    """Start the service, or find it running. Returns when it answers.

    Raises InvalidRequest for settings that cannot be used, Unavailable if it does not come up in time.
    """
    check_bind(settings.host, token)
    run_dir = run_dir or run_dir_from_environment()
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = find_service(settings.service, run_dir)
    if known is not None and answers(known):
        say(f"{settings.service} is already running at {known.urls[0]}")
        return known
    if known is not None:
        end_processes(known, say)
    settings = prepared(settings)
    port = free_port(settings.host, settings.port)
    if port != settings.port:
        say(f"port {settings.port} is taken; using {port}")
    token_file = _secret_file(run_dir / f"{settings.service}.token", token) if token else None
    info = ServiceInfo(
        settings.service,
        [f"http://{_reachable(settings.host)}:{port}"],
        None,
        ray_address or "",
        settings.data,
        token_file=token_file,
    )
    if ray_address is None:
        say("starting Ray")
        _start_ray(info, run_dir)
        _write_down(info, run_dir)
    say("starting managers and HTTP")
    _deploy(info, settings, port)
    _wait_until_ready(info, settings.service)
    _write_down(info, run_dir)
    return info


def prepared(settings: Settings) -> Settings:
    """Settings as the service will use them: an absolute folder, and a pool that fits this machine."""
    changes: dict[str, object] = {}
    if not settings.data:
        raise InvalidRequest("choose a folder, or s3://BUCKET/PREFIX", "data")
    if not settings.is_s3:
        folder = Path(settings.data).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        changes["data"] = str(folder)
    if settings.pools == Settings().pools:
        cores = os.cpu_count() or 1
        changes["pools"] = {"default": PoolSettings(min_workers=1, max_workers=cores)}
    return msgspec.structs.replace(settings, **changes)


def free_port(host: str, first: int) -> int:
    """The first port from `first` on that nobody uses, however they bound it."""
    for port in range(first, first + PORTS_TRIED):
        if _is_free(host, port):
            return port
    raise Unavailable(f"no port from {first} to {first + PORTS_TRIED - 1} is free")


def _is_free(host: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(0.5)
        if probe.connect_ex((_reachable(host), port)) == 0:
            return False  # someone answers, perhaps with SO_REUSEPORT
    with closing(socket.socket()) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else host


def _some_free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _secret_file(path: Path, secret: str) -> str:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
    return str(path)


def _start_ray(info: ServiceInfo, run_dir: Path) -> None:
    """A Ray head for this service alone, on loopback, with a token of its own."""
    info.temp_dir = tempfile.mkdtemp(prefix="jobsvc-", dir="/tmp")  # short: Ray puts sockets under it
    info.ray_token_file = _secret_file(run_dir / f"{info.service}.ray-token", secrets.token_hex(32))
    gcs, dashboard, agent, client = _some_free_ports(4)
    info.ray_address = f"127.0.0.1:{gcs}"
    info.dashboard_url = f"http://127.0.0.1:{dashboard}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--temp-dir", info.temp_dir]
    for option, value in {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-host": "127.0.0.1",
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "node-ip-address": "127.0.0.1",
        "num-cpus": os.cpu_count() or 1,
        "object-store-memory": OBJECT_STORE_BYTES,
    }.items():
        command += [f"--{option}", str(value)]
    _run([*command, "--disable-usage-stats"], info, "")


def _environment(info: ServiceInfo) -> dict[str, str]:
    environment = dict(os.environ)
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    # A call to a process that has died fails at once; by default Ray waits a second for details.
    environment.setdefault("RAY_timeout_ms_task_wait_for_death_info", "20")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), environment.get("PYTHONPATH")]))
    environment.pop("RAY_ADDRESS", None)
    environment.pop("JOBSVC_TOKEN", None)  # it has a file; children have no use for it
    if info.ray_token_file:
        environment["RAY_AUTH_MODE"] = "token"
        environment["RAY_AUTH_TOKEN_PATH"] = info.ray_token_file
    return environment


def _run(command: list[str], info: ServiceInfo, text: str) -> None:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, env=_environment(info), check=False
    )
    if done.returncode != 0:
        end_processes(info, lambda _: None)
        raise Unavailable(f"{command[2]} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def _deploy(info: ServiceInfo, settings: Settings, port: int) -> None:
    command = [sys.executable, "-m", "jobsvc.serve_app", "--address", info.ray_address, "--port", str(port)]
    if info.token_file:
        command += ["--token-file", info.token_file]
    _run(command, info, encode_settings(settings))


def _wait_until_ready(info: ServiceInfo, service: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not answers(info):
        if time.monotonic() > deadline:
            raise Unavailable(f"{service} did not become ready in {READY_SECONDS:g} s; logs: {info.temp_dir}")
        time.sleep(0.05)


def _write_down(info: ServiceInfo, run_dir: Path) -> None:
    path = discovery_file(info.service, run_dir)
    fresh = path.with_suffix(".new")
    _secret_file(fresh, msgspec.json.encode(info).decode())
    fresh.replace(path)


# --- down --------------------------------------------------------------------------------------------


def down(service: str = "jobsvc", *, run_dir: Path | None = None, say: Say = print) -> bool:
    """End the service. Returns False if there was none. The journal stays where it is."""
    info = find_service(service, run_dir)
    if info is None:
        return False
    ended = end_processes(info, say)
    for path in (info.token_file, info.ray_token_file):
        if path:
            Path(path).unlink(missing_ok=True)
    discovery_file(service, run_dir).unlink(missing_ok=True)
    say(f"{service} has ended ({ended} processes)")
    return True


def end_processes(info: ServiceInfo, say: Say) -> int:
    """End what belongs to the service's own Ray: TERM, then KILL, until nothing is left."""
    if info.temp_dir is None:
        return 0
    ended: set[int] = set()
    deadline = time.monotonic() + 4 * TERM_SECONDS
    while processes := list(service_processes(info)):
        if time.monotonic() > deadline:
            left = ", ".join(str(process.pid) for process in processes)
            raise Unavailable(f"these processes do not end: {left}")
        if not ended:
            say(f"ending {len(processes)} processes")
        ended |= {process.pid for process in processes}
        _signal(processes, "terminate")
        _, alive = psutil.wait_procs(processes, timeout=TERM_SECONDS / 2)
        _signal(alive, "kill")
        psutil.wait_procs(alive, timeout=TERM_SECONDS)
    shutil.rmtree(info.temp_dir, ignore_errors=True)
    return len(ended)


def _signal(processes: list[psutil.Process], method: str) -> None:
    for process in processes:
        try:
            getattr(process, method)()
        except psutil.NoSuchProcess:
            continue


def service_processes(info: ServiceInfo) -> Iterator[psutil.Process]:
    """Every living process of the service's Ray, its workers and their jobs."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid == os.getpid() or not _carries(process, info.temp_dir or ""):
            continue
        found[process.pid] = process
        try:
            for child in process.children(recursive=True):
                found.setdefault(child.pid, child)
        except psutil.Error:
            continue
    found.pop(os.getpid(), None)
    for process in found.values():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.NoSuchProcess:
            continue


def _carries(process: psutil.Process, temp_dir: str) -> bool:
    """Ray's own processes name the folder in their arguments, workers in their environment."""
    try:
        if any(temp_dir in argument for argument in process.cmdline()):
            return True
        return any(temp_dir in value for value in process.environ().values())
    except psutil.Error:
        return False  # gone, or another user's
