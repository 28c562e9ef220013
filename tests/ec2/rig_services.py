"""The AWS of a rig: EC2, IAM and STS by moto behind `rig_aws`, S3 by ministack, at an address each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.s3_server import REPOSITORY, end_process

from .rig_net import Network, inside

START_SECONDS = 60.0
EC2_PORT, S3_PORT = 80, 80


@dataclass(frozen=True)
class Instance:
    """What EC2 says of an instance."""

    id: str
    ip: str
    type: str
    state: str
    tags: dict[str, str]
    spot: bool
    zone: str
    shutdown: str
    profile: str
    tags_in_metadata: bool
    reboots: int

    @property
    def is_alive(self) -> bool:
        return self.state in ("pending", "running")

    @property
    def kind(self) -> str:
        """`head` or `worker`, as Ray tags them."""
        return self.tags.get("ray-node-type", "")

    @property
    def node_type(self) -> str:
        return self.tags.get("ray-user-node-type", "")


class Services:
    def __init__(self, network: Network, ec2_ip: str, s3_ip: str, region: str, logs: Path) -> None:
        self._network, self._region, self._logs = network, region, logs
        self._ec2_ip, self._s3_ip = ec2_ip, s3_ip
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ec2_url, self.s3_url = f"http://{ec2_ip}:{EC2_PORT}", f"http://{s3_ip}:{S3_PORT}"

    def start(self) -> None:
        python = (sys.executable, "-m")
        where = ("--host", self._ec2_ip, "--port", str(EC2_PORT), "--region", self._region)
        # Ray attaches Amazon's own policies by name.
        policies = {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
        self._start("ec2", (*python, "tests.ec2.rig_aws", *where), policies)
        listen = {"BIND_HOST": self._s3_ip, "GATEWAY_PORT": str(S3_PORT)}
        self._start("s3", (*python, "ministack"), {**listen, "SERVICES": "s3", "LOG_LEVEL": "WARNING"})

    def wait_until_they_answer(self) -> None:
        for url in (f"{self.ec2_url}/rig/instances", f"{self.s3_url}/_ministack/health"):
            self._wait(url)

    def ask(self, what: str, said: dict[str, Any] | None = None) -> Any:
        """The desk of `rig_aws`, from whatever thread."""
        data = None if said is None else json.dumps(said).encode()
        with inside(self._network.namespace("operator")):
            request = urllib.request.Request(f"{self.ec2_url}/rig/{what}", data=data)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

    def instances(self) -> list[Instance]:
        return [Instance(**each) for each in self.ask("instances")]

    def close(self) -> None:
        for process in self._processes:
            end_process(process)

    def _start(self, machine: str, command: tuple[str, ...], environment: dict[str, str]) -> None:
        with inside(self._network.namespace(machine)), open(self._logs / f"{machine}.log", "wb") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)},
                    cwd=self._logs,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _wait(self, url: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with inside(self._network.namespace("operator")):
                    urllib.request.urlopen(url, timeout=2).close()
                return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline or any(each.poll() is not None for each in self._processes):
                    raise RuntimeError(f"{url} does not answer ({error}); see {self._logs}") from None
            time.sleep(0.05)
