"""`jobsvc doctor`: what would keep a service from working here, before it is started."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from .errors import JobsvcError
from .s3_store import open_store
from .service import free_port, prepared
from .settings import MIB, Settings
from .tasks import load_tasks

RAY_VERSION = "2.60.0"
DISK_FREE_BYTES_MIN = 1024 * MIB
MEMORY_BYTES_MIN = 2048 * MIB


class Finding(msgspec.Struct):
    check: str
    ok: bool
    found: str


def examine(settings: Settings) -> list[Finding]:
    """Every check, in an order in which a reader would ask."""
    return [
        _python(),
        _ray(),
        _port(settings),
        *_store(settings),
        _disk(settings),
        _memory(),
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


def _port(settings: Settings) -> Finding:
    try:
        port = free_port(settings.host, settings.port)
    except JobsvcError as error:
        return Finding("port", False, str(error))
    if port == settings.port:
        return Finding("port", True, f"{port} is free")
    return Finding(
        "port", True, f"{settings.port} is taken by {_holder(settings.port)}; {port} would be used"
    )


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                name = psutil.Process(connection.pid).name() if connection.pid else "another user's process"
                return f"{name} (pid {connection.pid})"
    except psutil.Error:
        pass  # who it is needs rights that we may lack; that it is taken is known
    return "another process"


def _store(settings: Settings) -> list[Finding]:
    try:
        store = open_store(prepared(settings))
        warnings = asyncio.run(store.probe())
    except (JobsvcError, OSError) as error:
        return [Finding("store", False, f"{settings.data}: {error}")]
    return [
        Finding("store", True, f"{settings.data}: creates exclusively"),
        *(Finding("store", True, f"warning: {warning}") for warning in warnings),
    ]


def _disk(settings: Settings) -> Finding:
    folder = Path("/tmp") if settings.is_s3 else Path(prepared(settings).data)
    free = shutil.disk_usage(folder).free
    return Finding("disk", free >= DISK_FREE_BYTES_MIN, f"{free // MIB} MiB free at {folder}")


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    cores = os.cpu_count() or 1
    return Finding(
        "memory", available >= MEMORY_BYTES_MIN, f"{available // MIB} MiB available, {cores} cores"
    )


def _tasks(settings: Settings) -> Finding:
    try:
        registry = load_tasks(settings.tasks, allow_shell=settings.allow_shell)
    except JobsvcError as error:
        return Finding("tasks", False, str(error))
    return Finding("tasks", True, ", ".join(registry.names()))
