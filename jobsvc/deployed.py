"""What `up` has put into Ray, written down beside the discovery file: so that `reload` can do it again.

It also travels to `serve_app`, on its stdin. The token is not in it, as in no settings.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from .discovery import ServiceInfo, secret_file
from .service_code import ServiceCode
from .settings import Settings


class Deployed(msgspec.Struct):
    """Settings as the service has them, its port among them, and the code of its tasks."""

    settings: Settings
    code: ServiceCode
    python_path: str = ""  # where its processes look for modules; a reload must look there, too

    @property
    def folder(self) -> str | None:
        """Where the operator stood: the first place in which modules are looked for."""
        return self.python_path.partition(os.pathsep)[0] or None

    def encoded(self) -> str:
        return msgspec.json.encode(self).decode()


decode_deployed = msgspec.json.Decoder(Deployed).decode


def _file(service: str, run_dir: Path) -> Path:
    return run_dir / f"{service}.deployed"


def write_deployed(info: ServiceInfo, deployed: Deployed, run_dir: Path) -> None:
    path = _file(info.service, run_dir)
    fresh = path.with_suffix(".fresh")
    secret_file(fresh, deployed.encoded())
    fresh.replace(path)


def read_deployed(info: ServiceInfo, run_dir: Path) -> Deployed | None:
    """None for a service that a version without this has started."""
    try:
        return decode_deployed(_file(info.service, run_dir).read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def forget_deployed(info: ServiceInfo, run_dir: Path) -> None:
    _file(info.service, run_dir).unlink(missing_ok=True)
