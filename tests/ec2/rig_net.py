"""The network of a rig: a switch, one network namespace for each machine on it, and cables to cut.

Everything lies in namespaces of the rig's own, named after the process that owns it, so two rigs on one
machine do not see each other, and neither touches the machine's own network. Names of links need not be
unique, because both ends of every cable are made inside namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "ec2rig"
NAMESPACES = Path("/run/netns")
NOBODY_MAC = "02:00:00:00:00:01"  # frames sent there leave, and nobody takes them
CLONE_NEWNET = 0x40000000
COUNTER = itertools.count()


def run(*command: str, check: bool = True) -> str:
    """One tool of the machine; what it complained of is in the error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and the processes and threads it starts, in a network namespace.

    A socket belongs to the namespace in which it was made, also after the thread has left it.
    """
    with open("/proc/thread-self/ns/net") as before, open(NAMESPACES / namespace) as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


class Network:
    def __init__(self, gateway: str, prefix_length: int = 16) -> None:
        self.owner = f"{PREFIX}.{os.getpid()}.{_start_of(os.getpid())}.{next(COUNTER)}"
        self._gateway, self._prefix_length = gateway, prefix_length
        self._cables: dict[str, str] = {}  # machine -> the switch's end
        self._addresses: dict[str, str] = {}
        self._cuts: set[tuple[str, str]] = set()  # who cannot send to whom
        self._numbers = itertools.count()
        self.switch = self.namespace("switch")

    def namespace(self, machine: str) -> str:
        return f"{self.owner}.{machine}"

    def open(self) -> None:
        run("ip", "netns", "add", self.switch)
        run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", self.switch, "link", "set", "br0", "up")

    def add(self, machine: str, ip: str) -> str:
        """A machine on the switch; its namespace's name."""
        name, cable = self.namespace(machine), f"v{next(self._numbers)}"
        run("ip", "netns", "add", name)
        run(
            *("ip", "link", "add", cable, "netns", self.switch),
            *("type", "veth", "peer", "name", "eth0", "netns", name, "address", _mac(ip)),
        )
        self._cables[machine], self._addresses[machine] = cable, ip
        run("ip", "-n", self.switch, "link", "set", cable, "master", "br0", "up")
        run("ip", "-n", name, "addr", "add", f"{ip}/{self._prefix_length}", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        # A machine finds its own address by its default route; nothing answers at the gateway.
        run("ip", "-n", name, "route", "add", "default", "via", self._gateway)
        return name

    def remove(self, machine: str) -> None:
        """End what still runs there, and take the namespace away. The next owner of its address is whole."""
        self.mend(machine)
        self._cables.pop(machine, None)
        self._addresses.pop(machine, None)
        remove_namespace(self.namespace(machine))

    def unplug(self, machine: str) -> None:
        """The cable out of the switch: the machine still sees a link, and nothing arrives."""
        run("ip", "-n", self.switch, "link", "set", self._cables[machine], "nomaster")

    def cut(self, machine: str, other: str) -> None:
        """What the two send to each other vanishes, as behind a broken router: no error, no answer."""
        for sender, receiver in ((machine, other), (other, machine)):
            run(
                *("ip", "-n", self.namespace(sender), "neigh", "replace", self._addresses[receiver]),
                *("lladdr", NOBODY_MAC, "dev", "eth0", "nud", "permanent"),
            )
            self._cuts.add((sender, receiver))

    def mend(self, machine: str) -> None:
        """All that was cut or unplugged of this machine."""
        if machine in self._cables:
            run("ip", "-n", self.switch, "link", "set", self._cables[machine], "master", "br0")
        for sender, receiver in [each for each in self._cuts if machine in each]:
            address = self._addresses[receiver]
            run("ip", "-n", self.namespace(sender), "neigh", "del", address, "dev", "eth0")
            self._cuts.discard((sender, receiver))

    def close(self) -> None:
        remove_namespaces(self.owner)


def _mac(ip: str) -> str:
    """The same for the same address, so that nobody goes on sending to a machine that had it before."""
    return "02:00:" + ":".join(f"{int(part):02x}" for part in ip.split("."))


def remove_namespaces(owner: str) -> None:
    for path in sorted(NAMESPACES.glob(f"{owner}.*")):
        remove_namespace(path.name)


def remove_namespace(name: str) -> None:
    for pid in pids_in(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    deadline = time.monotonic() + 10
    while pids_in(name) and time.monotonic() < deadline:
        time.sleep(0.02)
    if (NAMESPACES / name).exists():
        run("ip", "netns", "del", name)


def pids_in(name: str) -> list[int]:
    """The processes of a namespace, but not this one, which may be there as a guest."""
    if not (NAMESPACES / name).exists():
        return []
    pids = run("ip", "netns", "pids", name, check=False).split()
    return [int(pid) for pid in pids if int(pid) != os.getpid()]


def abandoned() -> set[str]:
    """Owners of namespaces whose process is dead: rigs that were killed."""
    owners = {".".join(path.name.split(".")[:4]) for path in NAMESPACES.glob(f"{PREFIX}.*")}
    return {owner for owner in owners if not _lives(owner)}


def _lives(owner: str) -> bool:
    _, pid, start, _ = owner.split(".")
    return _start_of(int(pid)) == start


def _start_of(pid: int) -> str | None:
    """When the process began, in ticks since the boot: with the pid, a name that is never used again."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None
    return text.rpartition(")")[2].split()[19]
