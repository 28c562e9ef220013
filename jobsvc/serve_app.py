"""The Serve application: what answers HTTP, and the program that puts managers and replicas into Ray.

`main` runs as a short-lived driver: it makes the pair of managers and the Serve application, all detached,
and ends. Running it again changes nothing that is in place. Settings come on stdin, so that the program can
load its modules while Ray is still starting.

A replica gets its settings with its code; the token travels as the path of a file that only the service's
user can read.

Where the cluster has the custom resource `jobsvc_http`, replicas are placed only there: a replica, like every
living actor, keeps its node from being scaled down. With `spread` they are divided over two such machines,
and each of these has a proxy: two ways in. Nobody waits for the second machine, which may come minutes later.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import ray
import uuid_utils
from ray import serve
from ray._private import services as ray_services
from ray._private import worker as ray_worker
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError
from ray.job_config import JobConfig

from .deployed import decode_deployed
from .door_tasks import DoorTasks
from .errors import InvalidRequest, JobsvcError, Unavailable
from .gateway import Gateway
from .grafana_dashboard import put_beside_rays
from .http_api import build_app
from .jobs import encode
from .leader_links import MANAGER_NAMES, RayManagers
from .logs import log_as_json
from .manager_actor import start_managers
from .metrics import feed_ray
from .placed import EXIT_NO_USE, EXIT_REFUSED
from .pool_environments import with_packages
from .ray_code import get_code, put_code
from .ray_links import page_link
from .ray_versions import check_versions
from .s3_store import open_store
from .serve_express import open_express
from .service_code import ServiceCode
from .settings import Settings, decode_settings, encode_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

HTTP_RESOURCE = "jobsvc_http"
DEPLOYMENT_NAME = "http"
WAYS_IN = 2
GRAFANA_SECONDS = 10.0  # Ray's dashboard may still be starting
ONGOING_MAX = 5_000  # Serve's own default is 5: long polls and batches would wait for each other
CONNECT_SECONDS = 15.0
MANAGER_SECONDS = 10.0
GC_THRESHOLDS = (20_000, 50, 100)

_log = logging.getLogger("jobsvc.http")


def app_builder(settings_text: str, token_file: str | None) -> Callable[[], FastAPI]:
    """A function that Serve calls in each replica."""

    def build_replica_app() -> FastAPI:
        return replica_app(settings_text, token_file)

    return build_replica_app


def replica_app(settings_text: str, token_file: str | None, *, under_serve: bool = True) -> FastAPI:
    """The ASGI app of one replica, wired to the managers over Ray."""
    settings = decode_settings(settings_text)
    token = Path(token_file).read_text().strip() if token_file else None
    log_as_json(settings.log_level, replica=str(os.getpid()))
    gc.set_threshold(*GC_THRESHOLDS)
    gateway = Gateway(
        RayManagers(settings.service, settings.request_deadline_seconds),
        open_store(settings),
        settings,
        new_id=lambda: uuid_utils.uuid7().bytes,
        wall=time.time,
    )
    tasks = DoorTasks(settings.tasks, settings.allow_shell, get_code(settings.service), time.monotonic)
    if (problem := tasks.problem()) is not None:
        _log.warning("goes by the names of tasks, and checks no arguments: %s", problem)
    app = build_app(
        gateway,
        settings,
        token,
        tasks.registry,
        code_problem=tasks.problem,
        server_echoes_request_id=under_serve,
        ray_dashboard_url=settings.ray_dashboard_url or ray_dashboard_url(),
    )

    if under_serve:
        open_express(app.state.express)

    @asynccontextmanager
    async def feeding(_: FastAPI) -> AsyncIterator[None]:
        own = app.state.own_figures
        feed = asyncio.create_task(feed_ray(lambda ray_metrics: ray_metrics.update_replica(own())))
        yield
        feed.cancel()

    app.router.lifespan_context = feeding
    return app


def ray_dashboard_url() -> str | None:
    """Where Ray says that its dashboard is; None if it has none. A replica's own node says its default."""
    address: str | None = ray_services.get_webui_url_from_internal_kv()  # type: ignore[no-untyped-call]
    return f"http://{address}" if address else None


class _Replica:
    """Serve wants a class to hang the app on; the app is everything."""


def deploy(settings: Settings, token_file: str | None) -> None:
    """Managers, then Serve, which is ours here. Idempotent; returns when the application is running."""
    start_managers(encode_settings(settings))
    where = "EveryNode" if settings.spread else "HeadOnly"  # every node with a replica, that is
    serve.start(proxy_location=where, http_options={"host": settings.host, "port": settings.port})
    run_under_serve(settings, token_file)


def run_under_serve(settings: Settings, token_file: str | None) -> None:
    """Make the application of the Serve that runs."""
    ingress: Any = serve.ingress(app_builder(encode_settings(settings), token_file))
    application = serve.deployment(
        name=DEPLOYMENT_NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=ONGOING_MAX,
        graceful_shutdown_timeout_s=5,
        health_check_period_s=5,
        health_check_timeout_s=15,
        ray_actor_options=replica_options(settings),
        logging_config={"enable_access_log": False},
    )(ingress(_Replica))
    bound: Any = application.bind()
    target = serve.RunTarget(bound, name=settings.service, route_prefix=settings.route_prefix or "/")
    serve.run_many([target], wait_for_applications_running=not settings.spread)


def tell_managers(service: str, code: ServiceCode) -> None:
    """Both, whoever leads; one that is just being started anew reads what Ray keeps."""
    data = encode(code)
    for name in MANAGER_NAMES:
        try:
            ray.get(ray.get_actor(name, service).use_code.remote(data), timeout=MANAGER_SECONDS)
        except (ValueError, RayError):
            continue  # it is being started anew


def replica_options(settings: Settings) -> dict[str, Any]:
    """A replica waits most of the time; it must not take a job's CPU."""
    options: dict[str, Any] = {"num_cpus": 0}
    if settings.spread:
        on_each = max(1, -(-settings.replicas // WAYS_IN))
        options["resources"] = {HTTP_RESOURCE: math.floor(1000 / on_each) / 1000}
    elif ray.cluster_resources().get(HTTP_RESOURCE, 0) > 0:  # type: ignore[no-untyped-call]
        options["resources"] = {HTTP_RESOURCE: 0.001}
    return options


def driver_metadata(settings: Settings) -> dict[str, str]:
    """What Ray's dashboard shows of the one Ray job that there is: every actor leads to it, and it to us."""
    return {
        "service": settings.service,
        "page": page_link(settings.host, settings.port),
        "about": "put managers and HTTP into Ray, and ended; jobs of the service are on its page",
    }


def show_in_grafana() -> None:
    """Whoever runs Grafana with Ray's configuration finds the service's dashboard there."""
    node = ray_worker.global_worker.node
    if node is not None:
        put_beside_rays(Path(node.get_session_dir_path()), GRAFANA_SECONDS)


def main() -> None:
    """What was wrong goes to stderr as one line where it is known, with the exit code that says so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--token-file")
    parser.add_argument("--reload", action="store_true", help="it runs, and is to have other code")
    parser.add_argument("--guest", action="store_true", help="the Ray is somebody else's")
    parser.add_argument("--remove", metavar="SERVICE")
    parser.add_argument("--started-serve", action="store_true")
    options = parser.parse_args()
    try:
        if options.remove:
            _remove(options)
        else:
            _deploy(options)
    except JobsvcError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_REFUSED if isinstance(error, InvalidRequest) else EXIT_NO_USE)


def _deploy(options: argparse.Namespace) -> None:
    deployed = decode_deployed(sys.stdin.read())
    settings = deployed.settings
    _connect(options.address, settings.service, JobConfig(metadata=driver_metadata(settings)))
    settings = with_packages(settings)  # raises before anything has changed
    code = with_environments(deployed.code, settings)
    before = get_code(settings.service)
    put_code(settings.service, code)
    if options.reload:
        _reload(settings, code, options)
        sys.stdout.write(msgspec.json.encode(_repacked(before, code)).decode())
    elif options.guest:
        from . import guest

        placed = guest.place(settings, options.token_file, _token(options))
        sys.stdout.write(msgspec.json.encode(placed).decode())
    else:
        deploy(settings, options.token_file)
        show_in_grafana()


def with_environments(code: ServiceCode, settings: Settings) -> ServiceCode:
    """The code with what pools have packed."""
    environments = {name: pool.runtime_env for name, pool in settings.pools.items() if pool.runtime_env}
    return msgspec.structs.replace(code, environments=environments)


def _repacked(before: ServiceCode | None, code: ServiceCode) -> list[str]:
    """Pools whose workers are started anew, because what they pack is another."""
    if before is None:
        return []
    pools = sorted(before.environments.keys() | code.environments)
    return [pool for pool in pools if before.environment_id(pool) != code.environment_id(pool)]


def _reload(settings: Settings, code: ServiceCode, options: argparse.Namespace) -> None:
    """Workers first: what new replicas let in must not meet old code."""
    tell_managers(settings.service, code)
    if options.guest:
        from . import guest

        guest.renew_http(settings, options.token_file, _token(options))
    else:
        run_under_serve(settings, options.token_file)


def _token(options: argparse.Namespace) -> str | None:
    return Path(options.token_file).read_text() if options.token_file else None


def _remove(options: argparse.Namespace) -> None:
    from . import guest

    _connect(options.address, options.remove, JobConfig(metadata={}))
    guest.take_out(options.remove, options.started_serve)


def _connect(address: str, namespace: str, job_config: JobConfig) -> None:
    """Raises Unavailable with one line. A listener that is no Ray would be asked for a minute."""
    in_time = threading.Timer(CONNECT_SECONDS, _give_up, [address])
    in_time.daemon = True
    in_time.start()
    try:
        if address != "auto":
            head = GcsClient(address=address)
            check_versions(address, lambda key, namespace: head.internal_kv_get(key, namespace=namespace))
        ray.init(
            address=address,
            namespace=namespace,
            job_config=job_config,
            log_to_driver=False,
            configure_logging=False,
        )
    except JobsvcError:
        raise
    except Exception as error:  # a token that is refused, nobody there
        raise Unavailable(f"ray_address: {address}: {' '.join(str(error).split())}") from error
    finally:
        in_time.cancel()


def _give_up(address: str) -> None:
    sys.stderr.write(
        f"ray_address: what listens at {address} has not answered as a Ray in {CONNECT_SECONDS:g} s\n"
    )
    sys.stderr.flush()
    os._exit(EXIT_NO_USE)
