"""`jobsvc doctor --cluster`: what is wrong with a cluster file, before a machine is paid for."""

from __future__ import annotations

import time
from collections.abc import Callable

from .cluster_aws_checks import Clients, boto3_clients, examine_aws
from .cluster_file import ClusterFile, load_cluster_file
from .cluster_file_checks import CHECKS
from .doctor import Finding
from .errors import InvalidRequest

COMPLAINTS_SHOWN = 3


def examine_cluster(path: str) -> list[Finding]:
    """Every check: of the file alone first, then with AWS as far as it answers."""
    try:
        cluster = load_cluster_file(path)
    except (InvalidRequest, OSError) as error:
        return [Finding("cluster file", False, str(error))]
    return [*examine_file(cluster), *_with_aws(cluster, boto3_clients, time.time)]


def examine_file(cluster: ClusterFile) -> list[Finding]:
    findings = []
    for name, (check, good) in CHECKS.items():
        try:
            complaints = list(check(cluster))
        except (
            TypeError,
            ValueError,
            AttributeError,
            KeyError,
        ) as error:  # text where EC2 wants a list, and the like
            complaints = [f"cannot be read: {error}"]
        findings.append(Finding(name, not complaints, _joined(complaints) or good))
    return findings


def _with_aws(
    cluster: ClusterFile, clients: Callable[[ClusterFile], Clients], now: Callable[[], float]
) -> list[Finding]:
    from botocore.exceptions import BotoCoreError

    try:
        return examine_aws(cluster, clients(cluster), now)
    except (BotoCoreError, ValueError) as error:  # a region or an address that boto3 cannot use
        return [Finding("AWS", True, f"not checked: {error}")]


def _joined(complaints: list[str]) -> str:
    more = len(complaints) - COMPLAINTS_SHOWN
    shown = complaints[:COMPLAINTS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
    return "; ".join(shown)
