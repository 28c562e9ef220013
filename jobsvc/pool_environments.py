"""A pool's settings as Ray takes them: checked by Ray's own checks before anything starts, and made ready.

What Ray would refuse when the first worker of a pool is started, perhaps days later, is refused at `up` and
by `doctor`, with the name of the pool. A local `working_dir` and local `py_modules` work as they do with
`ray.init`: Ray takes them of a driver alone, so whoever deploys packs them, stores them in Ray under the
digest of what they hold, and hands the managers settings that name them so. Ray forgets a package that
nothing refers to; a pool may have no workers for weeks, so packages are pinned, and the managers renew that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from .errors import InvalidRequest
from .scaling import shape_of
from .settings import PoolSettings, Settings

PIN_SECONDS = 30 * 86_400  # Ray counts it in milliseconds of 32 bits
MACHINE_LABEL = "machine-type"  # of each type in the cluster file: its own name
PACKAGE_SCHEME = "gcs://"
FILES = ("working_dir", "pip", "uv", "conda")  # may name a local folder or file
TEXT_CHARACTERS_MAX = 300


def worker_options(
    pool: PoolSettings, name: str, namespace: str, not_on: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Ray's options for one worker: its pool's shape is what makes the autoscaler find room for it."""
    options: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": 1000,
        "num_cpus": pool.num_cpus,
        "enable_task_events": False,  # a call a second for ever would push all else out of Ray's history
    }
    if pool.num_gpus:
        options["num_gpus"] = pool.num_gpus
    if pool.memory_bytes:
        options["memory"] = pool.memory_bytes
    if pool.resources:
        options["resources"] = pool.resources
    if pool.runtime_env:
        options["runtime_env"] = pool.runtime_env
    if not_on:
        options["label_selector"] = {MACHINE_LABEL: f"!in({','.join(sorted(not_on))})"}
    return options


# --- checks ------------------------------------------------------------------------------------------


def check_pools(settings: Settings) -> None:
    """Raise InvalidRequest for what Ray would refuse. Ray is loaded only where a pool asks for anything."""
    for name, pool in settings.pools.items():
        if pool.resources or pool.runtime_env or shape_of(pool).keys() - {"CPU"} or pool.num_cpus % 1:
            with_place(f"pools.{name}", _check_shape, pool)
        if pool.runtime_env:
            environment = pool.runtime_env
            with_place(f"pools.{name}.runtime_env", _parsed, environment)


def with_place(place: str, work: Callable[[Any], Any], setting: object) -> Any:
    """What Ray says of a setting, in one line, with the place of the setting."""
    try:
        return work(setting)
    except Exception as error:  # Ray raises whatever its parts raise
        text = " ".join(str(error).split())[:TEXT_CHARACTERS_MAX] or type(error).__name__
        raise InvalidRequest(text, place) from error


def _check_shape(pool: PoolSettings) -> None:
    from ray._common.ray_option_utils import validate_actor_options
    from ray._common.utils import resources_from_ray_options

    options = worker_options(pool, "worker", "checked")
    options.pop("runtime_env", None)
    validate_actor_options(options, in_options=True)
    for name, amount in resources_from_ray_options(options).items():
        if name == "GPU" and amount > 1 and amount % 1:
            raise ValueError(f"num_gpus: more than one must be a whole number, not {amount:g}")


def _parsed(environment: Mapping[str, Any]) -> Any:
    """Ray's RuntimeEnv of it. Raises what Ray raises."""
    from ray.runtime_env import RuntimeEnv

    known = {name for name in RuntimeEnv.known_fields if not name.startswith("_")}
    for field in environment:
        if field not in known:
            raise ValueError(f"Ray does not know {field!r}; it knows {', '.join(sorted(known))}")
    folder = environment.get("working_dir")
    if (
        isinstance(folder, str)
        and "://" not in folder
        and Path(folder).is_file()
        and not folder.endswith(".zip")
    ):
        raise ValueError(f"working_dir: {folder} is a file; it must be a folder, or a .zip")
    return RuntimeEnv(**environment)


def with_absolute_paths(settings: Settings, here: Path) -> Settings:
    """What is meant by a relative path is decided where the operator stands."""
    pools = {
        name: msgspec.structs.replace(pool, runtime_env=_absolute(pool.runtime_env, here))
        if pool.runtime_env
        else pool
        for name, pool in settings.pools.items()
    }
    return msgspec.structs.replace(settings, pools=pools)


def _absolute(environment: Mapping[str, Any], here: Path) -> dict[str, Any]:
    changed = dict(environment)
    for field in FILES:
        if isinstance(changed.get(field), str):
            changed[field] = _absolute_path(changed[field], here, must_be=field == "working_dir")
    modules = changed.get("py_modules")
    if isinstance(modules, list):
        changed["py_modules"] = [
            _absolute_path(each, here, must_be=True) if isinstance(each, str) else each for each in modules
        ]
    return changed


def _absolute_path(text: str, here: Path, *, must_be: bool) -> str:
    """`must_be`: it is a path if it is no URI. Else it may be a name, as that of an environment of conda."""
    if "://" in text:
        return text
    path = here / Path(text).expanduser()
    return str(path.resolve()) if must_be or path.exists() else text


def lacking(pool: PoolSettings, machine: Mapping[str, float]) -> str | None:
    """What a worker of this pool needs and this machine has not, in words."""
    short = [
        f"{name}: {amount:g}"
        for name, amount in sorted(shape_of(pool).items())
        if amount > machine.get(name, 0)
    ]
    return ", ".join(short) or None


def this_machine() -> dict[str, float]:
    """What a Ray of its own would have here, by Ray's names."""
    import psutil
    from ray._private.accelerators import get_accelerator_manager_for_resource

    gpus = get_accelerator_manager_for_resource("GPU")
    return {
        "CPU": float(psutil.cpu_count() or 1),
        "GPU": float(gpus.get_current_node_num_accelerators()) if gpus is not None else 0.0,
        "memory": float(psutil.virtual_memory().total),
    }


def unserved(settings: Settings) -> Iterator[str]:
    """Pools that a Ray of its own on this machine could never serve, each in a line."""
    asking = {name: pool for name, pool in settings.pools.items() if pool != PoolSettings()}
    machine = this_machine() if asking else {}
    for name, pool in asking.items():
        needed = lacking(pool, machine)
        if needed is not None:
            yield f"pool {name}: this machine has not what one of its workers needs ({needed})"


# --- packages ----------------------------------------------------------------------------------------


def with_packages(settings: Settings) -> Settings:
    """The settings with local folders and files stored in Ray. For a driver that is connected."""
    pools = {}
    for name, pool in settings.pools.items():
        if pool.runtime_env:
            environment = pool.runtime_env
            packed = with_place(f"pools.{name}.runtime_env", _packed, environment)
            pool = msgspec.structs.replace(pool, runtime_env=packed)
        pools[name] = pool
    return msgspec.structs.replace(settings, pools=pools)


def _packed(environment: Mapping[str, Any]) -> dict[str, Any]:
    import ray
    from ray._private.runtime_env.py_modules import upload_py_modules_if_needed
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    node: Any = ray._private.worker.global_worker.node
    scratch_dir = node.get_runtime_env_dir_path()
    parsed = _parsed(environment)
    for upload in (upload_py_modules_if_needed, upload_working_dir_if_needed):
        parsed = upload(parsed, include_gitignore=True, scratch_dir=scratch_dir)
    packed = {field: parsed[field] for field in environment if field in parsed and field != "excludes"}
    pin(packed)
    return packed


def pin(environment: Mapping[str, Any]) -> None:
    """Keep Ray from forgetting these packages for a while, whether or not a worker uses them."""
    from ray._private.runtime_env.packaging import pin_runtime_env_uri

    for uri in packages(environment):
        pin_runtime_env_uri(uri, expiration_s=PIN_SECONDS)


def packages(environment: Mapping[str, Any] | None) -> list[str]:
    """Those that are stored in Ray."""
    named = environment or {}
    found = [named.get("working_dir"), *(named.get("py_modules") or ())]
    return [each for each in found if isinstance(each, str) and each.startswith(PACKAGE_SCHEME)]
