"""What the page asks of the API: its files, the one stream, history, failures, actions on all that match."""

from __future__ import annotations

import asyncio
import gzip
import re
from typing import Any

import pytest

from jobsvc import http_bulk, http_page
from jobsvc.jobs import ErrorInfo, id_bytes

from .http_world import Replica, Stream, run
from .manager_world import until

PROBLEM = "application/problem+json"


async def post(replica: Replica, action: str, **fields: Any) -> Any:
    answer = await replica.http.post(f"/v1/jobs:{action}", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- files ----------------------------------------------------------------------------------------


def test_the_page_is_files_that_load_nothing_from_elsewhere() -> None:
    assets = http_page.read_assets()
    assert {"index.html", "app.js", "page.css", "preact.mjs"} <= assets.keys()
    index = assets["index.html"].data.decode()
    assert "<script>" not in index and " style=" not in index and "onload" not in index
    for name, asset in assets.items():
        text = asset.data.decode()
        # the one address in it is a namespace of SVG
        addresses = set(re.findall(r"https?://[\w./-]+", text)) - {"http://www.w3.org/2000/svg"}
        if name == "preact.mjs":
            addresses -= {each for each in addresses if each.startswith("http://www.w3.org/")}
        assert addresses <= {"https?://"}, name
        if name != "preact.mjs":
            assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
        for imported in re.findall(r'from "\./([\w.]+)"', text):
            assert imported in assets, f"{name} imports {imported}"
    assert sum(len(asset.packed) for asset in assets.values()) < 60_000


def test_files_come_packed_with_a_policy_and_are_not_sent_twice() -> None:
    async def story(replica: Replica) -> None:
        page = await replica.http.get("/", headers={"accept-encoding": "identity"})
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert "unsafe" not in page.headers["content-security-policy"]
        again = await replica.http.get("/", headers={"if-none-match": page.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
        script = await replica.http.get("/web/app.js", headers={"accept-encoding": "gzip"})
        assert script.headers["content-encoding"] == "gzip"
        assert script.content == http_page.read_assets()["app.js"].data
        assert gzip.decompress(http_page.read_assets()["app.js"].packed) == script.content
        for name in ("nope.js", "preact.LICENSE", "..%2fcli.py", "%2e%2e/cli.py"):
            missing = await replica.http.get(f"/web/{name}")
            assert missing.status_code == 404, name
            assert missing.headers["content-type"] == PROBLEM

    run(story)


# --- one stream -----------------------------------------------------------------------------------


def test_a_summary_comes_at_once_and_each_second() -> None:
    async def story(replica: Replica) -> None:
        loop = asyncio.get_running_loop()
        await replica.enqueue(queue="images")
        stream = Stream(replica.app, "/v1/events")
        began = loop.time()
        [(_, name, first)] = await stream.take(1)
        assert (name, loop.time() - began) == ("summary", 0.0)
        assert first["ready"] and first["leader"] == "manager-a" and first["counts"]["queued"] == 1
        assert first["oldest_queue"] == "images"
        await replica.run_all()
        later = await stream.take(3)
        assert later[-1][2]["counts"]["succeeded"] == 1 and later[-1][2]["counts"]["queued"] == 0
        assert later[-1][2]["changed"] != first["changed"]
        assert 2.0 <= loop.time() - began <= 4.0
        await stream.hang_up()

    run(story)


def test_a_stream_says_that_nobody_leads_and_then_who_does() -> None:
    async def story(replica: Replica) -> None:
        replica.pair.start("manager-b")
        await asyncio.sleep(3.0)
        stream = Stream(replica.app, "/v1/events")
        await stream.take(1)
        replica.pair.kill("manager-a")
        told = []
        while not told or not told[-1]["ready"]:
            [(_, _, summary)] = await stream.take(1)
            told.append(summary)
            assert len(told) < 100
        assert told[-1]["leader"] == "manager-b" and told[-1]["epoch"] == 2
        assert any(not summary["ready"] and summary["problem"] for summary in told)
        await stream.hang_up()

    run(story)


def test_while_no_manager_knows_the_counts_they_are_not_told_as_nothing() -> None:
    async def story(replica: Replica) -> None:
        await replica.enqueue()
        replica.pair.kill("manager-a")
        summary = (await replica.http.get("/v1/events")).json()
        assert (summary["ready"], summary["counts"], summary["problem"]) == (False, None, "no manager leads")
        manager = replica.pair.start("manager-b")
        assert manager.role == "recovering"
        assert (await replica.http.get("/v1/events")).json()["counts"] is None
        await until(lambda: manager.role == "leader")
        assert (await replica.http.get("/v1/events")).json()["counts"]["queued"] == 1

    run(story)


def test_looking_at_an_idle_service_writes_nothing() -> None:
    async def story(replica: Replica) -> None:
        await replica.enqueue()
        stream = Stream(replica.app, "/v1/events")
        await stream.take(2)
        records = replica.leader.leader.commits.mark.records
        told = [summary for _, _, summary in await stream.take(20)]
        idle = 20 / replica.pair.settings.idle_record_seconds
        assert replica.leader.leader.commits.mark.records - records <= idle + 1
        assert len({summary["changed"] for summary in told}) == 1 and told[-1]["records"] > told[0]["records"]
        await replica.run_all()
        assert (await stream.take(2))[-1][2]["changed"] != told[0]["changed"]
        await stream.hang_up()

    run(story)


def test_many_who_look_cost_as_much_as_one() -> None:
    async def story(replica: Replica) -> None:
        streams = [Stream(replica.app, "/v1/events") for _ in range(20)]
        for stream in streams:
            await stream.take(1)
        asked = 0
        statuses = replica.managers.statuses

        async def counting() -> Any:
            nonlocal asked
            asked += 1
            return await statuses()

        replica.managers.statuses = counting  # type: ignore[method-assign]
        for stream in streams:
            await stream.take(3)
        assert asked <= 6
        for stream in streams:
            await stream.hang_up()
        await asyncio.sleep(2.0)
        asked = 0
        await asyncio.sleep(30.0)
        assert asked == 0, "nobody looks"

    run(story)


def test_one_summary_as_json_for_who_cannot_stream() -> None:
    async def story(replica: Replica) -> None:
        answer = await replica.http.get("/v1/events")
        assert answer.json()["service"] == "jobsvc"

    run(story)


def test_the_history_follows_the_state() -> None:
    async def story(replica: Replica) -> None:
        for _ in range(3):
            await replica.enqueue()
            await asyncio.sleep(10.0)
        history = (await replica.http.get("/v1/history?seconds=600")).json()
        queued = [point[history["columns"].index("queued")] for point in history["points"]]
        assert queued == sorted(queued) and queued[-1] == 3
        assert history["step_seconds"] == 5.0
        bad = await replica.http.get("/v1/history?seconds=x")
        assert bad.status_code == 400 and bad.json()["field"] == "seconds"

    run(story)


# --- failures, and many at once -------------------------------------------------------------------


def test_failures_are_grouped_and_a_group_can_be_listed_and_retried() -> None:
    async def story(replica: Replica) -> None:
        for kind in ("ValueError", "ValueError", "KeyError"):
            await replica.enqueue(max_attempts=1)
            [grant] = await replica.take()
            await replica.fail(grant, ErrorInfo(kind, "text", f'File "a.py", line 1, in f\n{kind}'))
        failures = (await replica.http.get("/v1/failures")).json()
        assert [(group["type"], group["count"]) for group in failures["groups"]] == [
            ("ValueError", 2),
            ("KeyError", 1),
        ]
        assert failures["jobs"] == 3 and failures["groups_total"] == 2
        name = failures["groups"][0]["fingerprint"]
        listed = (await replica.http.get(f"/v1/jobs?failure={name}")).json()
        assert len(listed["jobs"]) == 2 and listed["cursor"] is None
        counted = await post(replica, "retry", failure=name, dry_run=True)
        assert (counted["count"], counted["dry_run"]) == (2, True)
        done = await post(replica, "retry", failure=name, cursor=counted["top"])
        assert (done["count"], done["cursor"]) == (2, None)
        assert (await replica.http.get("/v1/failures")).json()["jobs"] == 1

    run(story)


def test_all_that_match_are_cancelled_and_what_came_after_the_count_is_not() -> None:
    async def story(replica: Replica) -> None:
        for queue in ("a", "a", "b"):
            await replica.enqueue(queue=queue)
        counted = await post(replica, "cancel", queue="a", dry_run=True)
        late = await replica.enqueue(queue="a")
        assert counted["count"] == 2 and len(counted["ids"]) == 2
        done = await post(replica, "cancel", queue="a", cursor=counted["top"])
        assert (done["count"], sorted(done["ids"])) == (2, sorted(counted["ids"]))
        assert replica.leader.state.jobs[id_bytes(late)].state.value == "queued"
        assert (await post(replica, "cancel", queue="a"))["count"] == 1

    run(story)


def test_a_long_work_is_done_in_slices_that_go_on_with_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bulk, "WORK_SECONDS", -1.0)  # each request does one slice
    monkeypatch.setattr(http_bulk, "SLICE_JOBS", 2)

    async def story(replica: Replica) -> None:
        for _ in range(5):
            await replica.enqueue(queue="a")
        counts, cursor = [], None
        while True:
            fields = {} if cursor is None else {"cursor": cursor}
            done = await post(replica, "cancel", queue="a", **fields)
            counts.append(done["count"])
            cursor = done["cursor"]
            if cursor is None:
                break
        assert counts == [2, 2, 1]

    run(story)


def test_the_same_request_under_one_key_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bulk, "SLICE_JOBS", 2)

    async def story(replica: Replica) -> None:
        for _ in range(3):
            await replica.enqueue(queue="a")
        headers = {"Idempotency-Key": "k"}
        first = await replica.http.post("/v1/jobs:cancel", json={"queue": "a"}, headers=headers)
        await replica.enqueue(queue="a")
        again = await replica.http.post("/v1/jobs:cancel", json={"queue": "a"}, headers=headers)
        assert first.json() == again.json() and first.json()["count"] == 3
        other = await replica.http.post("/v1/jobs:cancel", json={"queue": "b"}, headers=headers)
        assert other.status_code == 409

    run(story)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"dry_run": True}, 400),
        ({"state": "gone"}, 400),
        ({"queue": ""}, 400),
        ({"queue": "a", "cursor": "-1"}, 400),
        ({"queue": "a", "everything": True}, 400),
        ([], 400),
    ],
)
def test_a_request_must_say_which_jobs(body: Any, status: int) -> None:
    async def story(replica: Replica) -> None:
        await replica.enqueue(queue="a")
        for action in ("cancel", "retry"):
            answer = await replica.http.post(f"/v1/jobs:{action}", json=body)
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == PROBLEM
        assert (await replica.http.get("/v1/jobs?state=queued")).json()["jobs"]

    run(story)
