"""A pool's settings are checked with Ray's own checks, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobsvc import doctor, pool_environments
from jobsvc.errors import InvalidRequest
from jobsvc.pool_environments import check_pools, lacking, packages, unserved, with_absolute_paths
from jobsvc.settings import PoolSettings, Settings


def settings(**pool: Any) -> Settings:
    return Settings(data="d", pools={"default": PoolSettings(), "wd": PoolSettings(**pool)})


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"runtime_env": {"working_dir": "/some/folder"}}, "pools.wd.runtime_env: /some/folder is not a"),
        ({"runtime_env": {"py_modules": ["/no/such"]}}, "/no/such is not a valid path"),
        ({"runtime_env": {"working_dir": "s3://bucket/folder"}}, "Only .zip"),
        ({"runtime_env": {"pip": 5}}, "runtime_env['pip'] must be of type"),
        ({"runtime_env": {"pip": "/no/such.txt"}}, "/no/such.txt is not a valid file"),
        ({"runtime_env": {"pip": ["x"], "conda": "y"}}, "cannot be specified at the same time"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, "runtime_env['env_vars'] must be of type Dict[str, str]"),
        ({"runtime_env": {"excludes": "x"}}, "excludes"),
        ({"runtime_env": {"working_dri": "."}}, "pools.wd.runtime_env: Ray does not know 'working_dri'; it"),
        ({"runtime_env": {"config": {"setup_timeout_seconds": -5}}}, "setup_timeout_seconds"),
        ({"resources": {"CPU": 1}}, "pools.wd: Use the 'num_cpus' and 'num_gpus' keyword instead of"),
        ({"resources": {"memory": 1}}, "must not contain the key 'memory'"),
        ({"resources": {"licence": -1}}, "pools.wd: The quantity of resource licence cannot be negative"),
        ({"resources": {"licence": 0.00001}}, "precision"),
        ({"num_cpus": 0.00001}, "precision"),
        ({"num_gpus": 1.5}, "pools.wd: num_gpus: more than one must be a whole number, not 1.5"),
    ],
)
def test_what_ray_would_refuse_is_refused_in_one_line_with_the_pools_name(
    pool: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_pools(settings(**pool))
    assert said in str(caught.value) and "pools.wd" in str(caught.value)
    assert "\n" not in str(caught.value)
    [finding] = doctor._pools(settings(**pool))
    assert (finding.check, finding.ok) == ("pools", False) and said in finding.found


def test_what_ray_takes_is_taken(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("humanize\n")
    environment = {
        "working_dir": str(tmp_path),
        "pip": str(tmp_path / "requirements.txt"),
        "env_vars": {"A": "1"},
        "py_modules": [str(tmp_path)],
    }
    check_pools(settings(num_cpus=0.5, num_gpus=2, resources={"licence": 1.5}, runtime_env=environment))


def test_a_relative_path_is_meant_from_where_the_operator_stands(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "requirements.txt").touch()
    before = settings(
        runtime_env={
            "working_dir": "code",
            "py_modules": ["./code", "s3://bucket/x.zip"],
            "pip": "requirements.txt",
            "conda": "an-environment",
            "env_vars": {"A": "code"},
        }
    )
    after = with_absolute_paths(before, tmp_path).pools["wd"].runtime_env
    assert after == {
        "working_dir": str(tmp_path / "code"),
        "py_modules": [str(tmp_path / "code"), "s3://bucket/x.zip"],
        "pip": str(tmp_path / "requirements.txt"),
        "conda": "an-environment",
        "env_vars": {"A": "code"},
    }


def test_packages_are_what_ray_keeps() -> None:
    environment = {"working_dir": "gcs://a.zip", "py_modules": ["gcs://b.zip", "s3://c.zip"], "pip": ["x"]}
    assert packages(environment) == ["gcs://a.zip", "gcs://b.zip"]
    assert packages(None) == packages({}) == []


def test_a_pool_that_this_machine_cannot_serve_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_environments, "this_machine", lambda: {"CPU": 2.0, "memory": 4e9})
    assert lacking(PoolSettings(num_gpus=1, num_cpus=4), {"CPU": 2.0}) == "CPU: 4, GPU: 1"
    assert list(unserved(settings(num_cpus=2))) == []
    assert list(unserved(settings(num_gpus=1, resources={"licence": 1}))) == [
        "pool wd: this machine has not what one of its workers needs (GPU: 1, licence: 1)"
    ]
    [finding] = doctor._pools(settings(num_gpus=1))
    assert not finding.ok and "pool wd" in finding.found
