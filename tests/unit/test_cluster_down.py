"""`down` for a cluster and the command line of both: everything is ended, and it is shown that it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest
from moto import mock_aws
from typer.testing import CliRunner, Result

from jobsvc import cluster_down
from jobsvc.cli import app
from jobsvc.cluster_down import DownReport, guards_stand_still, run_ray_down, take_down
from jobsvc.cluster_file import ClusterFile, load_cluster_file
from jobsvc.ec2_cluster_mark import announce_up
from jobsvc.ec2_instances import Ec2
from jobsvc.ec2_sweep import Verdict
from jobsvc.s3_store import open_store
from jobsvc.settings import Settings

from .ec2_world import CLUSTER_YAML, REGION, Ec2World, FlakyClient, TurnedClock

DATA = "s3://grain/harvest"
HEAD_COMMANDS = f"head_start_ray_commands: [jobsvc node head --data {DATA}]\n"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2World]:
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    monkeypatch.setattr("jobsvc.ec2_sweep.POLL_SECONDS", 0.01)
    monkeypatch.setattr("jobsvc.ec2_cluster_mark.PAUSE_SECONDS", 0.0)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        where = {"LocationConstraint": REGION}
        boto3.client("s3", region_name=REGION).create_bucket(Bucket="grain", CreateBucketConfiguration=where)
        yield Ec2World()


@pytest.fixture
def cluster(tmp_path: Path) -> ClusterFile:
    (tmp_path / "cluster.yaml").write_text(CLUSTER_YAML + HEAD_COMMANDS)
    return load_cluster_file(tmp_path / "cluster.yaml")


class RayDown:
    """Ray's teardown, which may stop half way."""

    def __init__(self, world: Ec2World, ends: list[str], raises: BaseException | None = None) -> None:
        self.calls = 0
        self._world = world
        self._ends = ends
        self._raises = raises

    def __call__(self, cluster: ClusterFile) -> str:
        self.calls += 1
        if self._ends:
            self._world.client.terminate_instances(InstanceIds=self._ends)
        if self._raises is not None:
            raise self._raises
        return "done"


def down(
    world: Ec2World,
    cluster: ClusterFile,
    ray_down: RayDown,
    *,
    client: Any = None,
    clock: TurnedClock | None = None,
) -> DownReport:
    clock = clock or TurnedClock()
    ec2 = Ec2(client or world.client, sleep=clock.sleep)
    return take_down(cluster, ec2, clock=clock, ray_down=ray_down)


def told(cluster: ClusterFile) -> bool:
    return guards_stand_still(cluster, lambda _: None)


# --- the proof ------------------------------------------------------------------------------------


def test_down_ends_everything_and_shows_it(world: Ec2World, cluster: ClusterFile) -> None:
    foreign = world.machine("head", cluster="other")
    before = world.states()
    machines = world.whole_cluster()
    things = [world.volume(), world.volume(machine=machines[1]), world.address(machine=machines[0])]
    # when it is taken down, with a `ray down` that ends the machines
    report = down(world, cluster, RayDown(world, machines))
    # then EC2's last word on each of them is in the report, and nothing of it is left
    assert report.is_clean and report.guards_told and report.ray_down == "done"
    proof = {each.id: (each.state, each.verdict) for each in report.left.items}
    assert {proof[each] for each in machines} == {("terminated", Verdict.ENDED)}
    assert {proof[each] for each in things} == {("gone", Verdict.ENDED)}
    assert foreign not in proof and world.states() == before


def test_down_of_what_is_gone_is_down_and_calls_no_ray(world: Ec2World, cluster: ClusterFile) -> None:
    machines = world.whole_cluster()
    assert down(world, cluster, RayDown(world, machines)).is_clean
    again = RayDown(world, [])
    report = down(world, cluster, again)
    assert report.is_clean and again.calls == 0


@pytest.mark.parametrize("ended", [slice(0, 0), slice(0, 1), slice(1, 3)], ids=["none", "head", "others"])
def test_a_ray_down_that_stops_half_way_is_finished(
    world: Ec2World, cluster: ClusterFile, ended: slice
) -> None:
    machines = world.whole_cluster()
    assert down(world, cluster, RayDown(world, machines[ended])).is_clean
    assert world.states() == {}


@pytest.mark.parametrize("seed", range(4))
def test_half_of_the_calls_fail_and_all_is_gone(world: Ec2World, cluster: ClusterFile, seed: int) -> None:
    machines = world.whole_cluster()
    world.volume(machine=machines[2])
    world.address()
    ray_down = RayDown(world, machines[:1])
    assert down(world, cluster, ray_down, client=FlakyClient(world.client, seed)).is_clean
    assert world.states() == {}


def test_a_head_that_a_guard_had_begun_to_build_is_ended_too(world: Ec2World, cluster: ClusterFile) -> None:
    machines = world.whole_cluster()
    clock = TurnedClock()
    late: list[str] = []
    clock.after_sleep = lambda: late.append(world.machine("head")) if not late else None
    report = down(world, cluster, RayDown(world, machines), clock=clock)
    assert report.is_clean and world.states() == {}
    assert late and late[0] in {each.id for each in report.left.items}


def test_what_cannot_be_ended_is_no_proof(world: Ec2World, cluster: ClusterFile) -> None:
    machine, *_ = world.whole_cluster(0)
    world.client.modify_instance_attribute(InstanceId=machine, DisableApiTermination={"Value": True})
    report = down(world, cluster, RayDown(world, []))
    assert not report.is_clean
    assert [each.id for each in report.left.having(Verdict.END)] == [machine]


# --- guards ---------------------------------------------------------------------------------------


def test_guards_are_told_before_anything_ends(world: Ec2World, cluster: ClusterFile) -> None:
    machines = world.whole_cluster()
    told_at_first: list[bool] = []

    class Watched(RayDown):
        def __call__(self, cluster: ClusterFile) -> str:
            told_at_first.append(told(cluster) and set(machines) <= set(self._world.states()))
            return super().__call__(cluster)

    assert down(world, cluster, Watched(world, machines)).is_clean
    assert told_at_first == [True]
    # and until somebody starts the cluster again
    store = open_store(Settings(data=DATA))
    asyncio.run(announce_up(store, cluster.cluster_name, "a test"))
    assert not told(cluster)


@pytest.mark.parametrize("data", ["", "s3://no-such-bucket/x", "s3://FILL_IN_BUCKET/jobsvc"])
def test_guards_that_cannot_be_told_are_ended_first(world: Ec2World, cluster: ClusterFile, data: str) -> None:
    head, manager, *workers = world.whole_cluster()
    silent = msgspec.structs.replace(cluster, data=data)
    ended: list[list[str]] = []

    class Watching:
        def __getattr__(self, name: str) -> Any:
            call = getattr(world.client, name)
            if name != "terminate_instances":
                return call
            return lambda **given: (ended.append(given["InstanceIds"]), call(**given))[1]

    ray_down = RayDown(world, [])
    report = down(world, silent, ray_down, client=Watching())
    # then not by Ray, which takes its time, but all at once
    assert report.is_clean and not report.guards_told and ray_down.calls == 0
    assert set(ended[0][:2]) == {head, manager} and set(ended[0][2:]) == set(workers)


# --- Ray's teardown -------------------------------------------------------------------------------


def test_a_teardown_that_fails_or_hangs_is_said(cluster: ClusterFile, tmp_path: Path) -> None:
    Path(cluster.path).write_text("cluster_name: [")
    assert run_ray_down(cluster).startswith("failed with code 1")
    assert run_ray_down(cluster, seconds=0.01) == "gave up on it after 0.01 s"


# --- the command line -----------------------------------------------------------------------------


def jobsvc(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


def test_sweep_lists_and_with_yes_ends(world: Ec2World, cluster: ClusterFile) -> None:
    stopped = world.machine(stopped=True)
    listed = jobsvc("sweep", cluster.path, code=1)
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert rows[0] == ["kind", "id", "state", "verdict", "why"]
    assert ["instance", stopped, "stopped", "left behind"] in [row[:4] for row in rows]
    assert "--yes" in listed.stderr and stopped in world.states()
    # when it is meant
    document = msgspec.json.decode(jobsvc("sweep", cluster.path, "--yes", "--json").stdout)
    ended = {each["id"]: each["verdict"] for each in document["items"]}
    assert ended[stopped] == "ended" and document["standing"] == "gone"
    assert world.states() == {}
    jobsvc("sweep", cluster.path)


def test_sweep_of_a_live_cluster_is_clean(world: Ec2World, cluster: ClusterFile) -> None:
    machines = world.whole_cluster()
    jobsvc("sweep", cluster.path, "--yes")
    assert set(machines) <= set(world.states())
    jobsvc("sweep", cluster.path, "--yes", "--dead")
    assert world.states() == {}


def test_an_interrupted_down_is_finished_by_down_or_by_sweep(
    world: Ec2World, cluster: ClusterFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["sweep", cluster.path, "--yes"], ["down", "--cluster", cluster.path]):
        # given Ctrl-C in the middle of `ray down`
        machines = world.whole_cluster()
        ray_down = RayDown(world, machines[:1], KeyboardInterrupt())
        monkeypatch.setattr(cluster_down, "run_ray_down", ray_down)
        assert "run it again" in jobsvc("down", "--cluster", cluster.path, code=130).stderr
        assert set(machines[1:]) <= set(world.states())
        # then the next command ends the rest, the manager's machine included
        monkeypatch.setattr(cluster_down, "run_ray_down", RayDown(world, []))
        jobsvc(*command)
        assert world.states() == {}


def test_down_of_a_cluster_prints_the_proof(
    world: Ec2World, cluster: ClusterFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = world.whole_cluster()
    monkeypatch.setattr(cluster_down, "run_ray_down", RayDown(world, []))
    result = jobsvc("down", "--cluster", cluster.path, "--json")
    document = msgspec.json.decode(result.stdout)
    assert {each["id"]: each["state"] for each in document["left"]["items"]} | dict.fromkeys(
        machines, "terminated"
    ) == {each["id"]: each["state"] for each in document["left"]["items"]}
    assert "nothing of harvest is left" in result.stderr and DATA in result.stderr


def test_down_that_leaves_something_says_so(
    world: Ec2World, cluster: ClusterFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = world.machine(cluster=None)
    volume = world.volume(machine=foreign)
    result = jobsvc("down", "--cluster", cluster.path, code=1)
    assert f"volume\t{volume}\tin-use\tnot ours" in result.stdout
    assert "not everything" in result.stderr


def test_files_that_are_none_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("cluster_name: x\nprovider: {type: gcp}\n")
    for words in (["sweep"], ["down", "--cluster"]):
        assert "none.yaml" in jobsvc(*words, str(tmp_path / "none.yaml"), code=1).stderr
        assert "provider.type" in jobsvc(*words, str(tmp_path / "bad.yaml"), code=2).stderr
