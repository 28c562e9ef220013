"""A virtualenv for each peer, since some of them need other versions of the same library.

They are made under `.bench/` from the pinned requirements beside this file, and made anew when those change.
Nothing of them is ever part of the package. Brokers are Debian's, installed where that is possible.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from . import brokers
from .peer import ROOT
from .roster import Entry

FOLDER = ROOT / ".bench"
ERROR_LENGTH = 300


class Unmeasured(Exception):
    """This peer cannot be measured here; the text says why."""


def python_of(entry: Entry) -> str:
    """The Python that runs the peer, made ready. Raises Unmeasured."""
    if entry.broker in brokers.PACKAGES:
        _install_broker(entry.broker)
    if not entry.environment:
        return sys.executable
    folder, wanted = FOLDER / entry.environment, requirements(entry)
    python, ready = folder / "bin" / "python", folder / "ready"
    if not (ready.exists() and ready.read_text() == wanted.read_text()):
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(wanted))
        shutil.copyfile(wanted, ready)
    return str(python)


def requirements(entry: Entry) -> Path:
    return Path(__file__).with_name(f"requirements-{entry.environment}.txt")


def versions(entry: Entry) -> list[str]:
    """What was installed by name, and the broker's own version."""
    found = requirements(entry).read_text().split() if entry.environment else []
    if entry.broker in brokers.PACKAGES:
        found.append(f"{brokers.PACKAGES[entry.broker]}=={brokers.version_of(entry.broker)}")
    return found


def _install_broker(kind: str) -> None:
    if brokers.program_of(kind):
        return
    package = brokers.PACKAGES[kind]
    if os.getuid() != 0:
        raise Unmeasured(f"Debian's package {package} is missing, and only root can install it")
    _run("apt-get", "update", "-q")
    _run("apt-get", "install", "-q", "-y", "--no-install-recommends", package)


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Unmeasured(f"there is no {words[0]} here") from None
    if done.returncode != 0:
        raise Unmeasured(f"{' '.join(words[:4])}: {(done.stderr or done.stdout).strip()[-ERROR_LENGTH:]}")
