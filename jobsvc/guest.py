"""The service in a Ray that is somebody else's: beside their applications and jobs, and gone without a trace.

It comes with a way in of its own (`way_in`), or, with `route_prefix`, as one more application of the Serve
that runs there, at the host and port that this one has. Where none runs, it is started, and ended again by
`down` if nobody else has come to use it. What goes wrong halfway is taken out again, unless the service was
there before.
"""

from __future__ import annotations

from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.util import list_named_actors

from .access import check_bind
from .errors import InvalidRequest
from .leader_links import MANAGER_NAMES
from .manager_actor import WORKER_PREFIX, start_managers
from .placed import Placed
from .ports import reachable
from .ray_code import forget_code
from .serve_app import run_under_serve
from .settings import Settings, encode_settings
from .way_in import NAME_PREFIX, renew_ways_in, start_ways_in

NO_PROXY = "NoServer"
HEAD_ONLY = "HeadOnly"


def place(settings: Settings, token_file: str | None, token: str | None) -> Placed:
    """Put the service into this Ray. Raises InvalidRequest or Unavailable, and then nothing new stays."""
    is_new = not names_of(settings.service)
    placed = Placed(f"http://{reachable(settings.host)}:{settings.port}{settings.route_prefix}", is_new)
    placed.words = words_about_room(settings) if is_new else []
    try:
        if settings.route_prefix:
            settings, placed.started_serve = beside_applications(settings, token, is_new)
            start_managers(encode_settings(settings))
            run_under_serve(settings, token_file)
            placed.url = url_under_serve(settings)
        else:
            start_managers(encode_settings(settings))
            start_ways_in(encode_settings(settings), token_file)
    except BaseException:
        if is_new:
            take_out(settings.service, placed.started_serve)
        raise
    return placed


def renew_http(settings: Settings, token_file: str | None, token: str | None) -> None:
    """Have what answers HTTP load its modules anew."""
    if settings.route_prefix:
        settings, _ = beside_applications(settings, token, is_new=False)
        run_under_serve(settings, token_file)
    else:
        renew_ways_in(settings)


def beside_applications(settings: Settings, token: str | None, is_new: bool) -> tuple[Settings, bool]:
    """Settings with the host and port of the Serve that runs here, and whether it must be started."""
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        serve.start(proxy_location=HEAD_ONLY, http_options={"host": settings.host, "port": settings.port})
        return settings, True
    options = client.http_config
    if options.location == NO_PROXY or options.host is None:
        raise InvalidRequest("the Serve of this Ray takes no HTTP: leave the prefix out", "route_prefix")
    check_bind(options.host, token)
    for name, details in client.get_serve_details()["applications"].items():
        taken = details["route_prefix"]
        if name != settings.service and taken == settings.route_prefix:
            raise InvalidRequest(
                f"{taken} is the prefix of the Serve application {name!r}: choose another", "route_prefix"
            )
        if name == settings.service and is_new:
            raise InvalidRequest(
                f"there is a Serve application {name!r} that is not ours: choose another --service", "service"
            )
    return msgspec.structs.replace(settings, host=options.host, port=options.port), False


def url_under_serve(settings: Settings) -> str:
    """Through the proxy of this machine, if it has one."""
    client: Any = _get_global_client()
    proxies = client.get_serve_details()["proxies"]
    here = ray.get_runtime_context().get_node_id()
    host = reachable(settings.host)
    if here not in proxies and proxies:
        host = next(iter(proxies.values()))["node_ip"]
    return f"http://{host}:{settings.port}{settings.route_prefix}"


def words_about_room(settings: Settings) -> list[str]:
    """Which pools cannot have a worker now, because everything that it takes is taken."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    whole: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    words = []
    for name, pool in settings.pools.items():
        wanted = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
        for resource, amount in wanted.items():
            if free.get(resource, 0.0) < amount <= whole.get(resource, 0.0) and pool.max_workers:
                words.append(
                    f"pool {name}: a worker takes {amount:g} {resource}, and {free.get(resource, 0.0):g} of"
                    f" {whole[resource]:g} in this Ray are free: its jobs wait until others give some back"
                )
    return words


def names_of(service: str) -> list[str]:
    """The service's actors in this Ray: managers first, so that they start nothing more."""
    ours = (*MANAGER_NAMES, NAME_PREFIX, WORKER_PREFIX)
    names = [
        actor["name"]
        for actor in list_named_actors(all_namespaces=True)
        if actor["namespace"] == service and actor["name"].startswith(ours)
    ]
    return sorted(names, key=lambda name: name not in MANAGER_NAMES)


def take_out(service: str, started_serve: bool) -> None:
    """Take the service out of a Ray that goes on without it, and Serve if nobody else uses it."""
    there = serve.status().applications
    if service in there and (names_of(service) or started_serve):
        serve.delete(service)
    for name in names_of(service):
        try:
            ray.kill(ray.get_actor(name, service), no_restart=True)
        except ValueError:
            continue  # it has ended
    forget_code(service)
    if started_serve and not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]
