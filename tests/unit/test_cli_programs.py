"""The command line for programs and shells: --json parses, stdout is data alone; many jobs; completion."""

from __future__ import annotations

import datetime
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from jobsvc.cli import app
from jobsvc.cli_output import rich_table
from jobsvc.client import Client
from jobsvc.demo import DemoReport
from jobsvc.discovery import ServiceInfo
from jobsvc.ec2_sweep import Report
from jobsvc.service_code import ServiceCode

from .local_service import LocalService, unused_url

SECONDS = 20.0
INFO = ServiceInfo("jobsvc", ["http://127.0.0.1:1"], None, "", "/data")
FAILING = ("enqueue", "jobsvc.sha512", "x", "--kwargs", '{"iterations": 0}', "--max-attempts", "1")


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


def jobsvc(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


def data(*words: str, code: int = 0) -> Any:
    return msgspec.json.decode(jobsvc(*words, "--json", code=code).stdout)


def enqueued(*words: str) -> str:
    return str(data("enqueue", *words)["id"])


# --- JSON for programs ------------------------------------------------------------------------------


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its words, with those of groups."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


# How each command is called here. {job} has ended, {open} waits, {data} is a folder, {batch} is of the job.
CALLS: dict[str, tuple[str, ...]] = {
    "up": ("--data", "{data}"),
    "down": (),
    "reload": (),
    "status": (),
    "doctor": ("--data", "{data}"),
    "demo": (),
    "bench": ("--jobs", "30", "--callers", "2", "--seconds", "0.2"),
    "enqueue": ("jobsvc.echo", "1", "--wait"),
    "jobs": (),
    "job": ("{job}",),
    "result": ("{job}",),
    "logs": ("{job}", "--follow"),
    "wait": ("--batch", "{batch}"),
    "watch": ("--looks", "2", "--seconds", "0.1"),
    "cancel": ("{open}",),
    "retry": ("--state", "failed", "--dry-run"),
    "failures": (),
    "pull": (),
    "completions": (),
    "queues": (),
    "pause": ("a-queue",),
    "resume": ("a-queue",),
    "workers": (),
    "tasks": (),
    "sweep": ("{cluster}",),
}
ON_MACHINES = {"node head"}  # needs systemd: see test_cli_node


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What starts Ray or asks EC2 has tests of its own; here it is only what they print that counts."""

    def up(settings: Any, *, say: Any, **_: Any) -> ServiceInfo:
        say("starting Ray")
        return INFO

    def down(service: str, *, say: Any) -> bool:
        say("ending it")
        return True

    def reload(service: str, *, grace_seconds: float, say: Any) -> ServiceCode:
        say("its code is new")
        return ServiceCode({"t": "digest"}, ["t.task"])

    def demo(jobs: int, *, keep: bool, say: Any) -> DemoReport:
        say("killed the leader")
        return DemoReport(jobs=jobs, right=True)

    class Sweep:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def look(self) -> Report:
            return Report(cluster="c", standing="live", items=[], problems=[], unknown=[])

    monkeypatch.setattr("jobsvc.service.up", up)
    monkeypatch.setattr("jobsvc.service.down", down)
    monkeypatch.setattr("jobsvc.service.reload", reload)
    monkeypatch.setattr("jobsvc.demo.run_demo", demo)
    monkeypatch.setattr("jobsvc.ec2_sweep.Sweep", Sweep)
    monkeypatch.setattr("jobsvc.cli_cluster._ec2", lambda _: None)
    monkeypatch.setattr("jobsvc.cluster_down.guards_stand_still", lambda *_: False)


def has_json(command: Any) -> bool:
    return any("--json" in parameter.opts for parameter in command.params)


def test_every_command_that_answers_has_json_and_is_called_below() -> None:
    silent = {name for name, command in commands() if not has_json(command)}
    assert silent == {"guard", "node pulse", "node worker", "node service"}, "those have no data to print"
    with_json = {name for name, command in commands() if has_json(command)}
    assert with_json - ON_MACHINES == CALLS.keys()


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", CALLS)
def test_json_parses_and_nothing_but_data_goes_to_stdout(
    name: str, service: LocalService, tmp_path: Path
) -> None:
    # given a job that has ended, and one that waits
    batch = f"batch of {name}"
    done = enqueued("jobsvc.echo", '"\\u001b[2J"', "--batch", batch)
    jobsvc("wait", done, "--timeout", str(SECONDS))
    waits = enqueued("jobsvc.echo", "1", "--delay", "3600")
    words = [
        word.format(job=done, open=waits, batch=batch, data=tmp_path / "data", cluster=cluster_file())
        for word in CALLS[name]
    ]
    # when a program calls the command
    result = jobsvc(name, *words, "--json")
    # then each line that it reads is a JSON document, and no escape sequence is in it
    lines = result.stdout.splitlines()
    assert lines or name == "pull"
    for line in lines:
        msgspec.json.decode(line)
    assert "\x1b" not in result.stdout


def cluster_file() -> str:
    return str(Path(__file__).parent.parent.parent / "cluster.yaml")


def test_failures_of_every_kind_print_nothing_on_stdout() -> None:
    for name, words in (("jobs", ("--limit", "0")), ("job", ("no-id",)), ("cancel", ()), ("wait", ())):
        result = CliRunner().invoke(app, [name, *words, "--json"])
        assert result.exit_code in (2, 6) and result.stdout == "", name
        assert result.stderr, name


# --- many jobs --------------------------------------------------------------------------------------


def test_waiting_for_a_batch_tells_counts_and_names_what_failed() -> None:
    enqueued("jobsvc.echo", "1", "--batch", "mixed")
    failed = str(data(*FAILING, "--batch", "mixed")["id"])
    result = jobsvc("wait", "--batch", "mixed", "--timeout", str(SECONDS), "--json", code=3)
    assert msgspec.json.decode(result.stdout) == {"succeeded": 1, "failed": 1}
    assert f"{failed} failed InvalidRequest: " in result.stderr
    assert "no job is in a batch" in jobsvc("wait", "--batch", "nothing", code=6).stderr
    jobsvc("wait", failed, "--batch", "mixed", code=2)


def test_all_that_match_are_counted_before_anything_is_done(service: LocalService) -> None:
    # given jobs of two queues
    service.rest()
    first = [enqueued("jobsvc.echo", "1", "--queue", "match") for _ in range(3)]
    other = enqueued("jobsvc.echo", "1", "--queue", "other")
    # when they are counted, or it is not said that it shall be done
    counted = data("cancel", "--queue", "match", "--dry-run")
    refused = jobsvc("cancel", "--queue", "match", code=2)
    # then nothing has changed
    assert (counted["count"], counted["dry_run"], set(counted["ids"])) == (3, True, set(first))
    assert "3 jobs match" in refused.stderr and "--yes" in refused.stderr
    assert {data("job", each)["state"] for each in [*first, other]} == {"queued"}
    # when it is said
    assert data("cancel", "--queue", "match", "--yes")["count"] == 3
    # then it is done to those, and can be taken back
    assert {data("job", each)["state"] for each in first} == {"cancelled"}
    assert data("job", other)["state"] == "queued"
    assert jobsvc("retry", "--queue", "match", "--yes").stdout == "action\tjobs\nretry\t3\n"
    assert {data("job", each)["state"] for each in first} == {"queued"}


def test_there_is_no_default_of_all() -> None:
    for command in ("cancel", "retry"):
        assert "job ids" in jobsvc(command, "--yes", code=2).stderr
        jobsvc(command, enqueued("jobsvc.echo", "1"), "--queue", "default", code=2)


def test_a_group_of_failures_is_put_back(service: LocalService) -> None:
    # given failures
    failed = str(data(*FAILING, "--queue", "grouped")["id"])
    jobsvc("wait", failed, "--timeout", str(SECONDS), code=3)
    group = next(each for each in data("failures") if each["task"] == "jobsvc.sha512")
    assert group["type"].endswith("InvalidRequest")
    # when their group is put back, then they run again
    service.rest()
    assert data("retry", "--failure", group["fingerprint"], "--yes")["count"] == group["count"]
    assert data("job", failed)["state"] == "queued"


def test_somebody_at_a_terminal_is_asked(service: LocalService) -> None:
    service.rest()
    job_id = enqueued("jobsvc.echo", "1", "--queue", "asked")
    for typed, state in ((b"n\n", "queued"), (b"y\n", "cancelled")):
        controller, terminal = pty.openpty()
        asked = subprocess.Popen(
            command("cancel", "--queue", "asked"), stdin=terminal, stderr=terminal, stdout=subprocess.PIPE
        )
        os.close(terminal)
        os.write(controller, typed)
        out, _ = asked.communicate(timeout=60)
        os.close(controller)
        assert asked.returncode == 0
        assert (b"cancel\t1\n" in out) == (state == "cancelled")
        assert data("job", job_id)["state"] == state


# --- live -------------------------------------------------------------------------------------------


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "jobsvc.cli", *words]


def test_watch_in_a_pipe_is_lines() -> None:
    job_id = enqueued("jobsvc.echo", "1", "--queue", "watched")
    looks = [
        msgspec.json.decode(line)
        for line in jobsvc(
            "watch", "--queue", "watched", "--looks", "2", "--seconds", "0.1", "--json"
        ).stdout.splitlines()
    ]
    assert len(looks) == 2 and looks[0]["ready"] is True
    assert [job["id"] for job in looks[1]["jobs"]] == [job_id]
    plain = jobsvc("watch", "--queue", "watched", "--looks", "1").stdout.splitlines()
    assert plain[0].startswith("id\tstate\t") and plain[1].startswith(f"{job_id}\t")


def test_watch_on_a_terminal_is_live_and_outlasts_a_pause(service: LocalService) -> None:
    # given a job that waits, and somebody who watches
    service.rest()
    job_id = enqueued("jobsvc.echo", "1", "--queue", "live")
    screen = Screen(*command("watch", "--queue", "live", "--seconds", "0.1"))
    screen.wait_for(f"{job_id}  queued", "leader manager-a")
    # when the job runs, then the screen says so by itself
    service.working = True
    screen.wait_for(f"{job_id}  succeeded")
    # and it goes on until it is told to end
    assert screen.end() in (130, -2)


def test_a_terminal_shows_states_in_colour_and_ages_for_times() -> None:
    now = datetime.datetime.now(datetime.UTC)
    ages = {-30: "in 30 s", 0: "0 s ago", 90: "2 min ago", 7_200: "2 h ago", 200_000: "2 d ago"}
    rows = [["failed", (now - datetime.timedelta(seconds=each)).isoformat()] for each in ages]
    for colour, environ in ((True, {}), (False, {"NO_COLOR": "1"})):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, color_system="standard", width=80, _environ=environ)
        console.print(rich_table(["state", "created_at"], rows))
        for text in ages.values():
            assert text in out.getvalue()
        assert ("\x1b[31mfailed" in out.getvalue()) is colour


def test_a_list_that_is_cut_says_so(service: LocalService) -> None:
    for _ in range(3):
        enqueued("jobsvc.echo", "1", "--batch", "three")
    cut = jobsvc("jobs", "--batch", "three", "--limit", "2", "--json")
    assert len(msgspec.json.decode(cut.stdout)) == 2 and "the newest 2;" in cut.stderr
    whole = jobsvc("jobs", "--batch", "three", "--limit", "3", "--json")
    assert len(msgspec.json.decode(whole.stdout)) == 3 and whole.stderr == ""


def test_an_id_is_never_cut_on_a_narrow_terminal() -> None:
    job_id = enqueued("jobsvc.echo", "1", "--queue", "a-queue-with-a-long-name", "--batch", "narrow")
    screen = Screen(*command("jobs", "--batch", "narrow"), columns=80)
    screen.wait_for(job_id)
    assert "…" not in screen.text
    screen.end()


class Screen:
    """A command on a terminal of its own."""

    def __init__(self, *words: str, columns: int = 220) -> None:
        self._fd, terminal = pty.openpty()
        environment = {**os.environ, "COLUMNS": str(columns), "LINES": "50", "TERM": "xterm", "NO_COLOR": "1"}
        self._process = psutil.Popen(
            list(words),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            # whoever runs the tests in the background of a shell ignores Ctrl-C, and all that they start
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(terminal)
        self.text = ""

    def wait_for(self, *texts: str) -> None:
        deadline = time.monotonic() + 60
        while not all(text in self.text for text in texts):
            assert time.monotonic() < deadline, self.text
            self._read()

    def _read(self) -> None:
        if select.select([self._fd], [], [], 0.2)[0]:
            with suppress(OSError):  # how a terminal says that its program has ended
                self.text += os.read(self._fd, 65_536).decode(errors="replace")

    def end(self) -> int:
        """Ctrl-C. A terminal that nobody reads is full after a while, and its program waits for ever."""
        self._process.send_signal(2)
        deadline = time.monotonic() + 60
        while self._process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self._read()
        os.close(self._fd)
        return int(self._process.wait())


# --- completion -------------------------------------------------------------------------------------


def completed(*words: str, url: str | None = None) -> list[str]:
    """What bash is told to offer for the last word."""
    environment = {
        **os.environ,
        "_JOBSVC_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["jobsvc", *words]),
        "COMP_CWORD": str(len(words)),
    }
    if url is not None:
        environment["JOBSVC_URL"] = url
    call = [sys.executable, "-c", "import sys; sys.argv[0] = 'jobsvc'; from jobsvc.cli import main; main()"]
    answer = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert answer.stderr == ""
    return answer.stdout.split()


def test_the_shell_completes_commands_options_and_names(service: LocalService) -> None:
    service.rest()
    job_id = enqueued("jobsvc.echo", "1", "--queue", "complete-me")
    assert completed("sta") == ["status"]
    assert "--json" in completed("jobs", "--j")
    assert completed("jobs", "--state", "su") == ["succeeded"]
    assert completed("jobs", "--queue", "comp") == ["complete-me"]
    assert completed("pause", "comp") == ["complete-me"]
    assert completed("enqueue", "jobsvc.ec") == ["jobsvc.echo"]
    assert job_id in completed("cancel", job_id[:4])


def test_completion_is_silent_and_soon_over_where_nobody_answers() -> None:
    began = time.monotonic()
    assert completed("jobs", "--queue", "a", url=unused_url()) == []
    assert time.monotonic() - began < 10


def test_the_script_for_a_shell_is_printed() -> None:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for shell in ("bash", "zsh", "fish"):
        call = [sys.executable, "-m", "jobsvc.cli", "--show-completion", shell]
        script = subprocess.run(
            call, env=environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout
        assert "COMPLETE" in script and f"complete_{shell}" in script


def test_a_bulk_change_of_python(service: LocalService) -> None:
    service.rest()
    ids = [enqueued("jobsvc.echo", "1", "--queue", "bulk") for _ in range(3)]
    with Client(service.url) as client:
        assert client.cancel_matching(queue="bulk", dry_run=True)["count"] == 3
        done = client.cancel_matching(queue="bulk")
        assert done["count"] == 3 and set(done["ids"]) == set(ids)
        assert client.retry_matching(queue="bulk", state="cancelled")["count"] == 3
        assert isinstance(client.failures(), list)
