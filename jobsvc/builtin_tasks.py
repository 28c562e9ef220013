"""The tasks that every service has.

They run in the job's own process like any other task. `jobsvc.shell` is refused by the registry, before it
gets here, unless the operator has allowed it.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import time
from typing import Any

from .errors import InvalidRequest
from .jobs import HASH_TASK
from .tasks import SHELL_TASK, task

ITERATIONS_MAX = 10_000_000


class CommandFailed(Exception):
    """The shell command ended with an exit code other than 0."""


@task(name=HASH_TASK)
def sha512(payload: bytes | str, iterations: int = 1) -> str:
    """SHA-512 over the payload, then over the 64 bytes of the digest, `iterations` times in all; as hex."""
    if type(iterations) is not int or not 1 <= iterations <= ITERATIONS_MAX:
        raise InvalidRequest(f"must be a whole number from 1 to {ITERATIONS_MAX}", "iterations")
    hasher = hashlib.sha512
    body = payload.encode() if isinstance(payload, str) else payload
    digest = hasher(body).digest()
    for _ in range(iterations - 1):
        digest = hasher(digest).digest()
    return digest.hex()


@task(name="jobsvc.sleep")
def sleep(seconds: float = 1.0) -> None:
    """Do nothing for a while."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InvalidRequest("must be a number", "seconds")
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidRequest("must not be negative", "seconds")
    time.sleep(seconds)


@task(name="jobsvc.echo")
def echo(*values: Any, **named: Any) -> Any:
    """Give back what came: one value as it is, several as a list, named ones as an object."""
    if named:
        return {"args": list(values), "kwargs": named} if values else named
    return values[0] if len(values) == 1 else list(values)


@task(name=SHELL_TASK)
def shell(command: str) -> int:
    """Run a command in the shell; what it prints goes to the job's log. An exit code other than 0 fails."""
    if not isinstance(command, str) or not command.strip():
        raise InvalidRequest("must be a command", "command")
    exit_code = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, check=False).returncode
    if exit_code != 0:
        raise CommandFailed(f"the command ended with exit code {exit_code}")
    return exit_code
