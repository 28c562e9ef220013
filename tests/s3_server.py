"""A real S3 server for tests: ministack as a process of its own, on a free port of this machine.

    with running_s3() as s3:
        store = open_store(s3.settings("some/prefix"))

Each prefix is a world of its own, so one server serves a whole test run. The credentials are put into
the environment for as long as the server runs, since that is where boto3 and child processes look.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobsvc.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent  # where `python -m tests.…` works
BUCKET = "jobsvc-tests"
START_SECONDS = 40.0
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "testtest",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class S3Server:
    endpoint_url: str
    bucket: str = BUCKET
    pid: int | None = None  # None: somebody else's server

    def settings(self, prefix: str, **others: Any) -> Settings:
        return Settings(
            data=f"s3://{self.bucket}/{prefix}", **{"s3_endpoint_url": self.endpoint_url, **others}
        )

    def client(self) -> Any:
        """A plain boto3 client, for what a store cannot do: bucket rules, wrong objects."""
        import boto3
        from botocore.config import Config

        config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
        return boto3.session.Session().client(
            "s3", endpoint_url=self.endpoint_url, region_name="us-east-1", config=config
        )

    def make_bucket(self) -> None:
        client = self.client()
        try:
            client.create_bucket(Bucket=self.bucket)
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass


@contextlib.contextmanager
def running_s3() -> Iterator[S3Server]:
    """Start ministack, wait until it answers, make the bucket; end it by its pid afterwards."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="s3-server-") as folder, s3_credentials():
        log_path = os.path.join(folder, "log")
        with open(log_path, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ministack"],
                env={
                    **os.environ,
                    "BIND_HOST": "127.0.0.1",
                    "GATEWAY_PORT": str(port),
                    "SERVICES": "s3",
                    "LOG_LEVEL": "WARNING",
                },
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            server = S3Server(f"http://127.0.0.1:{port}", pid=process.pid)
            _wait_until_it_answers(server.endpoint_url, process, log_path)
            server.make_bucket()
            yield server
        finally:
            end_process(process)


@contextlib.contextmanager
def s3_credentials() -> Iterator[None]:
    """Test credentials in the environment, and the old environment back afterwards."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end_process(process: subprocess.Popen[Any], grace_seconds: float = 5.0) -> None:
    process.terminate()
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log_path: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/_ministack/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = Path(log_path).read_text(errors="replace")[-2000:]
                raise RuntimeError(f"ministack {'ended' if ended else 'does not answer'}: {log}") from None
            time.sleep(0.05)
