"""A cluster on the rig: brought up by `ray up` with the project's own file, seen as its users see it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from jobsvc.client import Client
from jobsvc.client_jobs import Job

from .cluster_file_under_test import TOKEN, Pace, write_cluster_file
from .rig import Rig
from .rig_services import Instance
from .waiting import wait_until

# Deadlines are for a machine that is busy with other tests; how long things took is told by the figures.
PORT = 8000
UP_SECONDS = 400.0
WHOLE_SECONDS = 400.0  # a lost machine is noticed, another is started and set up, a manager follows
LEADS_SECONDS = 120.0
WORKERS_SECONDS = 400.0
CLIENT_SECONDS = 400.0  # callers outlast everything that these tests do


class Cluster:
    """Used by threads on the operator's machine (`rig.inside()`)."""

    def __init__(
        self,
        rig: Rig,
        folder: Path,
        data: str,
        changes: dict[str, Any] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.rig = rig
        self.file = write_cluster_file(rig, folder, data=data, changes=changes, pace=pace)
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
            return httpx.get(f"http://{machine.ip}:{self.port}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def status(self) -> dict[str, Any] | None:
        """From whichever way in answers; None if none does."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for url in self.urls:
            try:
                answer = httpx.get(f"{url}/v1/status", headers=headers, timeout=5)
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

    def led_by_another(self, manager: str) -> float:
        """How long until another manager leads."""
        began = time.monotonic()
        wait_until(
            lambda: (leader := self.pair().get("leader")) is not None and leader["name"] != manager,
            "another leader",
            LEADS_SECONDS,
        )
        return time.monotonic() - began

    def lead_on(self, node_type: str) -> dict[str, dict[str, Any]]:
        """A pair whose leader is on this machine; the leader is killed where it is elsewhere."""
        pair = self.whole_pair()
        machine = self.machine_of(pair["leader"])
        if machine.node_type != node_type:
            self.rig.run_on(machine.id, f"kill -9 {pair['leader']['pid']}")
            self.led_by_another(pair["leader"]["name"])
            pair = self.whole_pair()
        assert self.machine_of(pair["leader"]).node_type == node_type
        return pair

    def worker(self, name: str) -> dict[str, Any] | None:
        """What the service says of a worker; None if it knows none of this name."""
        found = [each for each in (self.status() or {})["workers"] if each["name"] == name]
        return found[0] if found else None

    def wait_for_no_workers(self) -> None:
        wait_until(lambda: not self.workers(), "no machine for workers", WORKERS_SECONDS)

    def working(self) -> int:
        """Workers that have reported and are not about to leave."""
        document = self.status() or {}
        return sum(each["state"] in ("idle", "busy") for each in document.get("workers") or ())

    def long_job(self, seconds: float) -> tuple[Job, str, str]:
        """A job that runs now, its worker, and the machine on which that is."""
        nap = self.client.enqueue("test.nap", 1, seconds)
        wait_until(lambda: nap.state == "running", "a long job to run", WORKERS_SECONDS)
        name = nap.refresh()["worker"]
        worker = self.worker(name)
        assert worker is not None
        return nap, name, self.machine_of(worker).id


@contextlib.contextmanager
def cluster_on(
    rig: Rig, folder: Path, *, changes: dict[str, Any] | None = None, pace: Pace | None = None
) -> Iterator[Cluster]:
    """A cluster that is not up yet; this thread is on the operator's machine meanwhile."""
    with rig.inside():
        os.environ["JOBSVC_TOKEN"] = TOKEN
        yield Cluster(rig, folder, rig.make_bucket("jobs") + "/one", changes, pace)


@contextlib.contextmanager
def cluster_up(rig: Rig, folder: Path, *, pace: Pace | None = None) -> Iterator[Cluster]:
    """A whole cluster that has run a job."""
    with cluster_on(rig, folder, pace=pace) as cluster:
        cluster.up()
        job = cluster.client.enqueue("test.double", 21).id
        cluster.whole_pair()
        assert cluster.client.job(job).result(timeout=WORKERS_SECONDS) == 42
        yield cluster
