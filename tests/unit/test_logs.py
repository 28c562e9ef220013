"""Logs are JSON lines that name the job and the attempt."""

from __future__ import annotations

import io
import logging
import random
import sys
from typing import Any

import msgspec
import pytest

from jobsvc import attempts
from jobsvc.jobs import ErrorInfo, Finished, Outcome, id_text
from jobsvc.logs import JsonLines
from jobsvc.object_store import MemoryObjectStore
from jobsvc.worker_objects import WorkerObjects


@pytest.fixture
def lines() -> Any:
    """What the package logs while a test runs, decoded."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonLines({"worker": "worker-a"}))
    logger = logging.getLogger("jobsvc")
    logger.addHandler(handler)
    yield lambda: [msgspec.json.decode(line) for line in text.getvalue().splitlines()]
    logger.removeHandler(handler)


def test_an_attempt_that_ends_badly_is_a_line_with_its_job(lines: Any) -> None:
    # given a worker's reports
    reports = attempts.UnsettledReports("worker-a", "s", WorkerObjects(MemoryObjectStore(), random.Random(1)))
    # when one attempt fails and one succeeds
    error = ErrorInfo("ValueError", "no luck")
    reports.add(Finished(b"a" * 16, 3, Outcome.RAISED, 1.0, 2.0, error=error), 0.0, 0.0)
    reports.add(Finished(b"b" * 16, 1, Outcome.SUCCEEDED, 1.0, 2.0), 0.0, 0.0)
    # then there is one line, and it names the job, the attempt and the process
    (line,) = lines()
    assert line["job_id"] == id_text(b"a" * 16)
    assert line["attempt"] == 3
    assert line["worker"] == "worker-a"
    assert line["level"] == "warning"
    assert "ValueError: no luck" in line["message"]


def test_a_traceback_is_one_field(lines: Any) -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        logging.getLogger("jobsvc.test").error("failed", exc_info=sys.exc_info())
    (line,) = lines()
    assert "RuntimeError" in line["traceback"]
    assert line["time"].endswith("Z")
