"""The completion feed over HTTP: whoever has missed something is told, as a page and as a stream."""

from __future__ import annotations

import asyncio

import pytest

from .http_world import Replica, Stream, run, until
from .test_http_api import is_problem

OTHER = "0123456789ab"


async def three_gone_between_two(replica: Replica) -> str:
    """Places 1 to 5, of which 2 to 4 were retired. Returns the store's part of a cursor."""
    await replica.enqueue()
    await replica.run_all()
    for _ in range(3):
        await replica.enqueue(retention_seconds=1)
    await replica.run_all()
    await until(lambda: replica.jobs == 1)
    await replica.enqueue()
    await replica.run_all()
    page = (await replica.http.get("/v1/completions")).json()
    place, _, store = page["cursor"].partition(".")
    assert place == "5" and len(store) == 12
    return str(store)


def test_a_reader_that_passes_retired_jobs_in_the_middle_is_told() -> None:
    async def story(replica: Replica) -> None:
        store = await three_gone_between_two(replica)
        for after in ("1", f"1.{store}", "2", "3"):
            page = (await replica.http.get(f"/v1/completions?after={after}")).json()
            begin = int(after[0]) + 1
            assert [entry["seq"] for entry in page["entries"]] == [5]
            assert (page["truncated"], page["holes"], page["reset"]) == (True, [[begin, 4]], None)
            assert (page["next"], page["oldest"], page["newest"]) == (5, 1, 5)
        # and whoever does not pass them is not
        page = (await replica.http.get("/v1/completions?after=4")).json()
        assert (page["truncated"], page["holes"], page["cursor"]) == (False, [], f"5.{store}")
        page = (await replica.http.get("/v1/completions?after=0&limit=1")).json()
        assert (page["truncated"], page["next"]) == (False, 1)
        # a long poll does not wait where there is something to tell
        page = (await replica.http.get("/v1/completions?after=1&wait=30&limit=1")).json()
        assert page["truncated"] and page["next"] == 5

    run(story)


def test_a_stream_tells_the_hole_at_its_place() -> None:
    async def story(replica: Replica) -> None:
        store = await three_gone_between_two(replica)
        stream = Stream(replica.app, "/v1/completions", last_event_id=f"0.{store}")
        opened, first, reset, second = await stream.take(4)
        assert [each[:2] for each in (opened, first, reset, second)] == [
            (f"0.{store}", "open"),
            (f"1.{store}", "completion"),
            (f"4.{store}", "reset"),
            (f"5.{store}", "completion"),
        ]
        assert reset[2] == {"oldest": 1, "reason": "retired", "first": 2, "last": 4}
        await stream.hang_up()
        # also when it is retired while the reader is away, at the place that it had
        again = Stream(replica.app, "/v1/completions", last_event_id=f"3.{store}")
        assert [name for _, name, _ in await again.take(3)] == ["open", "reset", "completion"]
        await again.hang_up()

    run(story)


def test_a_stream_that_is_connected_passes_no_hole_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(replica: Replica) -> None:
        # given a stream that reads nothing for a while, because nobody leads
        await replica.enqueue()
        await replica.run_all()
        stream = Stream(replica.app, "/v1/completions")
        await stream.take(2)
        send = replica.managers.wait_feed
        cut = asyncio.Event()

        async def held_up(*arguments: object) -> object:
            await cut.wait()
            return await send(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(replica.managers, "wait_feed", held_up)
        await asyncio.sleep(15.0)
        # when jobs end and are retired meanwhile
        await replica.enqueue(retention_seconds=1)
        await replica.run_all()
        await until(lambda: replica.jobs == 1)
        cut.set()
        # then it is told
        [(_, name, data)] = await stream.take(1)
        assert name == "reset" and (data["first"], data["last"]) == (2, 2)
        await stream.hang_up()

    run(story)


def test_who_waits_for_a_job_that_is_retired_meanwhile_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(replica: Replica) -> None:
        # given a caller who waits, while the replica cannot read the feed
        job_id = await replica.enqueue(retention_seconds=1)
        may_read = asyncio.Event()
        send = replica.managers.wait_feed

        async def held_up(*arguments: object) -> object:
            await may_read.wait()
            return await send(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(replica.managers, "wait_feed", held_up)
        loop = asyncio.get_running_loop()
        caller = loop.create_task(replica.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=60"}))
        await asyncio.sleep(1.0)
        # when the job ends and is retired, and another one ends
        await replica.run_all()
        await until(lambda: replica.jobs == 0)
        await replica.enqueue()
        await replica.run_all()
        began = loop.time()
        may_read.set()
        # then the caller is told, and does not wait on
        is_problem(await caller, 410, "expired_job", "id")
        assert loop.time() - began < 1.0

    run(story)


@pytest.mark.parametrize("after", ["50", "5000", f"2.{OTHER}", f"0.{OTHER}", f"50.{OTHER}"])
def test_a_place_that_is_none_of_this_feed_is_told_and_the_page_begins_at_the_beginning(after: str) -> None:
    async def story(replica: Replica) -> None:
        reset = "other_store" if OTHER in after else "ahead"
        # given a service where nothing has ended yet
        page = (await replica.http.get(f"/v1/completions?after={after}&wait=30")).json()
        assert (page["truncated"], page["reset"], page["next"], page["newest"]) == (True, reset, 0, 0)
        # and one where two jobs have
        for _ in range(2):
            await replica.enqueue()
        await replica.run_all()
        for more in ("", "&wait=30", "&limit=1"):
            page = (await replica.http.get(f"/v1/completions?after={after}{more}")).json()
            count = 1 if "limit" in more else 2
            assert [entry["seq"] for entry in page["entries"]] == [1, 2][:count]
            assert (page["truncated"], page["reset"], page["next"]) == (True, reset, count)
        # then whoever goes on from there is told no more of it
        page = (await replica.http.get(f"/v1/completions?after={page['cursor']}")).json()
        assert ([entry["seq"] for entry in page["entries"]], page["truncated"]) == ([2], False)

    run(story)


@pytest.mark.parametrize("last", ["50", f"1.{OTHER}"])
def test_a_stream_from_a_place_that_is_none_of_this_feed_is_reset(last: str) -> None:
    async def story(replica: Replica) -> None:
        stream = Stream(replica.app, "/v1/completions", last_event_id=last)
        [opened, reset] = await stream.take(2)
        assert (opened[1], reset[1]) == ("open", "reset")
        assert reset[2]["reason"] == ("other_store" if OTHER in last else "ahead")
        # and then it hears of everything from the beginning
        for _ in range(2):
            await replica.enqueue()
        await replica.run_all()
        assert [(name, data["seq"]) for _, name, data in await stream.take(2)] == [
            ("completion", 1),
            ("completion", 2),
        ]
        await stream.hang_up()

    run(story)


def test_what_is_no_cursor_is_refused() -> None:
    async def story(replica: Replica) -> None:
        bad = ("", "x", "1.", ".", "-2", "+1", " 1", "1.xyz", "1.0123456789a", "1.0123456789abc", "1e3",
               "9" * 19, "٣")  # fmt: skip
        for after in bad:
            is_problem(
                await replica.http.get("/v1/completions", params={"after": after}), 400, "invalid", "after"
            )

    run(story)
