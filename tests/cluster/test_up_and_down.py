"""What `up` and `down` promise, tried on real processes."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from jobsvc import service
from jobsvc.errors import InvalidRequest
from jobsvc.ports import free_ports
from jobsvc.settings import Settings

from .conftest import wait_until

ROOT = Path(__file__).parent.parent.parent


def quiet(_: str) -> None:
    pass


def settings_for(folder: Path, **chosen: Any) -> Settings:
    return Settings(data=str(folder / "data"), allow_shell=True, **chosen)


def run_job(url: str, task: str, *arguments: Any) -> Any:
    """Enqueue, wait, and return the result."""
    accepted = httpx.post(f"{url}/v1/jobs", json={"task": task, "args": list(arguments)}, timeout=30)
    assert accepted.status_code == 202, accepted.text
    path = f"{url}/v1/jobs/{accepted.json()['id']}/result"
    answer = wait_until(
        lambda: (
            (got := httpx.get(path, headers={"Prefer": "wait=10"}, timeout=30)).status_code != 202 and got
        ),
        f"the result of {task}",
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up-and-down")


@pytest.fixture
def info(folder: Path) -> Iterator[service.ServiceInfo]:
    """A service that answers; the same one for all tests that leave it alive."""
    yield service.up(settings_for(folder), run_dir=folder / "run", say=quiet)


@pytest.fixture(scope="module", autouse=True)
def _end(folder: Path) -> Iterator[None]:
    yield
    left = service.find_service(run_dir=folder / "run")
    service.down(run_dir=folder / "run", say=quiet)
    assert left is None or not list(service.service_processes(left))


def test_two_ups_at_once_are_one_service(folder: Path) -> None:
    # given nothing
    found: list[service.ServiceInfo] = []
    calls = [
        threading.Thread(
            target=lambda: found.append(service.up(settings_for(folder), run_dir=folder / "run", say=quiet))
        )
        for _ in range(2)
    ]
    # when two ask for the service at the same time
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    # then both get the same one
    assert len(found) == 2
    assert found[0].instance == found[1].instance
    assert run_job(found[0].urls[0], "jobsvc.echo", 5) == 5


def test_another_folder_is_not_this_service(info: service.ServiceInfo, folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="is running on"):
        service.up(settings_for(folder / "other"), run_dir=folder / "run", say=quiet)


def test_only_loopback_can_reach_it(info: service.ServiceInfo) -> None:
    """One exception that Serve has no switch for: a replica's own gRPC port, which wants Ray's token."""
    open_to_others = []
    for process in service.service_processes(info):
        for connection in process.net_connections("inet"):
            if connection.status != psutil.CONN_LISTEN:
                continue
            address = ipaddress.ip_address(connection.laddr.ip)
            mapped = getattr(address, "ipv4_mapped", None) or address
            if not mapped.is_loopback:
                open_to_others.append(process.cmdline()[0])
    assert [name for name in open_to_others if "ServeReplica" not in name] == []
    assert len(open_to_others) <= Settings().replicas


def test_secrets_are_for_their_owner_only(info: service.ServiceInfo, folder: Path) -> None:
    assert info.ray_token_file is not None
    for path in (Path(info.ray_token_file), service.discovery_file("jobsvc", folder / "run")):
        assert path.stat().st_mode & 0o077 == 0
    secret = Path(info.ray_token_file).read_text()
    for process in service.service_processes(info):
        assert secret not in " ".join(process.cmdline())


def test_titles_tell_what_each_process_does(info: service.ServiceInfo) -> None:
    def titles() -> str:
        return "\n".join(" ".join(process.cmdline()) for process in service.service_processes(info))

    wait_until(
        lambda: "jobsvc manager-a leader" in titles() or "jobsvc manager-b leader" in titles(), titles()
    )
    accepted = httpx.post(f"{info.urls[0]}/v1/jobs", json={"task": "jobsvc.sleep", "args": [4]}).json()
    wait_until(lambda: accepted["id"] in titles(), "the job's id in a title")


def test_a_killed_worker_is_replaced_at_once(info: service.ServiceInfo) -> None:
    # given a worker
    def workers() -> list[dict[str, Any]]:
        found = httpx.get(f"{info.urls[0]}/v1/status", timeout=10).json()["workers"]
        return [worker for worker in found if worker["state"] in ("idle", "busy")]

    old = wait_until(workers, "a worker")[0]
    # when it is killed
    os.kill(old["pid"], signal.SIGKILL)
    killed = time.monotonic()
    # then the leader knows in less than a second, and another one comes
    wait_until(lambda: old["name"] not in [worker["name"] for worker in workers()], "the loss to be known", 5)
    assert time.monotonic() - killed < 1.0
    wait_until(workers, "another worker")


def test_each_killed_leader_is_replaced_and_comes_back(info: service.ServiceInfo) -> None:
    # given a manager that is killed again and again
    def pair() -> dict[str, dict[str, Any]]:
        managers = httpx.get(f"{info.urls[0]}/v1/status", timeout=20).json()["managers"]
        return {manager["role"]: manager for manager in managers}

    for _ in range(3):
        whole = wait_until(lambda: (now := pair()).keys() >= {"leader", "standby"} and now, "a whole pair")
        os.kill(whole["leader"]["pid"], signal.SIGKILL)
        # then the other one leads, and jobs go on
        heir = whole["standby"]["name"]
        wait_until(lambda heir=heir: pair().get("leader", {}).get("name") == heir, "a takeover", 10)
        assert run_job(info.urls[0], "jobsvc.echo", 1) == 1


def test_up_after_part_of_it_was_killed(info: service.ServiceInfo, folder: Path) -> None:
    # given a service whose GCS has died: Ray does not survive that
    gcs = [process for process in service.service_processes(info) if process.name() == "gcs_server"]
    gcs[0].kill()
    # when it is started again
    again = service.up(settings_for(folder), run_dir=folder / "run", say=quiet)
    # then a fresh Ray serves the same journal, and nothing of the old one is left
    assert again.instance != info.instance
    assert not list(service.service_processes(info))
    assert not Path(info.temp_dir or "").exists()
    assert (folder / "run" / "jobsvc.last-logs").is_dir()
    assert run_job(again.urls[0], "jobsvc.echo", 2) == 2


def test_down_ends_all_of_its_own_and_nothing_else(info: service.ServiceInfo, folder: Path) -> None:
    # given a job that runs and has a daemon, and a stranger whose arguments name the service's folder
    daemon = folder / "daemon.pid"
    script = f"setsid sh -c 'echo $$ > {daemon}; exec sleep 600' >/dev/null 2>&1 & sleep 600"
    httpx.post(f"{info.urls[0]}/v1/jobs", json={"task": "jobsvc.shell", "args": [script]})
    wait_until(lambda: daemon.exists() and daemon.read_text().strip(), "the daemon")
    stranger = subprocess.Popen(["tail", "-f", "/dev/null", f"{info.temp_dir}/start.log"])
    try:
        # when the service is ended
        assert service.down(run_dir=folder / "run", say=quiet)
        # then the daemon is gone, and the stranger is not
        assert not psutil.pid_exists(int(daemon.read_text()))
        assert not list(service.service_processes(info))
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    # and nothing is left that could mislead
    assert not Path(info.temp_dir or "").exists()
    assert service.find_service(run_dir=folder / "run") is None
    assert service.down(run_dir=folder / "run", say=quiet) is False


def test_an_up_that_is_killed_leaves_nothing_that_down_does_not_find(folder: Path) -> None:
    # given an `up` that dies while Ray starts
    code = (
        "import sys; from pathlib import Path; from jobsvc import service, settings\n"
        "service.up(settings.Settings(data=sys.argv[1]), run_dir=Path(sys.argv[2]), say=lambda _: None)"
    )
    up = subprocess.Popen([sys.executable, "-c", code, folder / "data", folder / "run"], cwd=ROOT)
    info = wait_until(lambda: service.find_service(run_dir=folder / "run"), "the discovery file")
    wait_until(lambda: any(p.name() == "gcs_server" for p in service.service_processes(info)), "the GCS")
    up.kill()
    up.wait()
    # when the service is ended
    service.down(run_dir=folder / "run", say=quiet)
    # then nothing is left
    assert not list(service.service_processes(info))


def test_with_the_python_proxy(folder: Path) -> None:
    info = service.up(settings_for(folder, proxy="python", replicas=1), run_dir=folder / "run", say=quiet)
    assert run_job(info.urls[0], "jobsvc.echo", 3) == 3


def test_a_store_to_which_another_service_writes_is_refused(info: service.ServiceInfo, folder: Path) -> None:
    # given a service, when another one is started on its store
    other = settings_for(folder, service="other", port=free_ports(1)[0])
    with pytest.raises(InvalidRequest, match="in use by service 'jobsvc' .*jobsvc down --service jobsvc"):
        service.up(other, run_dir=folder / "run", say=quiet)
    # then nothing was started, and the first one goes on
    assert service.find_service("other", folder / "run") is None
    assert run_job(info.urls[0], "jobsvc.echo", 4) == 4


def test_a_store_whose_service_was_ended_is_free_at_once(info: service.ServiceInfo, folder: Path) -> None:
    # given a service that was ended
    assert service.down(run_dir=folder / "run", say=quiet)
    # when another one is started on its store, then nobody looks on for a while first
    said: list[str] = []
    other = settings_for(folder, service="other", port=free_ports(1)[0])
    began = service.up(other, run_dir=folder / "run", say=said.append)
    try:
        assert "service 'jobsvc' writes no more: taking its store over" in said
        assert not [each for each in said if "looking whether it still writes" in each]
        assert run_job(began.urls[0], "jobsvc.echo", 5) == 5
    finally:
        service.down("other", run_dir=folder / "run", say=quiet)
