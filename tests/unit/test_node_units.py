"""The units of a node: what they say, that systemd reads it as it was meant, and when they are touched."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ray import autoscaler

from jobsvc.errors import Unavailable
from jobsvc.node_units import (
    GUARD_UNIT,
    PULSE_UNIT,
    RAY_UNIT,
    SERVICE_UNIT,
    WATCHDOG_UNIT,
    Node,
    Systemd,
    Units,
    command,
    head_units,
    install,
    quoted,
    unit_environment,
    worker_units,
)

DATA = ["--data", "s3://bucket/jobs"]
STARTED_IN = {
    "HOME": "/somewhere",
    "RAY_OVERRIDE_RESOURCES": '{"CPU":0,"jobsvc_manager":1}',
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": "i-1",
    "RAY_NODE_TYPE_NAME": "head",
    "AUTOSCALER_UPDATE_INTERVAL_S": "2",
    "RAY_HEAD_IP": "10.0.0.1",
    "RAY_AUTH_TOKEN": "secret",
    "RAY_ADDRESS": "elsewhere:6379",
    "RAY_START_HOOK": "evil.hook",
    "JOBSVC_IDLE_RECORD_SECONDS": "4",
    "JOBSVC_TOKEN": "secret",
    "JOBSVC_STARTED_BY": "guard/i-0/0000",
    "AWS_DEFAULT_REGION": "us-west-2",
    "AWS_ENDPOINT_URL_S3": "http://s3",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_ACCESS_KEY_ID": "secret",
    "AWS_SESSION_TOKEN": "secret",
    "EDITOR": "ed",
}


def node(code: str = "1", **changes: str) -> Node:
    environment = unit_environment(STARTED_IN, "/venv/bin/python", {"RAY_SERVE_ENABLE_HA_PROXY": "1"})
    return Node(
        python="/venv/bin/python",
        user="ubuntu",
        home="/somewhere",
        run_dir="/somewhere/.jobsvc/run",
        code=code,
        environment=environment | changes,
    )


def head(of: Node | None = None) -> Units:
    return head_units(of or node(), "jobsvc", [*DATA, "--port", "8000"], DATA, "/somewhere/cluster.yaml")


def entries(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return [(line.partition("=")[0], line.partition("=")[2]) for line in lines]


def value(text: str, key: str) -> str:
    (found,) = [each for name, each in entries(text) if name == key]
    return found


# --- what they say ----------------------------------------------------------------------------------


def test_the_environment_of_the_start_command_is_kept_and_secrets_are_not() -> None:
    environment = node().environment
    for name in ("RAY_OVERRIDE_RESOURCES", "RAY_enable_autoscaler_v2", "RAY_CLOUD_INSTANCE_ID"):
        assert environment[name] == STARTED_IN[name]
    assert environment["RAY_NODE_TYPE_NAME"] == "head"
    assert environment["JOBSVC_IDLE_RECORD_SECONDS"] == "4"
    assert environment["AUTOSCALER_UPDATE_INTERVAL_S"] == "2"
    assert environment["AWS_ENDPOINT_URL_S3"] == "http://s3"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_START_HOOK"] == "jobsvc.ray_head.without_client_server"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == environment["SERVE_SOCKET_REUSE_PORT_ENABLED"] == "1"
    assert "secret" not in environment.values()
    assert not {"RAY_ADDRESS", "RAY_HEAD_IP", "JOBSVC_STARTED_BY", "EDITOR", "HOME"} & set(environment)


def test_code_from_a_checkout_is_found() -> None:
    environment = unit_environment({"PYTHONPATH": "/tasks:/checkout"}, "/venv/bin/python", {}, "/checkout")
    assert environment["PYTHONPATH"] == "/checkout:/tasks"
    assert "PYTHONPATH" not in unit_environment({}, "/venv/bin/python", {})
    assert environment["PATH"].startswith("/venv/bin:")


def test_the_head_runs_ray_with_the_autoscaler_and_then_the_service() -> None:
    units = head()
    assert list(units) == [RAY_UNIT, SERVICE_UNIT, PULSE_UNIT]
    ray = value(units[RAY_UNIT], "ExecStart")
    assert ray.startswith("/venv/bin/python -m ray.scripts.scripts start --head --block --port=6379")
    assert "--autoscaling-config=/somewhere/cluster.yaml" in ray
    assert "--dashboard-host=127.0.0.1" in ray
    assert value(units[RAY_UNIT], "Restart") == "always"
    assert value(units[RAY_UNIT], "ExecStartPre") == "/bin/rm -f /somewhere/.jobsvc/run/jobsvc.json"
    service = units[SERVICE_UNIT]
    assert value(service, "ExecStart") == (
        "/venv/bin/python -m jobsvc node service --data s3://bucket/jobs --port 8000"
    )
    assert value(service, "BindsTo") == value(service, "PartOf") == RAY_UNIT
    assert value(service, "Type") == "oneshot"


def test_a_head_that_stops_ends_its_autoscaler_first() -> None:
    """Else that one sees a node that has ended, its own, and terminates the machine that only reboots."""
    stop = value(head()[RAY_UNIT], "ExecStop")
    assert stop.startswith("-/usr/bin/pkill -KILL -P $MAINPID -f ")
    pattern = stop.rpartition(" ")[2]
    ray = Path(autoscaler.__file__).parent
    for version in ("_private", "v2"):
        program = ray / version / "monitor.py"
        assert program.exists() and re.search(pattern, f"python -u {program} --logs-dir=/tmp")
    assert not re.search(pattern, "python -m jobsvc.manager_actor")


def test_who_says_that_the_head_lives_does_not_end_with_its_ray() -> None:
    pulse = head()[PULSE_UNIT]
    assert value(pulse, "ExecStart") == "/venv/bin/python -m jobsvc node pulse --data s3://bucket/jobs"
    assert value(pulse, "Restart") == "always"
    assert not {"BindsTo", "PartOf", "Requires"} & {name for name, _ in entries(pulse)}
    assert '"RAY_CLOUD_INSTANCE_ID=i-1"' in pulse


def test_a_worker_joins_its_head_and_has_a_watchdog() -> None:
    units = worker_units(node(), "10.0.0.1", None)
    assert list(units) == [RAY_UNIT, WATCHDOG_UNIT]
    assert "start --address=10.0.0.1:6379 --block" in value(units[RAY_UNIT], "ExecStart")
    assert "echo 10.0.0.1:6379 > /run/jobsvc/head.new" in value(units[RAY_UNIT], "ExecStartPre")
    assert value(units[WATCHDOG_UNIT], "ExecStart") == "/venv/bin/python -m jobsvc.node_watchdog"


def test_the_manager_node_has_a_guard_that_does_not_depend_on_the_head() -> None:
    units = worker_units(node(), "10.0.0.1", DATA)
    assert value(units[GUARD_UNIT], "ExecStart") == "/venv/bin/python -m jobsvc guard --data s3://bucket/jobs"
    after = worker_units(node(), "10.0.0.2", DATA)
    assert units[GUARD_UNIT] == after[GUARD_UNIT]
    assert units[RAY_UNIT] != after[RAY_UNIT]


def test_a_unit_says_who_runs_it_and_which_code_it_was_written_for() -> None:
    for text in (*head().values(), *worker_units(node(), "10.0.0.1", DATA).values()):
        assert value(text, "User") == "ubuntu"
        assert value(text, "StartLimitIntervalSec") == "0"
        assert value(text, "WantedBy") == "multi-user.target"
        assert "# code 1\n" in text


# --- that systemd reads it as it was meant ----------------------------------------------------------


def test_what_means_something_to_systemd_is_quoted() -> None:
    assert command("/bin/a", "plain=1", "two words") == '/bin/a plain=1 "two words"'
    assert command("a", '{"CPU": 0}') == 'a "{\\"CPU\\": 0}"'
    assert command("a", "$HOME costs 5%") == 'a "$$HOME costs 5%%"'
    assert quoted("A=back\\slash\nline $X") == '"A=back\\\\slash\\nline $X"'


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_them(tmp_path: Path) -> None:
    of = node(JOBSVC_POOLS='{"default": {}, "gpu": {"num_gpus": 1}}', JOBSVC_ODD="100% of $HOME\\n")
    of = Node(
        python=shutil.which("python3") or "",
        user="root",
        home="/",
        run_dir="/run",
        code="1",
        environment=of.environment,
    )
    for name, text in {**head(of), **worker_units(of, "10.0.0.1", DATA)}.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(path) for path in tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "jobsvc-" in line]
    assert (ours, done.returncode) == ([], 0), done.stderr


# --- when they are touched --------------------------------------------------------------------------


class Host:
    """systemd as far as `install` sees it. Commands are remembered, without sudo."""

    def __init__(self, folder: Path, *, is_root: bool = True) -> None:
        self.folder = folder
        self.active: set[str] = set()
        self.said: list[str] = []
        self.refuses = ""
        self.systemd = Systemd(is_root=is_root, folder=folder, booted=folder, run=self._run)

    def install(self, units: Units) -> list[str]:
        self.said = []
        return install(self.systemd, units)

    def _run(self, words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        line = " ".join(words)
        if self.refuses and self.refuses in line:
            return subprocess.CompletedProcess(words, 1, "", "a password is required")
        words = words[2:] if words[:2] == ["sudo", "-n"] else words
        if words[0] == "tee":
            Path(words[1]).write_text(options["input"])
        elif "is-active" in words:
            return subprocess.CompletedProcess(words, 0 if words[-1] in self.active else 3, "", "")
        else:
            self.said.append(line.replace("--no-block ", ""))
            if words[-2] in ("start", "restart"):
                self.active.add(words[-1])
        return subprocess.CompletedProcess(words, 0, "", "")


def test_a_new_machine_gets_its_units_enabled_and_started(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.install(head()) == [RAY_UNIT, SERVICE_UNIT, PULSE_UNIT]
    assert (tmp_path / RAY_UNIT).read_text() == head()[RAY_UNIT]
    assert host.said[:2] == ["systemctl daemon-reload", f"systemctl enable {' '.join(head())}"]


def test_the_same_again_touches_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.install(head())
    assert host.install(head()) == []
    assert host.said == []


def test_new_code_or_other_settings_are_started(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.install(head())
    assert host.install(head(node(code="2"))) == [RAY_UNIT, SERVICE_UNIT, PULSE_UNIT]
    assert f"systemctl restart {RAY_UNIT}" in host.said


def test_what_has_ended_is_started_without_being_written_again(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.install(head())
    host.active.remove(SERVICE_UNIT)
    assert host.install(head()) == [SERVICE_UNIT]
    assert host.said == [f"systemctl start {SERVICE_UNIT}"]


def test_another_head_restarts_ray_and_leaves_the_guard_alone(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.install(worker_units(node(), "10.0.0.1", DATA))
    assert host.install(worker_units(node(code="2"), "10.0.0.2", DATA)) == [RAY_UNIT, WATCHDOG_UNIT]
    assert not any(GUARD_UNIT in line and "restart" in line for line in host.said)


def test_who_is_not_root_uses_sudo_and_hears_if_that_fails(tmp_path: Path) -> None:
    host = Host(tmp_path, is_root=False)
    host.install(head())
    assert all(line.startswith("sudo -n systemctl") for line in host.said)
    host.refuses = "daemon-reload"
    with pytest.raises(Unavailable, match="sudo -n systemctl daemon-reload.*a password is required"):
        host.install(head(node(code="2")))


def test_a_container_without_systemd_is_told_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="not run by systemd.*jobsvc up --ray-address"):
        Systemd(is_root=True, booted=tmp_path / "nothing").check()


def test_a_command_that_is_not_there_is_named() -> None:
    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(words[0])

    with pytest.raises(Unavailable, match="systemctl daemon-reload"):
        Systemd(is_root=True, run=run).systemctl("daemon-reload")
