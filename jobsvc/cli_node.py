"""Commands that run on the machines of a cluster: `jobsvc node head`, `jobsvc node worker`, `jobsvc guard`.

The first two are the start commands in the cluster file. `ray up` and the autoscaler run them over SSH
and take their exit code for the answer whether the node is up, so `head` returns when the service
answers.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from .cli_output import JsonOption, errors_as_exit_codes, print_json, print_rows, say
from .discovery import ServiceInfo, answers, find_service, run_dir_from_environment, secret_file
from .errors import InvalidRequest, Unavailable
from .guard_files import STARTED_BY_VARIABLE, GuardFiles, publish
from .known_variables import complaints
from .node_units import (
    BOOTSTRAP_CONFIG,
    BOOTSTRAP_KEY,
    GCS_PORT,
    SERVICE_UNIT,
    Node,
    Systemd,
    head_units,
    install,
    unit_environment,
    worker_units,
)
from .ports import is_listening
from .serve_proxy import PYTHON_PROXY, ProxyPorts, haproxy_environment, has_haproxy
from .settings import Settings, from_environment

READY_SECONDS = 300.0
GCS_SECONDS = 120.0
POLL_SECONDS = 0.5
LINES_SHOWN = 15
MANAGER_RESOURCE = "jobsvc_manager"
HTTP_RESOURCE = "jobsvc_http"
# The same on every machine: each proxy sends to the replicas of both.
PROXY_PORTS = ProxyPorts(metrics=9101, stats=8404, fallback=8500, replicas=20_000)
# Half of the requests would go to a machine that was unplugged, until its proxy's checks have failed.
QUICK_CHECKS = {"RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1", "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s"}
INSTANCE_VARIABLE = "RAY_CLOUD_INSTANCE_ID"
HEAD_VARIABLES = ("RAY_enable_autoscaler_v2", INSTANCE_VARIABLE, "RAY_NODE_TYPE_NAME")
MANAGER_NO_HEAD_SECONDS = 3600.0  # its guard needs time: a new head may have to wait for a machine

node = typer.Typer(help="Commands that `ray up` runs on the machines of a cluster.", no_args_is_help=True)

ClusterData = Annotated[str, typer.Option(help="s3://BUCKET/PREFIX.", show_default=False)]
ClusterPort = Annotated[int, typer.Option(help="Of HTTP; the next free one if it is taken.")]
ClusterTasks = Annotated[list[str] | None, typer.Option(help="Module with tasks; may be repeated.")]
ClusterSettings = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting, as in JOBSVC_KEY; may be repeated.")
]
ClusterEndpoint = Annotated[str | None, typer.Option(help="For S3 that is not AWS.")]
ClusterPath = Annotated[Path, typer.Option("--cluster", help="The cluster file that `ray up` left here.")]
BOOTSTRAP_PATH = Path("~") / BOOTSTRAP_CONFIG


@node.command()
def head(
    data: ClusterData,
    port: ClusterPort = 8000,
    tasks: ClusterTasks = None,
    settings: ClusterSettings = None,
    s3_endpoint_url: ClusterEndpoint = None,
    cluster: ClusterPath = BOOTSTRAP_PATH,
    json: JsonOption = False,
) -> None:
    """Make this machine the head: Ray and the service under systemd. Returns when the service answers."""
    with errors_as_exit_codes():
        chosen = cluster_settings(data, port, tasks, settings, s3_endpoint_url)
        systemd = Systemd(is_root=os.geteuid() == 0)
        systemd.check()
        for variable in HEAD_VARIABLES:
            if not os.environ.get(variable):
                raise InvalidRequest("is not set: `ray up` sets it for the head's start commands", variable)
        for name in (".ray/auth_token", ".jobsvc/token"):
            secret_of(name)
        cluster = cluster.expanduser()
        asyncio.run(tell_guards(chosen, files_for_guards(cluster)))
        options = service_options(data, port, tasks, settings, s3_endpoint_url)
        in_store = store_words(data, s3_endpoint_url)
        units = head_units(this_node(chosen), chosen.service, options, in_store, str(cluster))
        started = install(systemd, units)
        say(f"started {', '.join(started)}" if started else "already running as it should")
        info = wait_until_ready(chosen.service, systemd)
        rows = [("API", info.urls[0]), ("data", info.data)]
        print_json(info) if json else print_rows(("what", "where"), rows)


@node.command()
def worker(
    data: Annotated[
        str | None, typer.Option(help="s3://BUCKET/PREFIX: for the guard on the manager node.")
    ] = None,
    s3_endpoint_url: ClusterEndpoint = None,
) -> None:
    """Make this machine a node of the head that runs this here: Ray and the watchdog under systemd."""
    with errors_as_exit_codes():
        head_ip = os.environ.get("RAY_HEAD_IP")
        if not head_ip:
            raise InvalidRequest("is not set: the autoscaler sets it for start commands", "RAY_HEAD_IP")
        systemd = Systemd(is_root=os.geteuid() == 0)
        systemd.check()
        secret_of(".ray/auth_token")
        chosen = from_environment(os.environ)
        here = this_node(chosen)
        resources = resources_of_node()
        guard_options = None
        if HTTP_RESOURCE in resources:
            share_token(chosen.service)
        if MANAGER_RESOURCE in resources:
            guard_options = guard_words(data or os.environ.get("JOBSVC_DATA"), s3_endpoint_url)
            here.environment.setdefault("JOBSVC_NO_HEAD_SECONDS", f"{MANAGER_NO_HEAD_SECONDS:g}")
        started = install(systemd, worker_units(here, head_ip, guard_options))
        say(f"started {', '.join(started)}" if started else "already running as it should")


@node.command(hidden=True)
def service(
    data: ClusterData,
    port: ClusterPort = 8000,
    tasks: ClusterTasks = None,
    settings: ClusterSettings = None,
    s3_endpoint_url: ClusterEndpoint = None,
) -> None:
    """What jobsvc-service.service runs: put the service into this machine's Ray as soon as that answers."""
    from . import service as services

    with errors_as_exit_codes():
        chosen = cluster_settings(data, port, tasks, settings, s3_endpoint_url)
        address = f"127.0.0.1:{GCS_PORT}"
        wait_for(lambda: is_listening(address), GCS_SECONDS, f"Ray does not listen on {address}")
        services.up(chosen, token=secret_of(".jobsvc/token"), ray_address=address, say=say)


@node.command(hidden=True)
def pulse(data: ClusterData, s3_endpoint_url: ClusterEndpoint = None) -> None:
    """What jobsvc-pulse.service runs: tell guards that this head lives. Runs until it is ended."""
    from .head_pulse import Pulse, ray_answers
    from .logs import log_as_json
    from .s3_store import open_store

    with errors_as_exit_codes():
        own_id = os.environ.get(INSTANCE_VARIABLE)
        if not own_id:
            raise InvalidRequest("is not set: `ray up` sets it for start commands", INSTANCE_VARIABLE)
        chosen = from_environment(os.environ, data=data, s3_endpoint_url=s3_endpoint_url)
        log_as_json(chosen.log_level)
        head = Pulse(open_store(chosen), own_id, lambda: ray_answers(f"127.0.0.1:{GCS_PORT}"))
        asyncio.run(head.run())


def guard(data: ClusterData, s3_endpoint_url: ClusterEndpoint = None) -> None:
    """On the manager node: bring back a head that is gone. Runs until it is ended."""
    from .guard_machine import run_guard
    from .logs import log_as_json

    with errors_as_exit_codes():
        chosen = from_environment(os.environ, data=data, s3_endpoint_url=s3_endpoint_url)
        log_as_json(chosen.log_level)
        asyncio.run(run_guard(chosen, os.environ))


# --- what was said ---------------------------------------------------------------------------------------


def cluster_settings(
    data: str,
    port: int,
    tasks: list[str] | None,
    settings: list[str] | None,
    s3_endpoint_url: str | None,
) -> Settings:
    """Settings of a service that runs on a cluster. Raises InvalidRequest, naming what to fix."""
    for complaint in complaints(os.environ):
        say(complaint)
    environment = dict(os.environ)
    known = {field.name for field in msgspec.structs.fields(Settings)}
    for each in settings or ():
        key, equals, value = each.partition("=")
        if not equals or key not in known:
            raise InvalidRequest(f"{each!r} is not KEY=VALUE with a setting's name", "settings")
        environment[f"JOBSVC_{key.upper()}"] = value
    chosen = from_environment(
        environment,
        data=data,
        port=port,
        host="0.0.0.0",
        spread=True,
        tasks=tuple(tasks) if tasks else None,
        s3_endpoint_url=s3_endpoint_url,
    )
    if not chosen.is_s3:
        raise InvalidRequest(f"{data!r} would be lost with the head: use s3://BUCKET/PREFIX", "data")
    return chosen


def service_options(
    data: str, port: int, tasks: list[str] | None, settings: list[str] | None, s3_endpoint_url: str | None
) -> list[str]:
    """The same words again, for `jobsvc node service`."""
    words = ["--data", data, "--port", str(port)]
    for module in tasks or ():
        words += ["--tasks", module]
    for each in settings or ():
        words += ["--settings", each]
    return words + (["--s3-endpoint-url", s3_endpoint_url] if s3_endpoint_url else [])


def guard_words(data: str | None, s3_endpoint_url: str | None) -> list[str]:
    if not data or not data.startswith("s3://"):
        raise InvalidRequest(
            "the manager node's guard needs s3://BUCKET/PREFIX: say it in worker_start_ray_commands", "data"
        )
    return store_words(data, s3_endpoint_url)


def store_words(data: str, s3_endpoint_url: str | None) -> list[str]:
    return ["--data", data, *(["--s3-endpoint-url", s3_endpoint_url] if s3_endpoint_url else [])]


def resources_of_node() -> dict[str, float]:
    """What the cluster file says that this machine has, as Ray hands it to start commands."""
    text = os.environ.get("RAY_OVERRIDE_RESOURCES") or "{}"
    try:
        return msgspec.json.decode(text, type=dict[str, float])
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{text!r} is not a mapping of numbers", "RAY_OVERRIDE_RESOURCES") from error


# --- this machine ----------------------------------------------------------------------------------------


def this_node(settings: Settings) -> Node:
    home = Path.home()
    package_parent = Path(__file__).resolve().parent.parent
    is_installed = package_parent.name in ("site-packages", "dist-packages")
    proxy = dict(PYTHON_PROXY)
    if settings.proxy == "haproxy" and has_haproxy():
        folder = home / ".jobsvc"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        proxy = haproxy_environment(folder, PROXY_PORTS) | QUICK_CHECKS
    return Node(
        python=sys.executable,
        user=getpass.getuser(),
        home=str(home),
        run_dir=str(run_dir_from_environment()),
        code=code_of_package(Path(__file__).parent),
        environment=unit_environment(
            os.environ, sys.executable, proxy, None if is_installed else str(package_parent)
        ),
    )


def code_of_package(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def secret_of(name: str) -> str:
    """A secret that `file_mounts` brings to every machine."""
    try:
        secret = (Path.home() / name).read_text().strip()
    except FileNotFoundError:
        secret = ""
    if not secret:
        raise InvalidRequest(f"~/{name} is missing on this machine, or empty: mount it", "file_mounts")
    return secret


def share_token(service: str) -> None:
    """Replicas on this machine read their token from the path that it has on the head."""
    run_dir = run_dir_from_environment()
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret_file(run_dir / f"{service}.token", secret_of(".jobsvc/token"))


def files_for_guards(config: Path) -> GuardFiles:
    """What `ray up` left on this machine."""
    key = config.parent / BOOTSTRAP_KEY
    if not config.exists():
        raise InvalidRequest(f"{config} is missing: `ray up` puts it there", "cluster")
    if not key.exists():
        raise InvalidRequest("is missing: without it no guard can bring a head back", "auth.ssh_private_key")
    return GuardFiles(cluster_file=config.read_text(), ssh_key=key.read_text())


async def tell_guards(settings: Settings, files: GuardFiles) -> None:
    """Publish what a guard needs; and that the cluster is wanted, if a person started this head."""
    from .cluster_file import read_cluster_file
    from .ec2_cluster_mark import announce_up
    from .s3_store import open_store

    store = open_store(settings)
    name = read_cluster_file(files.cluster_file, BOOTSTRAP_CONFIG).cluster_name
    await publish(store, files)
    if not os.environ.get(STARTED_BY_VARIABLE):
        await announce_up(store, name, by=f"jobsvc node head on {os.environ[INSTANCE_VARIABLE]}")


# --- waiting ---------------------------------------------------------------------------------------------


def wait_until_ready(service: str, systemd: Systemd) -> ServiceInfo:
    """Raises Unavailable with what the service's unit said last."""
    found: list[ServiceInfo] = []

    def is_ready() -> bool:
        info = find_service(service)
        if info is None or not answers(info):
            return False
        found.append(info)
        return True

    try:
        wait_for(is_ready, READY_SECONDS, f"{service} does not answer")
    except Unavailable as error:
        error.add_note(systemd.last_lines(SERVICE_UNIT, LINES_SHOWN))
        error.add_note(f"more: journalctl -u {SERVICE_UNIT} -u jobsvc-ray.service")
        raise
    return found[0]


def wait_for(is_so: Callable[[], bool], seconds: float, problem: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise Unavailable(f"{problem} after {seconds:g} s")
        time.sleep(POLL_SECONDS)
