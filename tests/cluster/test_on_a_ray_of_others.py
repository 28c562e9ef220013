"""On a Ray that is not its own: beside the user's applications, up and down as often as they like."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from jobsvc import Client, service
from jobsvc.errors import InvalidRequest, Unavailable
from jobsvc.ports import free_ports, is_free
from jobsvc.service_processes import INSTANCE_VARIABLE
from jobsvc.settings import PoolSettings, Settings

from .conftest import wait_until

ROOT = Path(__file__).parent.parent.parent
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=2"]


class OthersRay:
    """A Ray that a user started by `ray start`, marked so that all of it is found at the end."""

    def __init__(self) -> None:
        self.temp_dir = tempfile.mkdtemp(prefix="others-", dir="/tmp")
        self.mark = secrets.token_hex(16)
        gcs, self.client_port, self.serve_port, *others = free_ports(6)
        self.address = f"127.0.0.1:{gcs}"
        self.environment = dict(os.environ) | {
            INSTANCE_VARIABLE: self.mark,
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }
        options = {
            "temp-dir": self.temp_dir,
            "node-ip-address": "127.0.0.1",
            "port": gcs,
            "include-dashboard": "false",
            "ray-client-server-port": self.client_port,
            "dashboard-agent-listen-port": others[0],
            "min-worker-port": 0,
            "max-worker-port": 0,
            "object-store-memory": 100_000_000,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self._run([*RAY, *words])

    def program(self, *words: object) -> None:
        """What the user runs on it."""
        self._run([sys.executable, "-m", "tests.cluster.guest_app", self.address, *map(str, words)])

    def _run(self, command: list[str]) -> None:
        with tempfile.TemporaryFile("w+") as output:  # `ray start` leaves its output open
            done = subprocess.run(
                command,
                env=self.environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
                check=False,
                timeout=120,
            )
            output.seek(0)
            assert done.returncode == 0, output.read()[-3000:]

    def processes(self) -> list[psutil.Process]:
        info = service.ServiceInfo("", [], None, "", "", instance=self.mark)
        return list(service.service_processes(info))

    def titles(self) -> list[str]:
        found = []
        for process in self.processes():
            try:
                found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    def serve_titles(self) -> list[str]:
        return [each for each in self.titles() if "ServeController" in each or "ProxyActor" in each]

    def end(self) -> None:
        for process in self.processes():
            process.kill()
        psutil.wait_procs(self.processes(), timeout=10)
        shutil.rmtree(self.temp_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def others_ray() -> Iterator[OthersRay]:
    started = OthersRay()
    yield started
    started.end()
    assert not started.processes()


@pytest.fixture
def others(others_ray: OthersRay, monkeypatch: pytest.MonkeyPatch) -> OthersRay:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return others_ray


def settings_for(folder: Path, **chosen: Any) -> Settings:
    defaults = {"data": str(folder / "data"), "port": free_ports(1)[0], "service": "guest"}
    pools = {"default": PoolSettings(min_workers=1, max_workers=1)}
    return Settings(**{**defaults, "pools": pools, **chosen})


def up(
    others: OthersRay, settings: Settings, folder: Path, said: list[str] | None = None
) -> service.ServiceInfo:
    say = said.append if said is not None else lambda _: None
    return service.up(settings, ray_address=others.address, run_dir=folder / "run", say=say)


def down(folder: Path) -> None:
    assert service.down("guest", run_dir=folder / "run", say=lambda _: None)


def test_up_and_down_as_often_as_they_like_at_the_same_port(others: OthersRay, tmp_path: Path) -> None:
    # given a Ray that somebody started
    settings = settings_for(tmp_path)
    before = len(others.titles())
    for number in range(2):
        # when the service comes, works and goes, again and again
        said: list[str] = []
        info = up(others, settings, tmp_path, said)
        assert info.urls == [f"http://127.0.0.1:{settings.port}"], said
        with Client(info.urls) as client:
            assert client.enqueue("jobsvc.echo", number).result(60) == number
            assert client.status()["counts"]["succeeded"] == number + 1
        down(tmp_path)
        # then nothing of it stays
        wait_until(lambda: not [each for each in others.titles() if "jobsvc" in each], others.titles())
    assert len(others.titles()) <= before + 2  # processes that Ray keeps for the next driver


def test_a_failed_up_leaves_nothing(others: OthersRay, tmp_path: Path) -> None:
    # given a journal that nobody can lead
    (tmp_path / "data" / "objects" / "log" / "0000000007").mkdir(parents=True)
    (tmp_path / "data" / "objects" / "log" / "0000000007" / "000000000007").write_bytes(b"of another world")
    # when the service is put into the Ray, then it says why that fails
    with pytest.raises(Unavailable, match="log/0000000000/000000000000 is missing"):
        up(others, settings_for(tmp_path), tmp_path)
    # and leaves nothing
    assert service.find_service("guest", tmp_path / "run") is None
    wait_until(lambda: not [each for each in others.titles() if "jobsvc" in each], others.titles())


def test_a_busy_ray_is_told_at_once(others: OthersRay, tmp_path: Path) -> None:
    # given a Ray all of whose CPUs are taken
    others.program("busy", 2)
    # when the service comes
    said: list[str] = []
    info = up(others, settings_for(tmp_path), tmp_path, said)
    # then it is up, and says what its jobs wait for
    try:
        told = [line for line in said if "pool default" in line]
        assert told and "1 CPU" in told[0] and "0 of 2" in told[0]
        with Client(info.urls) as client:
            client.enqueue("jobsvc.echo", 1)
            assert client.status()["ready"]
    finally:
        down(tmp_path)
        others.program("idle", 2)


def test_serve_that_we_started_goes_with_us_unless_others_use_it(others: OthersRay, tmp_path: Path) -> None:
    # given a Ray on which no Serve runs, and a service that is to be under one
    settings = settings_for(tmp_path, route_prefix="/jobs")
    for number in range(2):
        # when it comes and goes, again and again, then Serve comes and goes with it, at the same port
        info = up(others, settings, tmp_path)
        assert info.started_serve and info.urls == [f"http://127.0.0.1:{settings.port}/jobs"]
        with Client(info.urls) as client:
            assert client.enqueue("jobsvc.echo", number).result(60) == number
        down(tmp_path)
        wait_until(lambda: not others.serve_titles(), "Serve to be gone")
        assert is_free("127.0.0.1", settings.port)
    # when the user has put an application of his own under the Serve that we started
    info = up(others, settings, tmp_path)
    others.program("serve", settings.port)
    mine = f"http://127.0.0.1:{settings.port}"
    assert httpx.get(f"{mine}/x").text == "mine /x"
    down(tmp_path)
    # then that goes on, and so does Serve
    assert httpx.get(f"{mine}/x").text == "mine /x"
    wait_until(lambda: not [each for each in others.titles() if "jobsvc" in each], others.titles())
    # until it goes, too
    others.program("noserve")
    wait_until(lambda: not others.serve_titles(), "Serve to be gone")


def test_beside_the_users_own_application(others: OthersRay, tmp_path: Path) -> None:
    # given the user's application at / on Serve's port
    others.program("serve", others.serve_port)
    mine = f"http://127.0.0.1:{others.serve_port}"
    assert httpx.get(f"{mine}/x").text == "mine /x"
    # when the service comes without a word, then it has a way in of its own
    info = up(others, settings_for(tmp_path), tmp_path)
    with Client(info.urls) as client:
        assert client.enqueue("jobsvc.echo", 1).result(60) == 1
    down(tmp_path)
    # when it comes with a prefix, then it is there, under the port that Serve has
    info = up(others, settings_for(tmp_path, route_prefix="/jobs"), tmp_path)
    assert info.urls == [f"{mine}/jobs"]
    check_under_prefix(info.urls[0])
    assert httpx.get(f"{mine}/x").text == "mine /x"
    # and a prefix that is taken is refused, with nothing left
    with pytest.raises(InvalidRequest, match="'/jobs'|/jobs is the prefix of the Serve application 'guest'"):
        service.up(
            settings_for(tmp_path / "second", service="second", route_prefix="/jobs"),
            ray_address=others.address,
            run_dir=tmp_path / "run",
            say=lambda _: None,
        )
    assert service.find_service("second", tmp_path / "run") is None
    # when it goes, then the user's application is as it was
    down(tmp_path)
    assert httpx.get(f"{mine}/x").text == "mine /x"
    assert httpx.get(f"{mine}/jobs/readyz").text == "mine /jobs/readyz"


def check_under_prefix(url: str) -> None:
    """Client, page, API description, links and streams, below the prefix."""
    with Client([url]) as client:
        job = client.enqueue("jobsvc.echo", 2)
        assert job.result(60) == 2
        assert client.map("jobsvc.echo", range(3), progress=False).results() == [0, 1, 2]
        assert job.logs() == ""
    origin, prefix = url.rsplit("/", 1)
    assert httpx.get(url).headers["location"] == f"/{prefix}/"
    assert "jobsvc" in httpx.get(f"{url}/").text
    assert httpx.get(f"{url}/web/app.js").status_code == 200
    assert httpx.get(f"{url}/docs").status_code == 200
    assert httpx.get(f"{url}/openapi.json").json()["servers"] == [{"url": f"/{prefix}"}]
    taken = httpx.post(f"{url}/v1/jobs", json={"task": "jobsvc.echo", "args": [3]})
    assert taken.headers["location"] == taken.json()["links"]["self"]
    assert httpx.get(origin + taken.headers["location"]).json()["id"] == taken.json()["id"]
    assert httpx.put(f"{url}/enqueue?iterations=1", content=b"x").status_code in (200, 202)

    async def first_event() -> str:
        async with (
            httpx.AsyncClient(timeout=30) as http,
            http.stream("GET", f"{url}/v1/completions", headers={"Accept": "text/event-stream"}) as answer,
        ):
            async for line in answer.aiter_lines():
                return line
        return ""

    assert asyncio.run(first_event()) == "retry: 2000"
