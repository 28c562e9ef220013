"""The shipped cluster file, filled in, on a machine where all that it names exists."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from jobsvc.cluster_file import ClusterFile, read_cluster_file

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "cluster.yaml"
REGION, BUCKET, KEY = "us-west-2", "jobs-of-a-test", "operator"
IMAGE, GROUP = "ami-0123456789abcdef0", "sg-0123456789abcdef0"
VALUES = {
    "FILL_IN_REGION": REGION,
    "FILL_IN_BUCKET": BUCKET,
    "FILL_IN_KEY": KEY,
    "FILL_IN_AMI": IMAGE,
    "FILL_IN_SECURITY_GROUP": GROUP,
}


def shipped_text() -> str:
    return SHIPPED.read_text()


def filled_text(**values: str) -> str:
    text = shipped_text()
    for placeholder, value in {**VALUES, **values}.items():
        text = text.replace(placeholder, value)
    return text


def filled_document() -> dict[str, Any]:
    """Nothing in it is shared: a change of one node type is a change of one."""
    document: dict[str, Any] = yaml.safe_load(filled_text())
    for entry in document["available_node_types"].values():
        entry["node_config"] = copy.deepcopy(entry["node_config"])
    return document


def cluster_of(document: dict[str, Any]) -> ClusterFile:
    return read_cluster_file(yaml.safe_dump(document), str(SHIPPED))


def make_secrets(home: Path) -> None:
    """What the file expects at home."""
    for name in (".ray/auth_token", ".jobsvc/token", f".ssh/{KEY}.pem"):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a" * 64)
        path.chmod(0o600)
