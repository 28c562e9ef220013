"""What a peer keeps its jobs in: a fresh one for each session, on this machine alone, ended by its process.

Each is a context that gives the address. Data lies in the session's folder.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

START_SECONDS = 30.0
STOP_SECONDS = 20.0
PACKAGES = {"redis": "redis-server", "postgres": "postgresql"}  # Debian's


class Missing(Exception):
    """The broker is not installed."""


def broker(kind: str, mode: str, folder: Path) -> AbstractContextManager[str]:
    if kind == "redis":
        return _redis(folder, mode)
    if kind == "postgres":
        return _postgres(folder)
    if mode == "s3":
        return _s3()
    return contextlib.nullcontext(str(folder / "data"))


def program_of(kind: str) -> str | None:
    """The server's program; Debian keeps PostgreSQL's out of the path."""
    if kind == "redis":
        return shutil.which("redis-server")
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
    return found[-1] if found else shutil.which("postgres")


def version_of(kind: str) -> str:
    program = program_of(kind)
    if program is None:
        return ""
    shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return next(word.removeprefix("v=") for word in shown.split() if word.removeprefix("v=")[0].isdigit())


def _program(kind: str) -> str:
    found = program_of(kind)
    if found is None:
        raise Missing(f"Debian's package {PACKAGES[kind]} is not installed")
    return found


# --- Redis -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _redis(folder: Path, fsync: str) -> Iterator[str]:
    port = _free_port()
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": fsync,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([_program("redis"), *words], stdin=subprocess.DEVNULL, stdout=log)
    try:
        _wait_for_port(port, process)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()  # nothing of it is kept
        process.wait()


# --- PostgreSQL --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """With its own defaults: fsync and synchronous_commit are on."""
    program, port, data = Path(_program("postgres")), _free_port(), folder / "postgres"
    data.mkdir()
    owner: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    if os.getuid() == 0:  # it refuses to run as root
        user = pwd.getpwnam("postgres")
        os.chown(data, user.pw_uid, user.pw_gid)
        owner |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    make = [str(program.with_name("initdb")), "-D", str(data), "-A", "trust", "-U", "postgres", "-E", "UTF8"]
    subprocess.run(make, check=True, **owner)
    serve = [
        str(program),
        "-D",
        str(data),
        "-p",
        str(port),
        "-k",
        str(data),
        "-c",
        "listen_addresses=127.0.0.1",
    ]
    with (folder / "postgres.log").open("wb") as log:
        process = subprocess.Popen(serve, stderr=log, **owner)
    try:
        _wait_for_port(port, process)
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # in order, or its shared memory would stay
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- S3 ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _s3() -> Iterator[str]:
    from tests.s3_server import running_s3

    with running_s3() as server:
        yield server.endpoint_url


# --- ports -------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with {process.returncode}")  # type: ignore[index]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"port {port} is closed after {START_SECONDS:g} s")
