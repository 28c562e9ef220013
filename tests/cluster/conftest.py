"""A real service for each test module: its own Ray, its own folders, ended by pid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from jobsvc import service
from jobsvc.client import Client
from jobsvc.ports import free_ports
from jobsvc.service import ServiceInfo
from jobsvc.settings import PoolSettings, Settings

DEADLINE_SECONDS = 60.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster" in str(item.path):
            item.add_marker(pytest.mark.cluster)


def wait_until(
    condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS, every_seconds: float = 0.02
) -> Any:
    """The first true value of a condition. Fails with what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:g} s for: {what}")
        time.sleep(every_seconds)


@dataclass
class RunningService:
    """A service under test, and the ways to hurt it."""

    settings: Settings
    run_dir: Path
    info: ServiceInfo
    client: Client

    @property
    def urls(self) -> list[str]:
        return self.info.urls

    @property
    def url(self) -> str:
        return self.info.urls[0]

    def up(self) -> None:
        """`jobsvc up` again, after everything was killed."""
        self.info = service.up(self.settings, run_dir=self.run_dir, say=lambda _: None)
        self.client.close()
        self.client = Client(self.info.urls, deadline_seconds=90)

    def managers(self) -> dict[str, dict[str, Any]]:
        """role -> manager, as the service tells it."""
        return {manager["role"]: manager for manager in self.client.status()["managers"]}

    def whole_pair(self) -> dict[str, dict[str, Any]]:
        """Wait until one leads and the other follows."""
        return wait_until(
            lambda: (pair := self.managers()).keys() >= {"leader", "standby"} and pair,
            "a leader and a standby",
        )

    def processes(self) -> list[psutil.Process]:
        return list(service.service_processes(self.info))

    def kill_everything(self) -> None:
        """Every process of this Ray at once, as a power cut would."""
        processes = self.processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)
        wait_until(lambda: not self.processes(), "all processes to be gone")


def start(folder: Path, **chosen: Any) -> RunningService:
    defaults: dict[str, Any] = {
        "data": str(folder / "data"),
        "port": free_ports(1)[0],  # not the usual one: other services may start here at the same moment
        "tasks": ("tests.cluster.tasks_under_test",),
        "lease_seconds": 10.0,
        "heartbeat_seconds": 2.0,
        "outbox_after_seconds": 1.0,
        "pools": {"default": PoolSettings(min_workers=2, max_workers=2)},
    }
    settings = msgspec.structs.replace(Settings(), **{**defaults, **chosen})
    run_dir = folder / "run"
    info = service.up(settings, run_dir=run_dir, say=lambda _: None)
    return RunningService(settings, run_dir, info, Client(info.urls, deadline_seconds=90))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for the tests of a module, on the directory store."""
    started = start(tmp_path_factory.mktemp("service"))
    yield started
    started.client.close()
    service.down(run_dir=started.run_dir, say=lambda _: None)
    assert not started.processes(), "down left processes behind"
