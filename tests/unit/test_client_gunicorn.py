"""A web application behind gunicorn that was loaded, and used its client, before its workers were forked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from .local_service import LocalService

SECONDS = 60.0
APPLICATION = """
import os, jobsvc

client = jobsvc.Client(os.environ["SERVICE"])
client.map("jobsvc.echo", range(50), batch_jobs=10, progress=False).wait(30)  # its connections are open


def application(environ, start_response):
    value = environ["QUERY_STRING"]
    result = client.enqueue("jobsvc.echo", value).result(30)
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker", str(os.getpid()))])
    return [result.encode()]
"""


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService(data="memory") as started:
        yield started


@pytest.mark.parametrize(
    "worker", [["-k", "sync", "-w", "4"], ["-k", "gthread", "-w", "2", "--threads", "8"]]
)
def test_a_preloaded_application_gets_its_own_answers(
    worker: list[str], service: LocalService, tmp_path: Path
) -> None:
    # given gunicorn, which loaded the application once and forked
    (tmp_path / "web.py").write_text(APPLICATION)
    log_file = tmp_path / "log"
    command = [sys.executable, "-m", "gunicorn", "--preload", *worker, "-b", "127.0.0.1:0"]
    environment = {**os.environ, "SERVICE": service.url}
    with log_file.open("w") as log:
        gunicorn = subprocess.Popen(
            [*command, "--chdir", str(tmp_path), "web:application"], env=environment, stderr=log
        )
    try:
        url = _url(log_file, gunicorn)
        # when many ask it at the same time
        with ThreadPoolExecutor(8) as callers:
            answers = list(callers.map(lambda number: _asked(url, number), range(100)))
    finally:
        gunicorn.terminate()
        gunicorn.wait(SECONDS)
    # then each got the answer to its own question, from more than one process
    assert Counter(text == str(number) for number, (text, _) in enumerate(answers)) == {True: 100}
    assert len({pid for _, pid in answers}) > 1


def _asked(url: str, number: int) -> tuple[str, str]:
    answer = httpx.get(url, params=str(number), timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    return answer.text.removesuffix("="), answer.headers["X-Worker"]


def _url(log: Path, gunicorn: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and gunicorn.poll() is None:
        _, found, rest = log.read_text().partition("Listening at: ")
        if found and " " in rest:
            return rest.split()[0]
        time.sleep(0.02)
    pytest.fail(log.read_text())
