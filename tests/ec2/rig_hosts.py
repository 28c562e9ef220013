"""One instance's host: a systemd of its own in namespaces around a disk of its own.

The host's systemd is the real one, so units, restarts, `systemctl reboot` and `shutdown -h now` are too:
the kernel ends a pid namespace whose first process asks for a reboot or a halt, and its parent sees which.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from .rig_disk import host_path, prepare_disk, shown_folders

BOOT_SCRIPT = Path(__file__).with_name("host_boot.sh").read_text()  # once: a rig may outlive an edit of it
REBOOT, HALT = signal.SIGHUP, signal.SIGINT  # how the kernel ends a pid namespace that asked for it
GONE_SECONDS = 20.0
UNSHARED = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")


class NotUp(Exception):
    """The host is down, or has just begun to boot."""


class Host:
    def __init__(self, instance: str, ip: str, folder: Path, namespace: str, cgroup: Path) -> None:
        self.instance, self.ip, self.folder = instance, ip, folder
        self._namespace, self._cgroup = namespace, cgroup
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return "ip-" + self.ip.replace(".", "-")

    @property
    def journal(self) -> Path:
        return self.folder / "written/var/log/journal"

    def create(self, public_key: str, environment: Mapping[str, str]) -> None:
        prepare_disk(self.folder, self.name, self.ip, public_key, environment)

    def boot(self) -> None:
        self._cgroup.mkdir(parents=True, exist_ok=True)
        script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        command = ("ip", "netns", "exec", self._namespace, "unshare", *UNSHARED, "sh", "-c", BOOT_SCRIPT)
        with open(self.folder / "console.log", "ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", script, str(self._cgroup), *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    "PATH": os.environ["PATH"],
                    "HOST_PATH": host_path(),
                    "HOST": str(self.folder),
                    "NAME": self.name,
                    "SHOWN": " ".join(str(path) for path in shown_folders()),
                },
            )

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def last_word(self) -> str:
        """Why a host is down: "reboot", "halt", or what its console said last."""
        assert self._process is not None and self._process.returncode is not None
        code = self._process.returncode
        for word, number in (("reboot", REBOOT), ("halt", HALT)):
            if code in (-number, 128 + number):
                return word
        return (self.folder / "console.log").read_text(errors="replace")[-1000:]

    def kill(self) -> None:
        """As pulling the plug."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            kill_cgroup(self._cgroup)

    def wait_until_down(self, seconds: float) -> None:
        assert self._process is not None
        self._process.wait(seconds)

    def enter(self, command: str, user: str = "root") -> list[str]:
        """The command line that runs a command on the host as at its console, whatever the network does."""
        as_user = ("runuser", "-l", user, "-c", command)
        return ["nsenter", "-t", str(self._first_process()), "-m", "-p", "-u", "-i", "-n", *as_user]

    def _first_process(self) -> int:
        """The host's systemd: before it runs, the host's files are not where it will have them."""
        assert self._process is not None
        pid = self._process.pid
        try:
            child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
            if Path(f"/proc/{child}/exe").readlink().name == "systemd":
                return child
        except (FileNotFoundError, IndexError):
            pass
        raise NotUp(f"{self.instance} is not up")

    def remove(self) -> None:
        self.kill()
        remove_cgroup(self._cgroup)

    def remove_disk(self) -> None:
        """What the instance loses when it ends. Console, journal and Ray's logs stay for who asks why."""
        for number, logs in enumerate(sorted((self.folder / "disk/tmp/ray").glob("session_2*/logs"))):
            logs.rename(self.folder / f"ray-logs-{number}")
        for path in (self.folder / "disk", self.folder / "scratch"):
            if path.exists():
                shutil.rmtree(path)


def cgroup_root() -> Path | None:
    """Where this machine has its cgroup2 tree."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    return None


def kill_cgroup(cgroup: Path) -> None:
    """End all in it, and wait until the last is gone: a host's first process may go before the others."""
    if not cgroup.exists():
        return
    (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + GONE_SECONDS
    while "populated 1" in (cgroup / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes are left in {cgroup}")
        time.sleep(0.02)


def remove_cgroup(cgroup: Path) -> None:
    kill_cgroup(cgroup)
    folders = sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True)
    deadline = time.monotonic() + 10
    for path in (*folders, cgroup):
        while path.exists():
            try:
                path.rmdir()
            except OSError:  # its last processes are dead, and not yet gone
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
