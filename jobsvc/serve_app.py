"""The Serve application: what answers HTTP, and the program that puts managers and replicas into Ray.

`python -m jobsvc.serve_app --address … --port …` runs as a short-lived driver: it makes the pair of managers
and the Serve application, all detached, and ends. Running it again changes nothing that is in place.

A replica's settings travel as environment variables of the replica, because Serve builds the app there;
the token travels as the path of a file that only the service's user can read.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import uuid_utils
from ray import serve

from .gateway import Gateway
from .http_api import build_app
from .leader_links import RayManagers
from .logs import log_as_json
from .manager_actor import start_managers
from .s3_store import open_store
from .settings import decode_settings
from .tasks import load_tasks

if TYPE_CHECKING:
    from fastapi import FastAPI

SETTINGS_VARIABLE = "JOBSVC_REPLICA_SETTINGS"
TOKEN_FILE_VARIABLE = "JOBSVC_TOKEN_FILE"
ONGOING_MAX = 5_000  # Serve's own default is 5: long polls and batches would wait for each other


def build_replica_app() -> FastAPI:
    """The ASGI app of one replica, wired to the managers over Ray."""
    settings = decode_settings(os.environ[SETTINGS_VARIABLE])
    token_file = os.environ.get(TOKEN_FILE_VARIABLE)
    token = Path(token_file).read_text().strip() if token_file else None
    log_as_json(replica=str(os.getpid()))
    gateway = Gateway(
        RayManagers(settings.service, settings.request_deadline_seconds),
        open_store(settings),
        settings,
        new_id=lambda: uuid_utils.uuid7().bytes,
        wall=time.time,
    )
    registry = load_tasks(settings.tasks, allow_shell=settings.allow_shell)
    return build_app(gateway, settings, token, registry)


def deploy(settings_text: str, port: int, token_file: str | None, replicas: int) -> None:
    """Managers, then Serve. Idempotent; returns when the application is running."""
    settings = decode_settings(settings_text)
    start_managers(settings_text)
    serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": port})
    environment = {SETTINGS_VARIABLE: settings_text}
    if token_file:
        environment[TOKEN_FILE_VARIABLE] = token_file
    application = serve.deployment(
        name="http",
        num_replicas=replicas,
        max_ongoing_requests=ONGOING_MAX,
        graceful_shutdown_timeout_s=5,
        health_check_period_s=5,
        health_check_timeout_s=15,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": environment}},
    )(serve.ingress(build_replica_app)(_Replica))
    bound: Any = application.bind()
    serve.run(bound, name=settings.service, route_prefix="/", blocking=False)


class _Replica:
    """Serve wants a class to hang the app on; the app is everything."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token-file")
    parser.add_argument("--replicas", type=int, default=1)
    options = parser.parse_args()
    settings_text = sys.stdin.read()
    settings = decode_settings(settings_text)
    ray.init(
        address=options.address, namespace=settings.service, log_to_driver=False, configure_logging=False
    )
    deploy(settings_text, options.port, options.token_file, options.replicas)


if __name__ == "__main__":
    main()
