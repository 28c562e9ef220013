"""What the client's handles show in a notebook, and a set whose failures are put back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobsvc.client import Client
from jobsvc.client_tables import Rows, Status

from .local_service import LocalService

SECONDS = 20.0
FLAKY = """
from pathlib import Path
from jobsvc.errors import InvalidRequest

def needs(path):
    if not Path(path).exists():
        raise InvalidRequest("<b>it</b> is not there", "file")
    return Path(path).read_text()
"""


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService(data="memory", allow_code=True) as started:
        yield started


@pytest.fixture
def client(service: LocalService) -> Iterator[Client]:
    service.working = True
    with Client(service.url) as connected:
        yield connected


@pytest.fixture(scope="module")
def needs() -> Any:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(FLAKY, names)
    return names["needs"]


def test_a_set_goes_on_with_those_that_are_put_back(
    service: LocalService, client: Client, needs: Any, tmp_path: Path
) -> None:
    # given a set in which one job of three has failed
    here, missing, later = tmp_path / "here", tmp_path / "missing", tmp_path / "later"
    here.write_text("1")
    later.write_text("3")
    paths = [str(each) for each in (here, missing, later)]
    jobs = client.map(needs, paths, batch="flaky", max_attempts=1)
    assert jobs.wait(SECONDS) == {"succeeded": 2, "failed": 1}
    assert [job.id for job in jobs.failures()] == [jobs.ids[1]]
    # when what it lacked is there, and the failures are put back
    service.rest()
    missing.write_text("2")
    assert jobs.retry_failed() == 1
    # then the set waits for them again, also as it is found by the batch's name
    assert jobs.counts() == {"open": 1, "succeeded": 2}
    assert client.batch("flaky").counts() == {"open": 1, "succeeded": 2}
    service.working = True
    assert jobs.results(SECONDS) == ["1", "2", "3"]
    assert jobs.failures() == [] and jobs.retry_failed() == 0
    assert {job.id for job in jobs.as_completed(SECONDS)} == set(jobs.ids)


def test_failures_that_somebody_else_put_back_are_not_lost(
    client: Client, needs: Any, tmp_path: Path
) -> None:
    # given two sets of the same jobs, found by their batch
    file = tmp_path / "file"
    jobs = client.map(needs, [str(file)] * 3, batch="shared", max_attempts=1)
    jobs.wait(SECONDS)
    other = client.batch("shared")
    file.write_text("ok")
    # when both put back what has failed, one after the other
    assert other.retry_failed() == 3
    assert other.wait(SECONDS) == {"succeeded": 3}
    jobs.retry_failed()
    # then both know how it ended
    assert jobs.wait(SECONDS) == {"succeeded": 3}


def place_of(cursor: int | str) -> int:
    return int(str(cursor).partition(".")[0])


def test_an_end_that_the_feed_tells_late_is_not_taken_for_the_next_one(
    service: LocalService, client: Client, needs: Any, tmp_path: Path
) -> None:
    # given a set that knows of a failure by its document, before the feed has told it
    file = tmp_path / "late"
    jobs = client.map(needs, [str(file)], batch="late", max_attempts=1, progress=False)
    after = client.feed_end()
    jobs.wait(SECONDS)
    found = client.batch("late")
    found._ends.after = min(place_of(after), place_of(found._ends.after) - 1)
    # when it is put back
    service.rest()
    assert found.retry_failed() == 1
    # then the old end in the feed is not that of the new run
    assert found.counts() == {"open": 1}
    file.write_text("ok")
    service.working = True
    assert found.results(SECONDS) == ["ok"]


def test_what_a_notebook_shows_is_plain_html_and_escaped(client: Client, needs: Any, tmp_path: Path) -> None:
    jobs = client.map(needs, [str(tmp_path / "no")], max_attempts=1, queue="shown")
    jobs.wait(SECONDS)
    shown = {
        "client": client._repr_html_(),
        "status": client.status()._repr_html_(),
        "queues": client.queues()._repr_html_(),
        "workers": client.workers()._repr_html_(),
        "tasks": client.tasks()._repr_html_(),
        "set": jobs._repr_html_(),
        "failures": jobs.failures()._repr_html_(),
        "job": jobs.failures()[0]._repr_html_(),
    }
    for name, text in shown.items():
        assert text.startswith("<table>") and "<script" not in text, name
        assert len(text) < 20_000, name
    assert client.urls[0] in shown["client"] and "/docs" in shown["client"]
    assert "leader, epoch 1" in shown["status"] and "as of" in shown["status"]
    assert "shown" in shown["queues"] and "failed 1" in shown["queues"]
    for name in ("failures", "job"):
        assert "InvalidRequest" in shown[name], name
        assert "&lt;b&gt;it&lt;/b&gt;" in shown[name] and "<b>" not in shown[name], name


def test_a_long_table_says_how_much_it_leaves_out() -> None:
    text = Rows(({"n": number, "none": None, "yes": True} for number in range(120)), ("n", "none", "yes"))
    html = text._repr_html_()
    assert html.count("<tr>") == 51 and "70 more" in html
    assert "<td>49</td><td>-</td><td>yes</td>" in html


def test_the_status_is_still_a_document() -> None:
    status = Status(
        ready=False, problem="nobody leads", managers=[], commits={"age_seconds": None}, counts={}
    )
    status.update(pools=None, workers=None)
    assert status["ready"] is False
    assert "not ready: nobody leads" in status._repr_html_()
