"""The command line: data on stdout, talk on stderr, and exit codes that a script can trust."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from jobsvc.cli import app
from jobsvc.cli_output import EXIT_NOT_FOUND, EXIT_USAGE, exit_code_of, exit_code_of_states
from jobsvc.client import Client
from jobsvc.demo import hashes_of, project_files
from jobsvc.errors import (
    InvalidRequest,
    JobFailed,
    Refusal,
    Refused,
    StoreUnfit,
    Unavailable,
    WaitTimedOut,
)

from .local_service import LocalService, unused_url

NO_JOB = "00000000-0000-0000-0000-000000000000"
FAILING = ("jobsvc.sha512", "x", "--kwargs", '{"iterations": 0}', "--max-attempts", "1")


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService(data="memory") as started:
        yield started


@pytest.fixture(autouse=True)
def environment(service: LocalService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service.working = True
    monkeypatch.setenv("JOBSVC_URL", service.url)
    monkeypatch.setenv("JOBSVC_RUN_DIR", str(tmp_path / "run"))
    for name in ("JOBSVC_TOKEN", "JOBSVC_DATA", "JOBSVC_TASKS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def jobsvc(*words: str, code: int = 0, typed: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, list(words), input=typed)
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


def data(*words: str, code: int = 0) -> Any:
    """The one JSON document that a command prints."""
    lines = jobsvc(*words, "--json", code=code).stdout.splitlines()
    assert len(lines) == 1
    return msgspec.json.decode(lines[0])


def enqueued(*words: str) -> str:
    return str(data("enqueue", *words)["id"])


def ended(*words: str) -> str:
    """The id of a job that has ended."""
    job_id = enqueued(*words)
    CliRunner().invoke(app, ["wait", job_id, "--timeout", "20"])
    return job_id


# --- jobs -------------------------------------------------------------------------------------------


def test_a_job_from_the_command_line(tmp_path: Path) -> None:
    # the id alone is what a script needs
    job_id = jobsvc("enqueue", "jobsvc.echo", "5", "five", '{"a": [5]}').stdout.strip()
    assert jobsvc("result", job_id, "--timeout", "20").stdout == '[5,"five",{"a":[5]}]\n'
    # or all at once
    assert jobsvc("enqueue", "jobsvc.echo", "five", "--wait").stdout == "five\n"
    assert data("enqueue", "jobsvc.echo", "5", "--timeout", "20")["result"] == 5
    named = jobsvc("enqueue", "jobsvc.echo", "--kwargs", '{"a": 1}', "--wait").stdout
    assert msgspec.json.decode(named) == {"a": 1}


def test_bytes_of_a_file_and_of_stdin(tmp_path: Path) -> None:
    file = tmp_path / "some bytes"
    file.write_bytes(bytes(range(256)))
    by_file = jobsvc("enqueue", "jobsvc.echo", "--file", str(file), "--wait")
    assert by_file.stdout_bytes == bytes(range(256))
    by_pipe = jobsvc("enqueue", "jobsvc.echo", "--file", "-", "--wait", typed=b"\xff\x00piped")
    assert by_pipe.stdout_bytes == b"\xff\x00piped"


def test_options_of_a_job_arrive() -> None:
    options = ("--queue", "q1", "--priority", "7", "--max-attempts", "2", "--attempt-seconds", "9")
    more = ("--label", "team=a=b", "--batch", "b1", "--delay", "3600", "--key", "k1")
    job_id = enqueued("jobsvc.echo", "1", *options, *more)
    assert enqueued("jobsvc.echo", "1", *options, *more) == job_id, "the same key is the same job"
    found = data("job", job_id)
    assert (found["queue"], found["priority"], found["max_attempts"]) == ("q1", 7, 2)
    assert (found["timeout_seconds"], found["labels"], found["batch"]) == (9.0, {"team": "a=b"}, "b1")
    assert found["state"] == "scheduled"


def test_looking_at_jobs() -> None:
    job_id = ended("jobsvc.echo", "1", "--batch", "looking")
    assert data("job", job_id)["state"] == "succeeded"
    assert [each["id"] for each in data("jobs", "--batch", "looking")] == [job_id]
    assert data("jobs", "--batch", "looking", "--state", "failed") == []
    assert len(data("jobs", "--limit", "1")) == 1
    rows = [line.split("\t") for line in jobsvc("jobs", "--batch", "looking").stdout.splitlines()]
    assert rows[0][:3] == ["id", "state", "task"]
    assert rows[1][:3] == [job_id, "succeeded", "jobsvc.echo"]
    card = dict(line.split("\t")[:2] for line in jobsvc("job", job_id).stdout.splitlines())
    assert card["task"] == "jobsvc.echo" and card["state"] == "succeeded"


def test_logs(service: LocalService) -> None:
    job_id = ended("jobsvc.echo", '"hello"')
    written = 'given: {"args":["hello"],"kwargs":{}}\n'
    assert jobsvc("logs", job_id).stdout == written
    assert data("logs", job_id) == {"id": job_id, "text": written}
    assert jobsvc("logs", job_id, "--tail", "0").stdout == ""
    assert jobsvc("logs", job_id, "--follow").stdout == written
    # the exit code of --follow is how the job ended
    assert jobsvc("logs", "-f", ended(*FAILING), code=3).stdout.startswith("given: ")


def test_the_old_endpoint() -> None:
    ended("jobsvc.sha512", "hello", "--kwargs", '{"iterations": 2}')
    pulled = data("pull", "--top", "1")
    assert pulled[0]["value"].startswith("0592a10584ffabf9")


def test_completions_are_json_lines() -> None:
    job_id = ended("jobsvc.echo", "1")
    lines = jobsvc("completions", "--json").stdout.splitlines()
    assert [msgspec.json.decode(line)["id"] for line in lines][-1] == job_id
    last = msgspec.json.decode(lines[-1])["seq"]
    assert jobsvc("completions", "--after", str(last)).stdout == ""
    # a place that is none of this feed is an error, and says where to go on
    for place in ("999999", "1.0123456789ab"):
        refused = jobsvc("completions", "--after", place, code=EXIT_NOT_FOUND)
        assert refused.stdout == "" and "go on after 0." in refused.stderr
    cursor = msgspec.json.decode(lines[-1])["cursor"]
    later = ended("jobsvc.echo", "2")
    assert msgspec.json.decode(jobsvc("completions", "--after", cursor, "--json").stdout)["id"] == later
    jobsvc("completions", "--after", "nowhere", code=EXIT_USAGE)


def test_many_ids_and_one_of_them_wrong(service: LocalService) -> None:
    service.rest()
    first, second = enqueued("jobsvc.echo", "1"), enqueued("jobsvc.echo", "2")
    result = jobsvc("cancel", first, NO_JOB, second, "--json", code=6)
    assert msgspec.json.decode(result.stdout) == {first: "cancelled", second: "cancelled"}
    assert NO_JOB in result.stderr
    assert data("wait", first, second, code=4) == {first: "cancelled", second: "cancelled"}
    assert set(data("retry", first, second).values()) == {"queued"}
    service.working = True
    assert set(data("wait", first, second, "--timeout", "20").values()) == {"succeeded"}


# --- the service ------------------------------------------------------------------------------------


def test_the_service_at_a_glance() -> None:
    ended("jobsvc.echo", "1", "--queue", "seen")
    assert data("status")["leader"] == "manager-a"
    assert "manager-a\tleader, epoch 1" in jobsvc("status").stdout
    assert "seen" in {queue["name"] for queue in data("queues")}
    assert "\nseen\tdefault\tno\t0\t" in jobsvc("queues").stdout
    assert data("workers")[0]["name"] == "w"
    assert "jobsvc.echo" in {task["name"] for task in data("tasks")}
    assert data("pause", "seen")["paused"] is True
    assert jobsvc("resume", "seen").stdout == "name\tpaused\nseen\tno\n"


def test_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    good = {each["check"]: each for each in data("doctor", "--data", str(tmp_path / "data"))}
    assert {"Python", "Ray", "port", "store", "disk", "memory", "clock", "tasks"} <= good.keys()
    assert "jobsvc.sha512" in good["tasks"]["found"]
    file = tmp_path / "file"
    file.touch()
    words = ("doctor", "--data", str(file / "data"), "--tasks", "no.such.module")
    bad = {each["check"]: each["ok"] for each in data(*words, code=1)}
    assert (bad["store"], bad["tasks"], bad["Python"]) == (False, False, True)


def test_doctor_says_who_holds_the_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        findings = data("doctor", "--data", str(tmp_path), "--port", str(port))
    found = next(each["found"] for each in findings if each["check"] == "port")
    assert f"{port} is taken by pid {os.getpid()} " in found and "would be used" in found


def test_down_with_no_service() -> None:
    assert "no service named jobsvc" in jobsvc("down", code=6).stderr


def test_up_refuses_what_cannot_be(tmp_path: Path) -> None:
    words = ("up", "--data", str(tmp_path), "--host", "0.0.0.0")
    assert "JOBSVC_TOKEN" in jobsvc(*words, code=2).stderr


# --- exit codes -------------------------------------------------------------------------------------


def test_what_errors_mean() -> None:
    expected = {
        1: [StoreUnfit("x"), ValueError("x")],
        2: [InvalidRequest("x", "y")],
        3: [JobFailed("x", "failed")],
        4: [JobFailed("x", "cancelled")],
        5: [WaitTimedOut("x")],
        6: [Refused(Refusal(code, "x")) for code in ("unknown_job", "expired_job", "unknown_queue")],
        7: [Refused(Refusal(code, "x")) for code in ("wrong_state", "key_reused", "unauthorized")],
        8: [Unavailable("x")],
    }
    for code, errors in expected.items():
        assert {exit_code_of(error) for error in errors} == {code}
    assert exit_code_of_states(["succeeded", "cancelled", "failed"]) == 3
    assert exit_code_of_states(["succeeded", "cancelled"]) == 4
    assert exit_code_of_states(["succeeded", "running"]) == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("enqueue", "no.such.task"), 2),
        (("enqueue", "jobsvc.echo", "--kwargs", "[1]"), 2),
        (("enqueue", "jobsvc.echo", "--priority", "100000"), 2),
        (("enqueue", "jobsvc.echo", "--label", "x"), 2),
        (("enqueue", "jobsvc.echo", "1", "--file", "/nothing"), 2),
        (("enqueue", "jobsvc.echo", "--file", "/nothing"), 2),
        (("enqueue",), 2),
        (("jobs", "--state", "lost"), 2),
        (("pull", "--top", "0"), 2),
        (("no-such-command",), 2),
        (("status", "--url", "localhost:8000"), 2),
        (("enqueue", *FAILING, "--wait"), 3),
        (("enqueue", "jobsvc.echo", "1", "--delay", "60", "--timeout", "0.1"), 5),
        (("job", NO_JOB), 6),
        (("result", "not-an-id"), 6),
        (("logs", NO_JOB), 6),
        (("wait", NO_JOB), 6),
        (("retry", NO_JOB), 6),
        (("enqueue", "jobsvc.shell", "true"), 7),
        (("enqueue", "jobsvc.echo", "1", "--key", "once"), 0),
        (("enqueue", "jobsvc.echo", "2", "--key", "once"), 7),
    ],
    ids=lambda value: "_".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_exit_codes(words: tuple[str, ...], code: int) -> None:
    result = jobsvc(*words, code=code)
    assert "Traceback" not in result.stderr.partition("The job's own traceback")[0]
    if code:
        assert result.stdout == "", "talk is not data"
        assert result.stderr


def test_waiting_too_short_is_told_from_failing() -> None:
    later = enqueued("jobsvc.echo", "1", "--delay", "600")
    failed = ended(*FAILING)
    assert data("wait", later, "--timeout", "0", code=5) == {}
    assert data("wait", failed, code=3) == {failed: "failed"}
    assert data("wait", failed, later, "--timeout", "0", code=3) == {failed: "failed"}
    assert jobsvc("result", failed, code=3).stdout == ""
    jobsvc("retry", later, code=7)


LOOKING = ["status", "queues", "workers", "tasks", "jobs", "completions", "pull"]


@pytest.mark.parametrize("command", LOOKING)
def test_unreachable_is_8(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobsvc.client.find_addresses", _nowhere)
    result = jobsvc(command, "--json", code=8)
    assert result.stdout == "" and result.stderr.startswith("jobsvc: ")


def _nowhere(url: str | None, service: str) -> Any:
    raise Unavailable("nobody there")


# --- as a process -----------------------------------------------------------------------------------


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "jobsvc.cli", *words]


def test_data_alone_goes_through_a_pipe(service: LocalService) -> None:
    ended("jobsvc.echo", "1")
    for name in ("status", "queues", "workers", "jobs", "tasks", "completions"):
        plain = subprocess.run(command(name), capture_output=True, timeout=60, check=True)
        assert plain.stderr == b""
        assert b"\x1b" not in plain.stdout and "…".encode() not in plain.stdout
    document = subprocess.run(command("status", "--json"), capture_output=True, timeout=60, check=True)
    assert msgspec.json.decode(document.stdout)["ready"] is True


def test_a_service_that_is_not_there() -> None:
    began = time.monotonic()
    gone = subprocess.run(
        command("queues", "--url", unused_url()), capture_output=True, timeout=60, check=False
    )
    assert gone.returncode == 8
    assert gone.stdout == b"" and b"refused" in gone.stderr and b"Traceback" not in gone.stderr
    assert time.monotonic() - began < 30
    environment = {name: value for name, value in os.environ.items() if name != "JOBSVC_URL"}
    unknown = subprocess.run(command("status"), capture_output=True, timeout=60, check=False, env=environment)
    assert unknown.returncode == 8 and b"jobsvc up" in unknown.stderr


def test_ctrl_c_leaves_the_job_alone(service: LocalService) -> None:
    service.rest()
    job_id = enqueued("jobsvc.echo", "1")
    waiting = subprocess.Popen(
        command("wait", job_id),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a shell starts what it runs in the background with Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with Client(service.url) as client:
        deadline = time.monotonic() + 30
        while client.status()["counts"]["queued"] != 1 or not _is_connected(waiting.pid, service.url):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    waiting.send_signal(signal.SIGINT)
    out, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 130 and out == b""
    assert f"jobsvc wait {job_id}".encode() in said and b"Traceback" not in said
    service.working = True
    assert data("wait", job_id) == {job_id: "succeeded"}


def _is_connected(pid: int, url: str) -> bool:
    import psutil

    port = int(url.rpartition(":")[2])
    return any(each.raddr and each.raddr.port == port for each in psutil.Process(pid).net_connections("tcp"))


def test_a_terminal_gets_a_table() -> None:
    controller, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    shown = subprocess.Popen(command("queues"), stdout=terminal, stderr=subprocess.PIPE, env=environment)
    os.close(terminal)
    text = b""
    while select.select([controller], [], [], 60)[0]:
        try:
            text += os.read(controller, 65_536)
        except OSError:  # what Linux says when the other end is closed
            break
    os.close(controller)
    _, said = shown.communicate(timeout=30)
    assert shown.returncode == 0 and said == b""
    assert b"NAME" in text and b"\t" not in text


def test_text_from_elsewhere_cannot_move_the_cursor() -> None:
    refused = jobsvc("enqueue", "no\x1b[2Jtask", code=2)
    assert "\x1b" not in refused.stderr and "task: no task is named" in refused.stderr
    for named in ('{"iterations": "\\u001b[2J\\t"}', '{"\\u001b[2J\\t": 1}'):
        refused = jobsvc("enqueue", "jobsvc.sha512", "x", "--kwargs", named, code=2)
        assert "\x1b" not in refused.stderr and "jobsvc: kwargs" in refused.stderr
    wrong = ended("jobsvc.sha512", "x", "--kwargs", '{"iterations": 0}', "--max-attempts", "1")
    for words in (("job", wrong), ("jobs", "--state", "failed")):
        assert "\x1b" not in jobsvc(*words).stdout


def test_version_and_help() -> None:
    assert jobsvc("--version").stdout.startswith("jobsvc ")
    text = jobsvc("--help").stdout
    for name in ("up", "down", "status", "demo", "doctor", "enqueue", "completions", "130 Ctrl-C"):
        assert name in text


# --- the demo's sums --------------------------------------------------------------------------------


def test_the_demo_knows_what_is_right() -> None:
    assert hashes_of(b"hello", {1, 2, 1000}).keys() == {1, 2, 1000}
    assert hashes_of(b"hello", {1000})[1000].startswith("2f0d1593c9d82cc0")
    assert hashes_of(b"", {1})[1].startswith("cf83e1357eefb8bd")
    files = project_files()
    assert any(path.name == "demo.py" for path in files) and all(path.is_file() for path in files)
