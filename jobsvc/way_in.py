"""A way in of the service's own, in a Ray that is somebody else's.

There Ray Serve is not ours: it may run the user's applications, on a port and a host that were fixed when it
was started, and once it runs it cannot be moved. So the service answers HTTP by itself: a few detached
actors, each with a server on the same port (the kernel divides the connections over them), on the machine
where `up` was run. They end with the service's other actors, and nothing of them stays. With `route_prefix`
the service is one more application of that Serve instead.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Any

import ray
import uvicorn
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .errors import Unavailable
from .http_express import ExpressLane
from .settings import Settings, decode_settings

NAME_PREFIX = "http-"
LISTEN_SECONDS = 45.0  # a machine that is busy takes its time to start processes
KEEP_ALIVE_SECONDS = 90
BACKLOG = 2048
LEAVE_SECONDS = 5  # for the requests that it has when it is to be made anew
LOOK_SECONDS = 0.2
DEATH_PAUSE_SECONDS = 1.0  # Ray starts it again at once, and for ever

_log = logging.getLogger("jobsvc.http")


class WayIn:
    """One server. Made an actor where it is started."""

    def __init__(self, settings_text: str, token_file: str | None) -> None:
        from .serve_app import replica_app

        settings = decode_settings(settings_text)
        self._socket = _listening(settings.host, settings.port)
        app = replica_app(settings_text, token_file, under_serve=False)
        config = uvicorn.Config(
            ExpressLane(app, app.state.express),
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=LEAVE_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._life = asyncio.ensure_future(self._live())

    async def _live(self) -> None:
        try:
            await self._server.serve(sockets=[self._socket])
        except BaseException:
            _log.exception("this way in ends by a defect")
        time.sleep(DEATH_PAUSE_SECONDS)  # noqa: ASYNC251 - nothing may be answered any more
        os._exit(1)

    async def listens(self) -> int:
        """Returns the process that takes requests, when it does."""
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.02)
        return os.getpid()

    async def leave(self) -> None:
        """Take no more requests, answer those that are here, and end; Ray starts it anew."""
        self._server.should_exit = True


def _listening(host: str, port: int) -> socket.socket:
    """Shared with the other servers of this service, and no other user's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    bound.listen(BACKLOG)
    bound.setblocking(False)
    return bound


def start_ways_in(settings_text: str, token_file: str | None) -> None:
    """Make them, if they are not there, and wait until they listen. Raises Unavailable with the reason."""
    settings = decode_settings(settings_text)
    actor: Any = ray.remote(WayIn)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {
        "namespace": settings.service,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 10_000,
        "num_cpus": 0,
        "enable_task_events": False,
        "scheduling_strategy": here,
    }
    ways_in = [
        actor.options(name=f"{NAME_PREFIX}{number}", **options).remote(settings_text, token_file)
        for number in range(settings.replicas)
    ]
    try:
        ray.get([each.listens.remote() for each in ways_in], timeout=LISTEN_SECONDS)
    except RayError as error:  # a time-out is one too
        reason = " ".join(str(error).split())
        raise Unavailable(f"nothing listens on {settings.host}:{settings.port}: {reason}") from error


def renew_ways_in(settings: Settings) -> None:
    """One after the other, so that somebody listens; each loads its modules anew. Raises Unavailable."""
    for number in range(settings.replicas):
        way_in: Any = ray.get_actor(f"{NAME_PREFIX}{number}", settings.service)
        process = ray.get(way_in.listens.remote(), timeout=LISTEN_SECONDS)
        way_in.leave.remote()
        deadline = time.monotonic() + LISTEN_SECONDS
        while _listening_process(way_in) in (process, None):
            if time.monotonic() > deadline:
                raise Unavailable(f"{NAME_PREFIX}{number} did not come back in {LISTEN_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)


def _listening_process(way_in: Any) -> int | None:
    try:
        process: int = ray.get(way_in.listens.remote(), timeout=LISTEN_SECONDS)
        return process
    except RayError:
        return None  # it is being started anew
