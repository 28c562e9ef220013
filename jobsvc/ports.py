"""Free ports on this machine.

Serve's Python proxy sets SO_REUSEPORT unless it is told not to, so another cluster of the same user may be
on a port that a bind with that option would get without an error. So a port is free here only if nobody
answers on it and a plain bind succeeds.
"""

from __future__ import annotations

import enum
import random
import socket
from contextlib import closing

from .errors import InvalidRequest, Unavailable

PORTS_TRIED = 100
RANGES_FIRST, RANGES_LAST = 20_000, 32_000  # below the ports that Linux gives to outgoing connections


def free_port(host: str, first: int) -> int:
    """The first port from `first` on that nobody uses, however they bound it."""
    for port in range(first, min(first + PORTS_TRIED, 65_536)):
        if is_free(host, port):
            return port
    raise Unavailable(f"no port from {first} to {first + PORTS_TRIED - 1} is free")


def is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.settimeout(0.5)
        if probe.connect_ex((reachable(host), port)) == 0:
            return False  # someone answers, perhaps with SO_REUSEPORT
    with closing(socket.socket(family)) as probe:
        # so that connections of the last service, which the kernel still remembers, do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            what = f"{port} is for privileged users alone: choose one from 1,024 on"
            raise InvalidRequest(what, "port") from error
        except OSError:
            return False
    return True


class Answer(enum.Enum):
    ACCEPTED = "somebody listens"
    REFUSED = "the machine is there, and nobody listens"
    NONE = "no answer: no machine, no way there, or too busy"


def knock(address: str, timeout_seconds: float = 2.0) -> Answer:
    """What HOST:PORT says to a connection."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout_seconds):
            return Answer.ACCEPTED
    except ConnectionRefusedError:
        return Answer.REFUSED
    except OSError:
        return Answer.NONE


def is_listening(address: str, timeout_seconds: float = 2.0) -> bool:
    return knock(address, timeout_seconds) is Answer.ACCEPTED


def reachable(host: str) -> str:
    """The host under which this machine reaches what is bound to `host`."""
    return {"0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "::": "::1"}.get(host, host)


def free_ports(count: int) -> list[int]:
    """Some free ports of loopback, all different, below those that outgoing connections get.

    Seconds may pass until their owners bind them, and a port that the kernel hands out meanwhile is lost.
    """
    found: list[int] = []
    for port in random.sample(range(RANGES_FIRST, RANGES_LAST), k=PORTS_TRIED + count):
        if is_free("127.0.0.1", port):
            found.append(port)
        if len(found) == count:
            return found
    raise Unavailable(f"no {count} free ports from {RANGES_FIRST} to {RANGES_LAST}")


def free_range(count: int) -> int:
    """The first port of a range that nobody uses. Chosen at random: two services shall not meet in one."""
    for first in random.sample(range(RANGES_FIRST, RANGES_LAST, count), k=50):
        if all(is_free("127.0.0.1", port) for port in range(first, first + count)):
            return first
    raise Unavailable(f"no {count} free ports in a row from {RANGES_FIRST} to {RANGES_LAST}")
