"""The disk of a host: what an instance has at its first boot, keeps over a reboot, and loses when it ends.

/etc, /usr, /var and /opt are this machine's below a layer of the host's own; everything else is the host's
alone. The layer hides this machine's services: a host has the few units named here, an sshd, the user
`ubuntu` with sudo, and a journal on its disk (readable from outside: `journalctl -D`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from tests.s3_server import REPOSITORY

USER, UID = "ubuntu", 1000
HOMES = Path("/") / "home"
LAYERED = ("etc", "usr", "var", "opt")
UNIT_FOLDER = "lib/systemd/system"
UNITS = (
    "basic.target",
    "sysinit.target",
    "multi-user.target",
    "network.target",
    "network-online.target",
    "shutdown.target",
    "umount.target",
    "final.target",
    "reboot.target",
    "systemd-reboot.service",
    "poweroff.target",
    "systemd-poweroff.service",
    "halt.target",
    "systemd-halt.service",
    "sockets.target",
    "timers.target",
    "paths.target",
    "slices.target",
    "local-fs.target",
    "local-fs-pre.target",
    "swap.target",
    "time-sync.target",
    "time-set.target",
    "nss-lookup.target",
    "remote-fs.target",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-journal-flush.service",
    "dbus.service",
    "dbus.socket",
)
SSH_UNIT = """[Unit]
Description=Remote logins
After=network.target
[Service]
ExecStart=/usr/sbin/sshd -D -e -f /etc/ssh/rig_config
RuntimeDirectory=sshd
KillMode=process
Restart=on-failure
"""
SSH_CONFIG = """HostKey /etc/ssh/rig_host_key
PidFile none
UsePAM no
StrictModes no
UseDNS no
PasswordAuthentication no
MaxStartups 100
Subsystem sftp internal-sftp
"""


def prepare_disk(host: Path, name: str, ip: str, public_key: str, environment: Mapping[str, str]) -> None:
    """Everything below the host's folder; nothing is mounted yet."""
    disk, written = host / "disk", host / "written"
    for folder in (*LAYERED, "proc", "sys", "dev", "run", "srv", "mnt", "media", ".machine"):
        (disk / folder).mkdir(parents=True, exist_ok=True)
    for folder in LAYERED:
        (written / folder).mkdir(parents=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        (disk / link).symlink_to(f"usr/{link}")
    (disk / "tmp").mkdir()
    (disk / "tmp").chmod(0o1777)
    (disk / "root").mkdir()
    for path in shown_folders():
        (disk / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
    (disk / "root").chmod(0o711)
    _write_home(disk, public_key, environment)
    _write_etc(written / "etc", name, ip, environment)
    _write_units(written)
    (written / "var/log/journal").mkdir(parents=True)


def shown_folders() -> list[Path]:
    """What a host needs of this machine beyond the layered folders: the checkout, and its Python."""
    needed = {REPOSITORY.resolve(), Path(sys.base_prefix).resolve()}
    return sorted(path for path in needed if path.parts[1] not in LAYERED)


def host_path() -> str:
    return f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _write_home(disk: Path, public_key: str, environment: Mapping[str, str]) -> None:
    home = disk / HOMES.relative_to("/") / USER
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/authorized_keys").write_text(public_key)
    exports = "".join(f"export {name}={value}\n" for name, value in environment.items())
    for name in (".bashrc", ".profile"):
        (home / name).write_text(exports)
    for path in (home, *home.rglob("*")):
        os.chown(path, UID, UID)
    (home / ".ssh").chmod(0o700)


def _write_etc(etc: Path, name: str, ip: str, environment: Mapping[str, str]) -> None:
    _write_accounts(etc)
    (etc / "hostname").write_text(f"{name}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{ip} {name}\n")
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # nobody: names fail at once
    (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (etc / "fstab").write_text("")
    kept = " ".join(environment)
    _write(
        etc / "sudoers",
        f'Defaults env_keep += "{kept}"\nDefaults secure_path="{host_path()}"\n'
        f"root ALL=(ALL) ALL\n{USER} ALL=(ALL) NOPASSWD: ALL\n",
        0o440,
    )
    _write(
        etc / "pam.d/sudo",
        "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    )
    given = " ".join(f"{key}={value}" for key, value in environment.items())
    _write(etc / "ssh/rig_config", f"{SSH_CONFIG}SetEnv {given}\n")
    key = etc / "ssh/rig_host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    _write(etc / "systemd/system.conf.d/rig.conf", f"[Manager]\nDefaultEnvironment={given}\n")
    _write(
        etc / "systemd/journald.conf.d/rig.conf",
        "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\n",
    )


def _write_accounts(etc: Path) -> None:
    """This machine's accounts and `ubuntu`, whoever has that name or number here."""
    added = {
        "passwd": f"{USER}:x:{UID}:{UID}::{HOMES / USER}:/bin/bash",
        "group": f"{USER}:x:{UID}:",
        "shadow": f"{USER}:*:19000:0:99999:7:::",
    }
    for name, line in added.items():
        kept = [
            each
            for each in (Path("/etc") / name).read_text().splitlines()
            if not each.startswith(f"{USER}:") and (name == "shadow" or each.split(":")[2] != str(UID))
        ]
        _write(etc / name, "\n".join([*kept, line, ""]), 0o640 if name == "shadow" else 0o644)


def _write_units(written: Path) -> None:
    for folder in ("etc/systemd/system", f"usr/{UNIT_FOLDER}", "usr/lib/systemd/system-generators"):
        (written / folder).mkdir(parents=True)
        os.setxattr(written / folder, "trusted.overlay.opaque", b"y")  # this machine's are not seen
    units = written / "usr" / UNIT_FOLDER
    for name in UNITS:
        shutil.copy(Path("/") / UNIT_FOLDER / name, units / name)
    (units / "ssh.service").write_text(SSH_UNIT)
    (units / "default.target").symlink_to("multi-user.target")
    wanted = {
        "multi-user.target.wants": ["ssh.service"],
        "sysinit.target.wants": ["systemd-journald.service", "systemd-journal-flush.service"],
        "sockets.target.wants": ["systemd-journald.socket", "systemd-journald-dev-log.socket", "dbus.socket"],
    }
    for folder, names in wanted.items():
        (units / folder).mkdir()
        for name in names:
            (units / folder / name).symlink_to(f"../{name}")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
