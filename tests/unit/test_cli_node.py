"""`jobsvc node` on a machine that is all pretence but for its files: what it checks, installs, publishes."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobsvc import cli_node
from jobsvc.cli import app
from jobsvc.discovery import ServiceInfo, write_down
from jobsvc.ec2_cluster_mark import announce_down, is_down
from jobsvc.errors import Unavailable
from jobsvc.guard_files import newest
from jobsvc.node_units import GUARD_UNIT, PULSE_UNIT, RAY_UNIT, SERVICE_UNIT, WATCHDOG_UNIT, Systemd
from jobsvc.object_store import MemoryObjectStore

CLUSTER = {
    "cluster_name": "harvest",
    "max_workers": 2,
    "provider": {"type": "aws", "region": "us-west-2"},
    "auth": {"ssh_user": "ubuntu", "ssh_private_key": "~/ray_bootstrap_key.pem"},
    "available_node_types": {"head": {"node_config": {}, "resources": {}}},
    "head_node_type": "head",
    "head_start_ray_commands": ["jobsvc node head --data s3://bucket/jobs"],
}
HEAD = ("node", "head", "--data", "s3://bucket/jobs")
WORKER = ("node", "worker")


class Host:
    """A machine after `ray up` has put its files there, before anything has been started."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = folder / "home"
        self.units = folder / "units"
        self.store = MemoryObjectStore()
        self.active: set[str] = set()
        self.deeds: list[str] = []
        self.serves = True
        self.monkeypatch = monkeypatch
        self.units.mkdir()
        for name, text in {
            ".ray/auth_token": "ray-token",
            ".jobsvc/token": "http-token",
            "ray_bootstrap_config.yaml": json.dumps(CLUSTER),
            "ray_bootstrap_key.pem": "the key",
        }.items():
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.delenv("JOBSVC_RUN_DIR", raising=False)
        monkeypatch.setattr("jobsvc.s3_store.open_store", lambda settings: self.store)
        monkeypatch.setattr(cli_node, "Systemd", self._systemd)
        monkeypatch.setattr(cli_node, "answers", lambda info: self.serves)
        monkeypatch.setattr(cli_node, "READY_SECONDS", 0.0)

    def _systemd(self, *, is_root: bool) -> Systemd:
        return Systemd(is_root=True, folder=self.units, booted=self.units, run=self._run)

    def _run(self, words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        said = ""
        if words[0] == "tee":
            Path(words[1]).write_text(options["input"])
        elif "is-active" in words:
            return subprocess.CompletedProcess(words, 0 if words[-1] in self.active else 3, "", "")
        elif words[0] == "journalctl":
            said = "the service's last words"
        elif words[-2] in ("start", "restart"):
            self.deeds.append(f"{words[-2]} {words[-1]}")
            self.active.add(words[-1])
            if words[-1] == SERVICE_UNIT:
                self.service_comes_up()
        return subprocess.CompletedProcess(words, 0, said, "")

    def service_comes_up(self) -> None:
        run_dir = self.home / ".jobsvc" / "run"
        run_dir.mkdir(parents=True, exist_ok=True)
        info = ServiceInfo("jobsvc", ["http://127.0.0.1:8000"], None, "127.0.0.1:6379", "s3://bucket/jobs")
        write_down(info, run_dir)

    def is_head(self) -> None:
        for name in cli_node.HEAD_VARIABLES:
            self.monkeypatch.setenv(name, "1")

    def is_worker(self, resources: str = '{"CPU":2}') -> None:
        self.monkeypatch.setenv("RAY_HEAD_IP", "10.0.0.1")
        self.monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", resources)

    def unit(self, name: str) -> str:
        return (self.units / name).read_text()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in ("JOBSVC_DATA", "JOBSVC_STARTED_BY", "RAY_HEAD_IP", *cli_node.HEAD_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    return Host(tmp_path, monkeypatch)


def jobsvc(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


# --- the head ---------------------------------------------------------------------------------------


def test_a_head_is_up_when_its_service_answers(host: Host) -> None:
    host.is_head()
    result = jobsvc(*HEAD, "--tasks", "harvest.tasks", "--settings", "allow_shell=true")
    assert "http://127.0.0.1:8000" in result.stdout
    assert host.deeds == [f"restart {name}" for name in (RAY_UNIT, SERVICE_UNIT, PULSE_UNIT)]
    assert (
        "-m jobsvc node service --data s3://bucket/jobs --port 8000 --tasks harvest.tasks"
        " --settings allow_shell=true\n" in host.unit(SERVICE_UNIT)
    )
    assert "http-token" not in host.unit(SERVICE_UNIT)


def test_a_living_head_is_left_alone(host: Host) -> None:
    host.is_head()
    jobsvc(*HEAD)
    host.deeds.clear()
    assert "already running as it should" in jobsvc(*HEAD).stderr
    assert host.deeds == []


def test_the_head_publishes_what_a_guard_needs_and_that_the_cluster_is_wanted(host: Host) -> None:
    asyncio.run(announce_down(host.store, "harvest", "a test"))
    host.is_head()
    jobsvc(*HEAD)
    files = asyncio.run(newest(host.store))
    assert files is not None
    assert (json.loads(files.cluster_file), files.ssh_key) == (CLUSTER, "the key")
    assert not asyncio.run(is_down(host.store, "harvest"))


def test_a_head_that_a_guard_started_does_not_say_that_the_cluster_is_wanted(host: Host) -> None:
    asyncio.run(announce_down(host.store, "harvest", "a test"))
    host.is_head()
    host.monkeypatch.setenv("JOBSVC_STARTED_BY", "guard/i-1/0000")
    jobsvc(*HEAD)
    assert asyncio.run(is_down(host.store, "harvest"))
    assert "JOBSVC_STARTED_BY" not in host.unit(RAY_UNIT)


def test_a_service_that_does_not_answer_is_shown_with_its_last_words(host: Host) -> None:
    host.is_head()
    host.serves = False
    result = jobsvc(*HEAD, code=8)
    assert "jobsvc does not answer" in result.stderr
    assert "the service's last words" in result.stderr
    assert "journalctl -u jobsvc-service.service" in result.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("node", "head", "--data", "/a/folder"), "data"),
        ((*HEAD, "--settings", "allow_shell"), "settings"),
        ((*HEAD, "--settings", "no_such_thing=1"), "settings"),
        ((*HEAD, "--settings", "allow_shell=maybe"), "allow_shell"),
        ((*HEAD, "--cluster", "/no/such/file.yaml"), "cluster"),
    ],
)
def test_what_is_said_wrongly_is_named_before_anything_is_touched(
    host: Host, words: tuple[str, ...], named: str
) -> None:
    host.is_head()
    assert named in jobsvc(*words, code=2).stderr
    assert list(host.units.iterdir()) == []


@pytest.mark.parametrize("missing", [".ray/auth_token", ".jobsvc/token", "ray_bootstrap_key.pem"])
def test_a_file_that_is_missing_is_named_by_its_field(host: Host, missing: str) -> None:
    host.is_head()
    (host.home / missing).unlink()
    said = jobsvc(*HEAD, code=2).stderr
    assert "auth.ssh_private_key" in said if missing.endswith("pem") else "file_mounts" in said
    assert list(host.units.iterdir()) == []


def test_a_head_that_ray_up_did_not_start_is_refused(host: Host) -> None:
    assert "RAY_enable_autoscaler_v2" in jobsvc(*HEAD, code=2).stderr


# --- the others -------------------------------------------------------------------------------------


def test_a_worker_has_ray_and_a_watchdog(host: Host) -> None:
    host.is_worker()
    jobsvc(*WORKER)
    assert host.deeds == [f"restart {RAY_UNIT}", f"restart {WATCHDOG_UNIT}"]
    assert "--address=10.0.0.1:6379" in host.unit(RAY_UNIT)
    assert not (host.home / ".jobsvc" / "run").exists()


def test_a_worker_is_restarted_for_another_head_only(host: Host) -> None:
    host.is_worker()
    jobsvc(*WORKER)
    host.deeds.clear()
    jobsvc(*WORKER)
    assert host.deeds == []
    host.monkeypatch.setenv("RAY_HEAD_IP", "10.0.0.2")
    jobsvc(*WORKER)
    assert host.deeds == [f"restart {RAY_UNIT}"]


def test_the_manager_node_has_a_guard_a_token_for_replicas_and_more_patience(host: Host) -> None:
    host.is_worker('{"CPU":0,"jobsvc_manager":1,"jobsvc_http":1}')
    jobsvc(*WORKER, "--data", "s3://bucket/jobs")
    assert "-m jobsvc guard --data s3://bucket/jobs\n" in host.unit(GUARD_UNIT)
    assert (host.home / ".jobsvc" / "run" / "jobsvc.token").read_text() == "http-token"
    assert "JOBSVC_NO_HEAD_SECONDS=3600" in host.unit(WATCHDOG_UNIT)


def test_the_guard_survives_a_new_head(host: Host) -> None:
    host.is_worker('{"CPU":0,"jobsvc_manager":1,"jobsvc_http":1}')
    jobsvc(*WORKER, "--data", "s3://bucket/jobs")
    host.deeds.clear()
    host.monkeypatch.setenv("RAY_HEAD_IP", "10.0.0.2")
    jobsvc(*WORKER, "--data", "s3://bucket/jobs")
    assert host.deeds == [f"restart {RAY_UNIT}"]


def test_a_manager_node_without_data_says_where_to_say_it(host: Host) -> None:
    host.is_worker('{"jobsvc_manager":1}')
    assert "worker_start_ray_commands" in jobsvc(*WORKER, code=2).stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [({"RAY_HEAD_IP": ""}, "RAY_HEAD_IP"), ({"RAY_OVERRIDE_RESOURCES": "CPU"}, "RAY_OVERRIDE_RESOURCES")],
)
def test_a_worker_that_no_autoscaler_started_is_refused(
    host: Host, change: dict[str, str], named: str
) -> None:
    host.is_worker()
    for name, value in change.items():
        host.monkeypatch.setenv(name, value)
    assert named in jobsvc(*WORKER, code=2).stderr


def test_other_code_is_other_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    before = cli_node.code_of_package(tmp_path)
    assert before == cli_node.code_of_package(tmp_path)
    (tmp_path / "a.py").write_text("2")
    assert before != cli_node.code_of_package(tmp_path)


def test_waiting_ends() -> None:
    with pytest.raises(Unavailable, match="nobody comes after 0 s"):
        cli_node.wait_for(lambda: False, 0.0, "nobody comes")
