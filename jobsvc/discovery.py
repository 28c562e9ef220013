"""Where the services of this user are: one file for each, written by `up`, read by clients and by `down`.

The folder is `$JOBSVC_RUN_DIR`, else `~/.jobsvc/run`; files and folder are for their owner only. A file tells
where a service was started, not that it lives.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

RUN_DIR_VARIABLE = "JOBSVC_RUN_DIR"


class ServiceInfo(msgspec.Struct):
    """Where a service is, and what `up` started for it."""

    service: str
    urls: list[str]
    dashboard_url: str | None
    ray_address: str
    data: str
    instance: str | None = None  # marks every process of the Ray that `up` started; None: not ours to end
    temp_dir: str | None = None  # of that Ray
    token_file: str | None = None
    ray_token_file: str | None = None
    started_serve: bool = False  # in a Ray that is not ours

    @property
    def log_dir(self) -> str | None:
        return f"{self.temp_dir}/session_latest/logs" if self.temp_dir else None


def run_dir_from_environment() -> Path:
    """The folder of discovery files."""
    chosen = os.environ.get(RUN_DIR_VARIABLE)
    return Path(chosen) if chosen else Path.home() / ".jobsvc" / "run"


def discovery_file(service: str, run_dir: Path | None = None) -> Path:
    return (run_dir or run_dir_from_environment()) / f"{service}.json"


def find_service(service: str = "jobsvc", run_dir: Path | None = None) -> ServiceInfo | None:
    """What `up` wrote down, whether or not it still lives."""
    try:
        return msgspec.json.decode(discovery_file(service, run_dir).read_bytes(), type=ServiceInfo)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError:
        return None  # half a file of a crash long ago: as good as none


def write_down(info: ServiceInfo, run_dir: Path) -> None:
    path = discovery_file(info.service, run_dir)
    fresh = path.with_suffix(".new")
    secret_file(fresh, msgspec.json.format(msgspec.json.encode(info)).decode())
    fresh.replace(path)


def forget(info: ServiceInfo, run_dir: Path | None = None) -> None:
    """Remove the discovery file and the service's secrets."""
    for path in (info.token_file, info.ray_token_file, discovery_file(info.service, run_dir)):
        if path:
            Path(path).unlink(missing_ok=True)


def secret_file(path: Path, secret: str) -> str:
    """Write a file that only its owner can read, whatever was there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
    return str(path)


def answers(info: ServiceInfo, timeout_seconds: float = 2.0) -> bool:
    """True if the service says that it is ready."""
    return not_ready_because(info, timeout_seconds) is None


def not_ready_because(info: ServiceInfo, timeout_seconds: float = 2.0) -> str | None:
    """None if the service says that it is ready; else what it says, or "" if it does not answer."""
    import httpx  # here: the command line imports this module, and need not wait for it

    said = ""
    for url in info.urls:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=timeout_seconds)
            if answer.status_code == 200:
                return None
            said = str(answer.json()["detail"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            continue  # nobody there, or somebody whose words are not ours
    return said
