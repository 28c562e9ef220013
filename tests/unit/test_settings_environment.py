"""Settings from the environment, as operators write them; variables that mean nothing are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from typer.testing import CliRunner

from jobsvc.cli import app
from jobsvc.errors import InvalidRequest
from jobsvc.known_variables import complaints, known_variables
from jobsvc.settings import PoolSettings, Settings, from_environment

PACKAGE = Path(__file__).parents[2] / "jobsvc"
# field -> text of the variable -> value; what is not here is tried by its type
CASES: dict[str, dict[str, Any]] = {
    "data": {"s3://bucket/x": "s3://bucket/x"},
    "s3_endpoint_url": {"http://127.0.0.1:9000": "http://127.0.0.1:9000", "": None, "null": None},
    "ray_dashboard_url": {"https://ray.example.com": "https://ray.example.com", "none": None},
    "service": {"42": "42", "true": "true"},
    "host": {"10.0.0.5": "10.0.0.5"},
    "route_prefix": {"/jobs": "/jobs"},
    "tasks": {
        "myapp.tasks": ("myapp.tasks",),
        "a, b.c": ("a", "b.c"),
        '["a", "b"]': ("a", "b"),
        "[]": (),
        "": (),
    },
    "pools": {'{"default": {"max_workers": 3}}': {"default": PoolSettings(max_workers=3)}},
    "queues": {'{"q": "default"}': {"q": "default"}},
}
YES = ["true", "True", "TRUE", "1", "yes", "on"]
NO = ["false", "False", "0", "no", "off"]


def tried() -> list[tuple[str, str, Any]]:
    """Every field, with what its variable may say."""
    found: list[tuple[str, str, Any]] = []
    for field in msgspec.structs.fields(Settings):
        default = getattr(Settings(), field.name)
        if field.name in CASES:
            cases = CASES[field.name]
        elif field.type is bool:
            cases = {**dict.fromkeys(YES, True), **dict.fromkeys(NO, False)}
        elif field.type is str:
            cases = {default: default}
        elif isinstance(default, str):
            cases = {each: each for each in get_args(field.type)}
            cases |= {f'"{each}"': each for each in get_args(field.type)}
        elif default is None:
            cases = {"1.5": 1.5, "2": 2.0, "null": None, "": None}
        else:
            text = f"{default:g}" if isinstance(default, float) else str(default)
            cases = {text: default, f" {text} ": default}
        assert cases, field.name
        found += [(field.name, text, value) for text, value in cases.items()]
    return found


@pytest.mark.parametrize(("name", "text", "value"), tried())
def test_every_setting_is_read_as_it_is_written(name: str, text: str, value: Any) -> None:
    settings = from_environment({f"JOBSVC_{name.upper()}": text})
    assert getattr(settings, name) == value


WRONG = {
    "port": ["x", "8000.5", '"8000"', "", "null", "true"],
    "lease_seconds": ["30s", "NaN", "Infinity", "inf", "1e999", "", "[30]"],
    "commit_interval_seconds": ["fast", "-1"],
    "allow_shell": ["maybe", "2", "", '"true"'],
    "log_level": ["LOUD", "debug", "", "5"],
    "proxy": ["nginx"],
    "pools": ["{default}", "[]", '{"default": {"max_wrokers": 1}}', '{"default": {"num_cpus": "1"}}', ""],
    "queues": ['{"q": 1}', '{"q": "no"}', "q=default"],
    "tasks": ["[1]", '["a"'],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts])
def test_what_is_wrong_is_named(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        from_environment({f"JOBSVC_{name.upper()}": text})
    assert refused.value.field is not None and refused.value.field.startswith(name)


def test_a_misspelled_variable_is_named_with_the_one_that_may_have_been_meant() -> None:
    given = {
        "JOBSVC_MAX_JOB": "1",
        "JOBSVC_LOGLEVEL": "DEBUG",
        "JOBSVC_": "x",
        "jobsvc_port": "1",
        "PATH": "/",
    }
    lines = list(complaints(given))
    assert lines[0].startswith("JOBSVC_ is no variable of jobsvc")
    assert lines[1].endswith("did you mean JOBSVC_LOG_LEVEL?")
    assert lines[2] == (
        "JOBSVC_MAX_JOB is no variable of jobsvc, and changes nothing; did you mean JOBSVC_MAX_JOBS?"
    )
    assert len(lines) == 3


def test_every_variable_that_the_package_reads_is_known() -> None:
    # given all names that stand in the code, comments and texts too
    named = {
        name
        for path in PACKAGE.glob("*.py")
        for name in re.findall(r"\bJOBSVC_[A-Z][A-Z_]*[A-Z]\b", path.read_text())
    }
    assert {"JOBSVC_TOKEN", "JOBSVC_RUN_DIR"} <= named
    # then none of them is complained about, but for examples
    environment = dict.fromkeys(named - {"JOBSVC_KEY", "JOBSVC_GUARD"}, "x")
    assert list(complaints(environment)) == []
    assert list(complaints(dict.fromkeys(known_variables(), "1"))) == []


def test_up_and_doctor_say_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOBSVC_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("JOBSVC_ALLOW_SHEL", "true")
    monkeypatch.setenv("JOBSVC_LOG_LEVEL", "LOUD")  # so that it goes no further
    for command in ("up", "doctor"):
        result = CliRunner().invoke(app, [command])
        assert result.exit_code == 2
        assert "JOBSVC_ALLOW_SHEL is no variable of jobsvc" in result.stderr
        assert "did you mean JOBSVC_ALLOW_SHELL?" in result.stderr
        assert "JOBSVC_LOG_LEVEL='LOUD' is none of DEBUG, INFO, WARNING, ERROR" in result.stderr
