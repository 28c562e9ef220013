"""The completion feed through the client and the command line: whoever has missed something is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from jobsvc import Client, CompletionsLost, Refused
from jobsvc.client_feed import FeedItem, FeedPage, read_on

from .local_service import LocalService

SECONDS = 30.0


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    with LocalService() as service:
        yield service


@pytest.fixture(scope="module")
def client(service: LocalService) -> Iterator[Client]:
    with Client(service.url) as client:
        yield client


@pytest.fixture(scope="module")
def forgotten(service: LocalService, client: Client) -> Any:
    """A job that stays, and a set of five whose retention was a second; nobody looked at it until now."""
    client.enqueue("jobsvc.echo", 0).wait(SECONDS)
    jobs = client.map("jobsvc.echo", range(5), retention_seconds=1, progress=False)
    last = client.enqueue("jobsvc.echo", 9)
    last.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while service.jobs() > 2:
        assert time.monotonic() < deadline, "the five were not retired"
        time.sleep(0.05)
    return jobs


def test_a_set_knows_at_once_that_its_jobs_have_expired(forgotten: Any) -> None:
    began = time.monotonic()
    assert forgotten.counts() == {"open": 0, "expired": 5}
    assert forgotten.wait(timeout=10) == {"expired": 5}
    assert len(list(forgotten.as_completed(10))) == 5
    assert len(forgotten.failures()) == 5
    values = forgotten.results(10, return_exceptions=True)
    assert all(isinstance(value, Refused) for value in values)
    with pytest.raises(Refused, match="passed its retention"):
        forgotten.results(10)
    assert time.monotonic() - began < 5


def test_a_set_whose_service_was_begun_anew_knows_at_once_that_its_jobs_are_gone(client: Client) -> None:
    # given a set of one service
    jobs = client.map("jobsvc.echo", range(5), progress=False)
    jobs.wait(SECONDS)
    with LocalService() as other, Client(other.url) as of_other:
        # when its address is that of another one, which has more places
        of_other.map("jobsvc.echo", range(20), progress=False).wait(SECONDS)
        jobs = type(jobs)(of_other, jobs.ids, jobs._ends.after)
        # then nobody waits for what cannot come
        assert jobs.wait(10) == {"expired": 5}


def test_a_reader_that_passes_retired_jobs_gets_an_error_with_the_place_to_go_on(
    client: Client, forgotten: Any
) -> None:
    first = next(client.completions(0))
    reader = client.completions(first.cursor)
    with pytest.raises(CompletionsLost, match="places 2 to 6") as lost:
        next(reader)
    assert lost.value.refusal.code == "expired_job"
    [entry, *_] = client.completions(lost.value.cursor)
    assert entry.seq == 7
    # plain numbers are places too
    with pytest.raises(CompletionsLost):
        list(client.completions(1))
    assert next(client.completions(6)).seq == 7


def test_whoever_begins_at_the_beginning_gets_what_is_kept(client: Client, forgotten: Any) -> None:
    assert [entry.seq for entry in client.completions(0)][:2] == [1, 7]
    # and what comes later is told as ever
    reader = client.completions(0, follow=True)
    end = client.feed_end()
    while next(reader).seq < end:
        pass
    job = client.enqueue("jobsvc.echo", 1)
    assert next(reader).id == job.id


def test_a_place_beyond_the_end_or_of_another_store_is_an_error(client: Client) -> None:
    for place in (5_000, "5000", "1.0123456789ab"):
        page = client.feed(place, wait_seconds=5)
        assert page.truncated and page.reset and page.next <= page.newest
        with pytest.raises(CompletionsLost) as lost:
            next(client.completions(place, follow=True))
        assert next(client.completions(lost.value.cursor)).seq == 1


def test_feed_end_is_a_number_and_a_cursor_knows_its_store(client: Client) -> None:
    end, cursor = client.feed_end(), client.feed_cursor()
    assert isinstance(cursor, str) and cursor.startswith(f"{end}.")
    assert list(client.completions(end)) == list(client.completions(cursor)) == []


# --- a reader by itself -------------------------------------------------------------------------------------


def page_of(seqs: list[int], holes: list[tuple[int, int]], end: int, **more: Any) -> FeedPage:
    items = [FeedItem(seq, f"job-{seq}", "succeeded", "t") for seq in seqs]
    fields = {"newest": end, "truncated": bool(holes), "cursor": f"{end}.0123456789ab", **more}
    return FeedPage(items, end, holes=holes, **fields)


def test_a_reader_gives_what_comes_before_a_hole_then_raises_then_gives_the_rest() -> None:
    page = page_of([3, 4, 8], [(5, 7), (9, 9)], 9)
    reader = read_on(lambda _: page, 2, follow=False)
    assert [next(reader).cursor, next(reader).seq] == ["3.0123456789ab", 4]
    with pytest.raises(CompletionsLost) as lost:
        next(reader)
    assert lost.value.cursor == "7.0123456789ab"
    rest = read_on(lambda _: page_of([8], [(9, 9)], 9), lost.value.cursor, follow=False)
    assert next(rest).seq == 8
    with pytest.raises(CompletionsLost) as lost:
        next(rest)
    assert lost.value.cursor == "9.0123456789ab"


@pytest.mark.parametrize("begin", [0, "0", "0.0123456789ab"])
def test_a_reader_from_the_beginning_is_told_only_of_what_it_could_have_seen(begin: int | str) -> None:
    pages = [
        page_of([1, 4], [(2, 3)], 4, newest=6),
        page_of([6], [(5, 5)], 6),
        page_of([9], [(7, 8)], 9),
    ]
    asked: list[int | str] = []

    def read(place: int | str) -> FeedPage:
        asked.append(place)
        return pages.pop(0)

    reader = read_on(read, begin, follow=True)
    assert [next(reader).seq for _ in range(3)] == [1, 4, 6]
    with pytest.raises(CompletionsLost, match="places 7 to 8"):
        next(reader)
    assert asked == [begin, "4.0123456789ab", "6.0123456789ab"]


def test_a_service_of_version_0_1_tells_only_that_the_beginning_is_missing() -> None:
    page = FeedPage([FeedItem(9, "job-9", "succeeded", "t")], 9, oldest=9, newest=9, truncated=True)
    with pytest.raises(CompletionsLost):
        list(read_on(lambda _: page, 3, follow=False))
    assert [item.seq for item in read_on(lambda _: page, 0, follow=False)] == [9]
