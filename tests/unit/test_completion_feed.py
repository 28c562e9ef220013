"""The completion feed: places, and what a reader is told of those that are empty."""

from __future__ import annotations

from random import Random

import pytest

from jobsvc import completion_feed, numbered_runs
from jobsvc.completion_feed import CompletionFeed, PlaceRanges
from jobsvc.jobs import Job, JobOptions

from .queue_world import job_id

OPTIONS = JobOptions("demo.task")


def feed_of(count: int) -> CompletionFeed:
    feed = CompletionFeed()
    for number in range(1, count + 1):
        assert feed.append(Job(job_id(number), OPTIONS, b"", number, 0.0)) == number
    return feed


def read(
    feed: CompletionFeed, place: int, count_max: int = 99
) -> tuple[list[int], int, list[tuple[int, int]]]:
    found, end = feed.after(place, count_max, 10_000)
    places = [place for _, some in found for place in some]
    assert all(isinstance(job, Job) and [job.seq] == [*some] for job, some in found)
    return places, end, feed.holes(place, places, end)


def test_whoever_passes_a_retired_job_is_told_wherever_it_lies() -> None:
    # given retired jobs at the front, in the middle and at the end
    feed = feed_of(9)
    for place in (1, 4, 5, 9):
        feed.retire(place)
    # then each reader is told of those that it passes, and of no others
    assert read(feed, 0) == ([2, 3, 6, 7, 8], 9, [(1, 1), (4, 5), (9, 9)])
    assert read(feed, 4) == ([6, 7, 8], 9, [(5, 5), (9, 9)])
    assert read(feed, 5) == ([6, 7, 8], 9, [(9, 9)])
    assert read(feed, 9) == ([], 9, [])
    # and a page that ends before a hole says nothing of it
    assert read(feed, 1, 2) == ([2, 3], 3, [])
    assert read(feed, 3, 2) == ([6, 7], 7, [(4, 5)])


def test_a_revived_job_leaves_no_hole_unless_a_retired_one_is_beside_it() -> None:
    feed = feed_of(6)
    feed.revive(3)
    feed.revive(2)
    assert read(feed, 0) == ([1, 4, 5, 6], 6, [])
    feed.retire(4)
    assert read(feed, 1) == ([5, 6], 6, [(2, 4)])
    assert read(feed, 4) == ([5, 6], 6, [])


def test_an_empty_feed_remembers_where_it_was() -> None:
    feed = feed_of(3)
    for place in (2, 1, 3):
        feed.retire(place)
    assert (len(feed), feed.first, feed.newest) == (0, 4, 3)
    assert read(feed, 1) == ([], 3, [(2, 3)])
    assert feed.append(Job(job_id(4), OPTIONS, b"", 4, 0.0)) == 4
    assert read(feed, 3) == ([4], 4, []) and feed.first == 4


def test_a_job_that_stays_keeps_nothing_else() -> None:
    # given one job that stays, and ten thousand that come and go behind it
    feed = feed_of(1)
    for number in range(2, 10_002):
        feed.append(Job(job_id(number), OPTIONS, b"", number, 0.0))
        feed.retire(number)
    # then what is held is in proportion to what is there
    assert feed.places < 1_100
    assert read(feed, 1) == ([], 10_001, [(2, 10_001)])


def test_where_too_many_ranges_were_revived_the_oldest_count_as_retired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(completion_feed, "REVIVED_RANGES_MAX", 2)
    feed = feed_of(7)
    for place in (2, 4, 6):
        feed.revive(place)
    assert read(feed, 0) == ([1, 3, 5, 7], 7, [(2, 2)])


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_feed_that_lists_would_be(seed: int) -> None:
    # given many changes in any order
    random = Random(seed)
    feed = feed_of(0)
    kept: dict[int, int] = {}
    revived: set[int] = set()
    for step in range(4_000):
        if random.random() < 0.55 or not kept:
            place = feed.append(Job(job_id(step + 1), OPTIONS, b"", feed.next_place, 0.0))
            kept[place] = place
        else:
            place = next(iter(kept)) if random.random() < 0.5 else random.choice(list(kept))
            del kept[place]
            if random.random() < 0.2:
                revived.add(place)
                feed.revive(place)
            else:
                feed.retire(place)
        if step % 97:
            continue
        # then it is what plain lists say
        begin = random.randrange(feed.next_place)
        places, end, holes = read(feed, begin, 10_000)
        assert places == [place for place in kept if place > begin] and end == feed.newest
        gone = set(range(begin + 1, end + 1)) - kept.keys()
        told = {place for first, last in holes for place in range(first, last + 1)}
        assert gone - revived <= told <= gone
        assert [job.seq for job in feed] == list(kept) and len(feed) == len(kept)
        assert feed.first == min(kept, default=feed.next_place)
        assert {place for first, last in feed.revived for place in range(first, last + 1)} == revived


def test_ranges_merge_where_they_touch() -> None:
    ranges = PlaceRanges()
    for place in (5, 9, 7, 6, 8, 1):
        ranges.add(place)
    assert list(ranges) == [(1, 1), (5, 9)]
    assert ranges.covers(5, 9) and ranges.covers(6, 6)
    assert not ranges.covers(4, 5) and not ranges.covers(9, 10) and not ranges.covers(2, 3)


def test_no_retirement_moves_them_all() -> None:
    # given many entries, of which a few in the middle stay
    feed = CompletionFeed()
    entries = 200_000
    for number in range(1, entries + 1):
        feed.append(Job(job_id(number), OPTIONS, b"", number, 0.0))
    going = [place for place in range(1, entries + 1) if place % 1_000]
    whole = feed.places
    # when the others retire, a slice at a time
    changed = []
    for begin in range(0, len(going), 500):
        before = feed.places
        feed.retire_many(going[begin : begin + 500])
        changed.append(before - feed.places)
    # then each slice has drawn together what is beside it, and nothing else
    assert max(changed) <= 2 * numbered_runs.RUN_MAX
    assert feed.places <= whole // 50
    assert [job.seq for job in feed] == list(range(1_000, entries + 1, 1_000))
