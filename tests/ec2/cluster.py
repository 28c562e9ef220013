"""A cluster on the rig: brought up by `ray up` with the project's own file, seen as its users see it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx

from jobsvc.client import Client
from tests.cluster.conftest import wait_until

from .cluster_file_under_test import TOKEN, write_cluster_file
from .rig import Rig
from .rig_services import Instance

PORT = 8000
UP_SECONDS = 240.0
WHOLE_SECONDS = 240.0  # a lost machine is noticed, another is started and set up, a manager follows
CLIENT_SECONDS = 300.0  # callers outlast everything that these tests do


class Cluster:
    """Used by threads on the operator's machine (`rig.inside()`)."""

    def __init__(self, rig: Rig, folder: Path, data: str, changes: dict[str, Any] | None = None) -> None:
        self.rig = rig
        self.file = write_cluster_file(rig, folder, data=data, changes=changes)
        self.port = PORT
        self.data = data
        self._client: Client | None = None

    # --- what an operator does ---

    def up(self) -> str:
        """`ray up`, which ends with a service that answers. Returns what it said."""
        said = self.rig.operator(["ray", "up", "-y", "--no-config-cache", str(self.file)], timeout=UP_SECONDS)
        self.forget_addresses()
        assert self.is_ready(self.head), "ray up has ended, and the service does not answer"
        return said.stdout

    def jobsvc(self, *words: str, check: bool = True, timeout: float = 240.0) -> str:
        command = ["env", f"JOBSVC_TOKEN={TOKEN}", "jobsvc", *words]
        return self.rig.operator(command, check=check, timeout=timeout).stdout

    # --- where it is ---

    @property
    def head(self) -> Instance:
        [head] = self.rig.instances(kind="head")
        return head

    @property
    def manager_node(self) -> Instance:
        [node] = self.rig.instances(node_type="manager")
        return node

    def workers(self) -> list[Instance]:
        """Machines for workers that EC2 says are alive."""
        return [each for each in self.rig.instances() if each.node_type.startswith("worker")]

    @property
    def urls(self) -> list[str]:
        """The two ways in, as they are now."""
        machines = [*self.rig.instances(kind="head"), *self.rig.instances(node_type="manager")]
        return [f"http://{each.ip}:{self.port}" for each in machines]

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.urls, TOKEN, deadline_seconds=CLIENT_SECONDS)
        return self._client

    def forget_addresses(self) -> None:
        """Machines have changed: the next client asks the new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # --- how it is ---

    def is_ready(self, machine: Instance) -> bool:
        try:
            return httpx.get(f"http://{machine.ip}:{self.port}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def status(self) -> dict[str, Any] | None:
        """From whichever way in answers; None if none does."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for url in self.urls:
            try:
                answer = httpx.get(f"{url}/v1/status", headers=headers, timeout=3)
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                document: dict[str, Any] = answer.json()
                return document
        return None

    def pair(self) -> dict[str, dict[str, Any]]:
        """role -> manager."""
        document = self.status()
        return {} if document is None else {each["role"]: each for each in document["managers"]}

    def whole_pair(self, seconds: float = WHOLE_SECONDS) -> dict[str, dict[str, Any]]:
        """Wait for a leader and a standby on two machines, and for both ways in."""

        def whole() -> dict[str, dict[str, Any]] | None:
            managers = self.rig.instances(node_type="manager")
            heads = self.rig.instances(kind="head")  # none while a guard brings another
            machines = [*managers, *heads]
            if (len(managers), len(heads)) != (1, 1) or not all(map(self.is_ready, machines)):
                return None
            pair = self.pair()
            there = pair.keys() >= {"leader", "standby"}
            return pair if there and pair["leader"]["node"] != pair["standby"]["node"] else None

        found: dict[str, dict[str, Any]] = wait_until(whole, "a pair on two machines, both ways in", seconds)
        self.forget_addresses()
        return found

    def machine_of(self, process: dict[str, Any]) -> Instance:
        """Where a manager or a worker runs: the machine whose raylet has its node's id."""
        for machine in self.rig.instances():
            said = self.rig.run_on(machine.id, "pgrep -a raylet", check=False, user="root")
            if process["node"] in said:
                return machine
        raise AssertionError(f"{process['name']} runs on no machine")

    def worker(self, name: str) -> dict[str, Any] | None:
        """What the service says of a worker; None if it knows none of this name."""
        found = [each for each in (self.status() or {})["workers"] if each["name"] == name]
        return found[0] if found else None

    def wait_for_workers(self, count: int, seconds: float = 180.0) -> float:
        """Until so many machines work; returns how long that took."""
        began = time.monotonic()

        wait_until(
            lambda: len(self.workers()) >= count and self.working() >= count,
            f"{count} machines that work",
            seconds,
        )
        return time.monotonic() - began

    def working(self) -> int:
        """Workers that have reported and are not about to leave."""
        document = self.status() or {}
        return sum(each["state"] in ("idle", "busy") for each in document.get("workers") or ())


def token_in_environment() -> None:
    os.environ["JOBSVC_TOKEN"] = TOKEN
