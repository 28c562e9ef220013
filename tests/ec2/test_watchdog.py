"""The watchdog of a node, on a machine of its own: notices of EC2, and a head that is not there."""

from __future__ import annotations

import json
import sys

from tests.s3_server import REPOSITORY

from .rig import Rig
from .waiting import wait_until

NOBODY = "172.31.255.77:6379"


def start_watchdog(rig: Rig, instance: str, no_head_seconds: float) -> None:
    """As `jobsvc node worker` does it, on a node whose head is nowhere."""
    rig.run_on(instance, f"mkdir -p /run/jobsvc && echo {NOBODY} > /run/jobsvc/head", user="root")
    settings = f"--setenv=PYTHONPATH={REPOSITORY} --setenv=JOBSVC_NO_HEAD_SECONDS={no_head_seconds:g}"
    rig.run_on(
        instance,
        f"systemd-run --unit=watchdog {settings} -- {sys.executable} -m jobsvc.node_watchdog",
        user="root",
    )


def drain_notice(rig: Rig, instance: str) -> dict[str, object] | None:
    said = rig.run_on(instance, "cat /run/jobsvc/drain.json", check=False)
    return json.loads(said) if said else None


def test_a_machine_without_a_head_ends_itself(rig: Rig) -> None:
    # given a machine that was told of a head that does not answer
    [instance] = rig.launch()
    start_watchdog(rig, instance, no_head_seconds=6)
    # then it shuts down after its patience, and EC2 says terminated
    wait_until(lambda: rig.instance(instance).state == "terminated", "the machine's end", 120)


def test_notices_of_ec2_are_told_to_the_workers_of_the_machine(rig: Rig) -> None:
    # given a spot machine
    [instance] = rig.launch(InstanceMarketOptions={"MarketType": "spot"})
    start_watchdog(rig, instance, no_head_seconds=600)
    assert drain_notice(rig, instance) is None
    # when EC2 thinks that it may take it back, workers have minutes; when it says so, they have what it says
    rig.rebalance_notice(instance)
    first = wait_until(lambda: drain_notice(rig, instance), "a drain notice")
    rig.spot_notice(instance, seconds=40)
    wait_until(
        lambda: (second := drain_notice(rig, instance)) and second["deadline"] < first["deadline"] - 60,
        "a shorter deadline",
    )
