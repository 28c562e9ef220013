"""The cluster file: what is read from it, and that what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobsvc.cluster_file import ClusterFile, load_cluster_file, option_of, read_cluster_file
from jobsvc.errors import InvalidRequest

WHOLE = """
cluster_name: harvest
max_workers: 40
provider: {type: aws, region: eu-central-1, cache_stopped_nodes: false}
auth: {ssh_user: ubuntu, ssh_private_key: ~/.ssh/harvest.pem}
head_node_type: head
available_node_types:
  head:
    resources: {CPU: 0, jobsvc_manager: 1}
    node_config: {InstanceType: m7i.large}
  manager:
    min_workers: 1
    max_workers: 1
    resources: {CPU: 0, jobsvc_manager: 1}
    node_config: {InstanceType: m7i.large}
  worker:
    node_config: {InstanceType: c7i.xlarge, InstanceMarketOptions: {MarketType: spot}}
file_mounts:
  ~/.ray/auth_token: ./ray.token
head_start_ray_commands:
  - ulimit -n 65536; jobsvc node head --data s3://grain/harvest --s3-endpoint-url=http://s3.local
worker_start_ray_commands:
  - jobsvc node worker
"""


def read(text: str = WHOLE) -> ClusterFile:
    return read_cluster_file(text, "cluster.yaml")


def test_what_the_others_need_is_there() -> None:
    cluster = read()
    assert (cluster.cluster_name, cluster.region) == ("harvest", "eu-central-1")
    assert (cluster.head_type, cluster.head.instance_type) == ("head", "m7i.large")
    assert list(cluster.node_types) == ["head", "manager", "worker"]
    assert [each.is_spot for each in cluster.node_types.values()] == [False, False, True]
    assert cluster.node_types["manager"].resources == {"CPU": 0.0, "jobsvc_manager": 1.0}
    assert cluster.file_mounts == {"~/.ray/auth_token": "./ray.token"}
    assert (cluster.ssh_user, cluster.ssh_private_key) == ("ubuntu", "~/.ssh/harvest.pem")
    assert (cluster.data, cluster.s3_endpoint_url) == ("s3://grain/harvest", "http://s3.local")
    assert cluster.worker_start_commands == ("jobsvc node worker",)
    assert cluster.document["provider"]["cache_stopped_nodes"] is False


def test_numbers_that_are_not_said_are_those_of_ray() -> None:
    cluster = read()
    workers = {name: (each.min_workers, each.max_workers) for name, each in cluster.node_types.items()}
    assert workers == {"head": (0, 0), "manager": (1, 1), "worker": (0, 40)}


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("cluster_name: harvest", "", "cluster_name"),
        ("cluster_name: harvest", "cluster_name: a/b", "cluster_name"),
        ("region: eu-central-1, ", "", "provider.region"),
        ("type: aws", "type: gcp", "provider.type"),
        ("ssh_user: ubuntu, ", "", "auth.ssh_user"),
        ("head_node_type: head", "head_node_type: chief", "head_node_type"),
        ("head_node_type: head", "", "head_node_type"),
        ("available_node_types:", "node_types:", "available_node_types"),
        ("min_workers: 1", "min_workers: one", "available_node_types.manager.min_workers"),
        ("CPU: 0, ", "CPU: none, ", "available_node_types.head.resources.CPU"),
        ("node_config: {InstanceType: m7i.large}", "", "available_node_types.head.node_config"),
        ("  ~/.ray/auth_token: ./ray.token", "  ~/.ray/auth_token: 5", "file_mounts.~/.ray/auth_token"),
        ("  - jobsvc node worker", "  jobsvc node worker", "worker_start_ray_commands"),
        ("max_workers: 40", "max_workers: -1", "max_workers"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, field: str) -> None:
    assert old in WHOLE
    with pytest.raises(InvalidRequest) as raised:
        read(WHOLE.replace(old, new, 1))
    assert raised.value.field == field


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "just words"])
def test_what_is_no_cluster_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="cluster file"):
        read(text)


def test_a_file_that_is_not_there_has_its_name_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        load_cluster_file(tmp_path / "none.yaml")
    assert raised.value.filename == str(tmp_path / "none.yaml")


def test_a_file_is_known_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cluster.yaml").write_text(WHOLE)
    monkeypatch.chdir(tmp_path)
    assert load_cluster_file("cluster.yaml").path == str(tmp_path / "cluster.yaml")


@pytest.mark.parametrize(
    ("commands", "value"),
    [
        (["jobsvc node head --data s3://a/b"], "s3://a/b"),
        (["jobsvc node head --data=s3://a/b --x"], "s3://a/b"),
        (["ray stop", "jobsvc node head --data 's3://a/b'; true"], "s3://a/b"),
        (["echo 'it", "jobsvc node head --data s3://a/b"], "s3://a/b"),
        (["# jobsvc node head --data s3://old", "jobsvc node head"], None),
        (["jobsvc node head --database x"], None),
        ([], None),
    ],
)
def test_options_are_found_among_commands(commands: list[str], value: str | None) -> None:
    assert option_of("--data", commands) == value
