"""The cluster file of these tests: the project's own `cluster.yaml`, and every difference from it.

`FILLED_IN` is what anyone fills in. `overrides` is what differs because the rig is not EC2, or because a test
will not wait as long as money would:

| what | why |
|---|---|
| `setup_commands`, `initialization_commands` | hosts have no internet, and see this checkout's own venv |
| `file_mounts` but for the tokens | the same |
| `use_internal_ips` | the operator of the rig stands inside the network |
| `idle_timeout_minutes`, `--settings` | seconds instead of minutes until idle workers and machines end |
| `max_workers`, `CPU: 1` of worker types | all hosts share two cores |
| seconds of guard, watchdog and autoscaler (`PACE`) | the same promises, on a shorter clock |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.s3_server import REPOSITORY

from .rig import IMAGE, Rig

Pace = Mapping[str, float]  # variable of a unit -> seconds
TOKEN = "a-token-of-the-tests"
RAY_TOKEN = "0123456789abcdef" * 4
IDLE_SECONDS = 6.0
PACE: Pace = {
    "AUTOSCALER_UPDATE_INTERVAL_S": 2,
    "JOBSVC_GUARD_POLL_SECONDS": 1,
    "JOBSVC_GUARD_HEAD_SILENT_SECONDS": 60,
    "JOBSVC_NO_HEAD_SECONDS": 120,
}
TASKS = "tests.cluster.tasks_under_test"


def write_cluster_file(
    rig: Rig, folder: Path, *, data: str, changes: dict[str, Any] | None = None, pace: Pace | None = None
) -> Path:
    """The cluster file, and the secrets that it mounts, in a folder.

    `changes` replace top-level entries, `pace` replaces seconds.
    """
    text = (REPOSITORY / "cluster.yaml").read_text()
    for placeholder, value in filled_in(rig, data).items():
        text = text.replace(placeholder, value)
    document: dict[str, Any] = yaml.safe_load(text)
    document.update(overrides(folder, document, {**PACE, **(pace or {})}))
    document.update(changes or {})
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def filled_in(rig: Rig, data: str) -> dict[str, str]:
    return {
        "s3://FILL_IN_BUCKET/jobsvc": data,
        "FILL_IN_AMI": IMAGE,
        "~/.ssh/FILL_IN_KEY.pem": str(rig.state / "key"),
        "FILL_IN_KEY": "rig",
        "FILL_IN_SECURITY_GROUP": security_group(rig),
        "FILL_IN_REGION": rig.region,
    }


def security_group(rig: Rig) -> str:
    """One of the default VPC; the key pair and the instance profiles are made beside it."""
    ec2, iam = rig.client("ec2"), rig.client("iam")
    [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    known = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["jobsvc"]}])
    if known["SecurityGroups"]:
        return str(known["SecurityGroups"][0]["GroupId"])
    public_key = (rig.state / "key.pub").read_bytes()
    ec2.import_key_pair(KeyName="rig", PublicKeyMaterial=public_key)
    for profile in ("jobsvc-head", "jobsvc-worker"):
        iam.create_instance_profile(InstanceProfileName=profile)
    made = ec2.create_security_group(GroupName="jobsvc", Description="jobsvc", VpcId=vpc["VpcId"])
    return str(made["GroupId"])


def overrides(folder: Path, document: dict[str, Any], pace: Pace) -> dict[str, Any]:
    """See the table above."""
    types = {name: dict(each) for name, each in document["available_node_types"].items()}
    for name, each in types.items():
        if name.startswith("worker"):
            each["resources"] = {"CPU": 1}
            each["max_workers"] = 2
    head, worker = document["head_start_ray_commands"][-1], document["worker_start_ray_commands"][-1]
    pool = {"max_workers": 3, "idle_seconds": IDLE_SECONDS, "target_drain_seconds": 4}
    pools = json.dumps({"default": pool})
    exports = (
        f"export PYTHONPATH={REPOSITORY} {' '.join(f'{name}={value:g}' for name, value in pace.items())}"
    )
    return {
        "available_node_types": types,
        "max_workers": 4,
        "idle_timeout_minutes": 0.1,
        "provider": document["provider"] | {"use_internal_ips": True},
        "file_mounts": mounted_secrets(folder),
        "initialization_commands": [],
        "setup_commands": [f"echo export PYTHONPATH={REPOSITORY} >> ~/.bashrc"],
        "head_start_ray_commands": [
            document["head_start_ray_commands"][0],
            f"{exports}; {head} --tasks {TASKS} --settings pools='{pools}'",
        ],
        "worker_start_ray_commands": [f"{exports}; {worker}"],
    }


def mounted_secrets(folder: Path) -> dict[str, str]:
    paths = {}
    for name, secret in ((".ray/auth_token", RAY_TOKEN), (".jobsvc/token", TOKEN)):
        path = folder / name.replace("/", "_")
        path.write_text(secret)
        path.chmod(0o600)
        paths[f"~/{name}"] = str(path)
    return paths
