"""What `reload` looks at before it touches a service that runs.

As in `start_checks`: each says nothing, or raises one line, and nothing has changed. A reload brings in the
code of the tasks and what pools pack, and nothing else; whoever has changed other settings and expects them
to come in is told that they do not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from .deployed import Deployed, read_deployed
from .discovery import RUN_DIR_VARIABLE, ServiceInfo, find_service, not_ready_because
from .errors import InvalidRequest, Unavailable
from .pool_environments import with_absolute_paths
from .service_processes import has_supervisors
from .settings import VARIABLE_PREFIX, Settings, from_environment
from .settings_bounds import check_name

ANSWER_SECONDS = 1.5
# What `up` may have been told on its command line, and what it changes itself: a variable proves nothing.
NOT_BY_VARIABLE_ALONE = frozenset(
    {"data", "port", "host", "tasks", "service", "route_prefix", "s3_endpoint_url"}
    | {"allow_shell", "allow_code", "proxy"}
)


def known_service(service: str, run_dir: Path) -> ServiceInfo:
    """What `up` wrote down of it. Raises InvalidRequest, or Unavailable with the names that there are."""
    check_name(service, "service")
    if run_dir.exists() and not run_dir.is_dir():
        raise InvalidRequest(f"{run_dir.absolute()} is a file; it must be a folder", RUN_DIR_VARIABLE)
    info = find_service(service, run_dir)
    if info is None:
        others = sorted(path.stem for path in run_dir.glob("*.json"))
        advice = f"there is {', '.join(others)}" if others else "start it with `jobsvc up`"
        raise Unavailable(f"no service named {service} is known in {run_dir.absolute()}: {advice}")
    return info


def reloadable(info: ServiceInfo, run_dir: Path, environment: Mapping[str, str]) -> Deployed:
    """What of the service may be reloaded: it is one of this version, it runs, and is ready."""
    deployed = read_deployed(info, run_dir)
    if deployed is None:
        detail = f"another version of jobsvc has started {info.service}: end it and start it again"
        raise InvalidRequest(detail, "service")
    changed = ", ".join(changed_variables(environment, deployed))
    if changed:
        raise InvalidRequest(
            f"{changed}: {info.service} runs with other settings, and reload brings in code alone; `jobsvc"
            " down` and `jobsvc up` bring settings in. To reload the code now, unset the variable"
        )
    if deployed.folder is not None and not os.path.isdir(deployed.folder):
        detail = f"{info.service} was started in {deployed.folder}, which is no folder any more"
        raise InvalidRequest(f"{detail}: its modules cannot be looked for", "tasks")
    if info.instance is not None and not has_supervisors(info):
        raise Unavailable(f"{info.service} does not run any more: `jobsvc up` starts it again")
    problem = not_ready_because(info, ANSWER_SECONDS)
    if problem is not None:
        does_not = f"is not ready: {problem}" if problem else f"does not answer at {info.urls[0]}"
        raise Unavailable(f"{info.service} {does_not}; nothing was changed")
    return deployed


def changed_variables(environment: Mapping[str, str], deployed: Deployed) -> Iterator[str]:
    """Variables that now say something else than what the service runs with."""
    names = [
        field.name
        for field in msgspec.structs.fields(Settings)
        if field.name not in NOT_BY_VARIABLE_ALONE and _variable(field.name) in environment
    ]
    if not names:
        return
    alone = {_variable(name): environment[_variable(name)] for name in names}
    alone.setdefault(_variable("pools"), msgspec.json.encode(deployed.settings.pools).decode())
    said = with_absolute_paths(from_environment(alone), Path(deployed.folder or "."))
    for name in names:
        if getattr(said, name) != getattr(deployed.settings, name):
            yield _variable(name)


def differing_settings(said: Settings, running: Settings) -> list[str]:
    """Names of those that differ, but for what `up` changes itself."""
    names = [field.name for field in msgspec.structs.fields(Settings) if field.name not in ("port", "proxy")]
    return [name for name in names if getattr(said, name) != getattr(running, name)]


def _variable(name: str) -> str:
    return f"{VARIABLE_PREFIX}{name.upper()}"
