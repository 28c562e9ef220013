"""The completion feed: finished jobs by place, in the order in which they finished.

Places count from 1, and a place never changes its job. It becomes empty in two ways, which are not the same
to a reader who passes it unread: the job was *retired*, and a completion is lost to that reader, who must be
told; or it was *revived*, and nothing is lost, because it will finish again at a later place.

Kept are the places that hold a job (`numbered_runs`), and the ranges of those whose jobs were revived. Every
other place up to the end is one of a retired job. So a hole takes no memory, however long it is, and a kept
job at the front keeps nothing else. Where more ranges were revived than are remembered, the oldest count as
retired: a reader may be told of a loss that is none, and is never left untold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import cast

from .finished_groups import FinishedGroup
from .jobs import Job
from .numbered_runs import NumberedRuns

REVIVED_RANGES_MAX = 10_000
_BLOCK = 128  # entries that are looked at together

Entry = Job | FinishedGroup
Range = tuple[int, int]  # the first and the last place of it
Kept = tuple[Entry, Sequence[int]]  # a job, or a group with some of its jobs, and their places


class PlaceRanges:
    """A set of places as ranges, merged where they touch."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self._firsts.append(first)
            self._lasts.append(last)

    def __len__(self) -> int:
        return len(self._firsts)

    def __iter__(self) -> Iterator[Range]:
        return zip(self._firsts, self._lasts, strict=True)

    def add(self, place: int) -> None:
        """Take in a place that is not in it."""
        firsts, lasts = self._firsts, self._lasts
        after = bisect_right(firsts, place)
        joins_left = after > 0 and lasts[after - 1] == place - 1
        joins_right = after < len(firsts) and firsts[after] == place + 1
        if joins_left and joins_right:
            lasts[after - 1] = lasts[after]
            del firsts[after], lasts[after]
        elif joins_left:
            lasts[after - 1] = place
        elif joins_right:
            firsts[after] = place
        else:
            firsts.insert(after, place)
            lasts.insert(after, place)

    def drop_first(self) -> None:
        del self._firsts[0], self._lasts[0]

    def covers(self, first: int, last: int) -> bool:
        """Whether all places from the first to the last are in it."""
        found = bisect_right(self._firsts, first) - 1
        return found >= 0 and self._lasts[found] >= last


def _neighbours(entries: list[Entry | None]) -> Iterator[tuple[Entry | None, int]]:
    """Each entry, and how many times it is there one after the other."""
    for _, same in groupby(entries, id):
        alike = [*same]
        yield alike[0], len(alike)


def _job(entry: Entry | None, place: int) -> Job | None:
    """The job at a place; a copy if it is in a group."""
    return entry.job_at(place) if type(entry) is FinishedGroup else cast("Job | None", entry)


class CompletionFeed:
    """See the module. Changed by `queue_state.apply` alone."""

    def __init__(self) -> None:
        self.next_place = 1
        self.revived = PlaceRanges()
        self._runs: NumberedRuns[Entry] = NumberedRuns()
        self._first = 1  # no place before it holds a job; it does itself, or is the next one to be given,
        self._first_may_be_gone = False  # unless jobs have left since that was last looked up
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def __iter__(self) -> Iterator[Job]:
        """Its jobs, oldest completion first."""
        return self._jobs_from(self._first)

    @property
    def places(self) -> int:
        """Those that take memory."""
        return self._runs.places

    @property
    def first(self) -> int:
        """The first place that still holds a job; where there is none, the next one to be given."""
        if self._first_may_be_gone:
            self._first_may_be_gone = False
            self._first = self.first_held(self._first) if self._held else self.next_place
        return self._first

    @property
    def newest(self) -> int:
        """The last place that was given; 0 if none was."""
        return self.next_place - 1

    def job_at(self, place: int) -> Job | None:
        return _job(self._runs.get(place), place)

    def first_held(self, place: int) -> int:
        """The first place from this one on that holds a job, or the next one to be given."""
        first = self._runs.first_from(place)
        return self.next_place if first is None else first

    def held(self, places: list[int]) -> list[bool]:
        """Which of these places hold a job."""
        return [self._runs.get(place) is not None for place in places]

    def since(self, place: int) -> list[Job]:
        """The jobs at this place and after it."""
        return [*self._jobs_from(place)]

    def _jobs_from(self, place: int) -> Iterator[Job]:
        """Copies of those that are in groups."""
        for run, begin in self._runs.from_number(place):
            for at in range(begin, len(run.entries), _BLOCK):
                for entry, count in _neighbours(run.entries[at : at + _BLOCK]):
                    if type(entry) is FinishedGroup:
                        yield from entry.jobs_at(run.numbers[at : at + count])
                    elif entry is not None:
                        yield cast("Job", entry)
                    at += count

    def entries_since(self, place: int) -> Iterator[tuple[Entry, int]]:
        """What is kept from this place on: jobs, and groups with how many of theirs follow each other."""
        for run, begin in self._runs.from_number(place):
            for entry, count in _neighbours(run.entries[begin:]):
                if entry is not None:
                    yield entry, count

    def after(self, place: int, count_max: int, looks_max: int) -> tuple[list[Kept], int]:
        """What is kept after a place, so many jobs at most, and the place up to which that is all."""
        found: list[Kept] = []
        count = 0
        for run, at in self._runs.from_number(max(place + 1, self.first)):
            size = len(run.entries)
            while at < size:
                if count >= count_max:
                    return found, found[-1][1][-1] if found else place
                if looks_max <= 0:
                    return found, run.numbers[at] - 1
                some = run.entries[at : at + min(_BLOCK, count_max - count, looks_max)]
                looks_max -= len(some)
                for entry, alike in _neighbours(some):
                    if entry is not None:
                        found.append((entry, run.numbers[at : at + alike]))
                        count += alike
                    at += alike
        return found, self.newest

    def holes(self, place: int, held: Sequence[int], end: int) -> list[Range]:
        """The gaps between these places, from after `place` to `end`, in which completions are lost."""
        if end - place == len(held):
            return []
        found: list[Range] = []
        for each in (*held, end + 1):
            if each > place + 1 and not self.revived.covers(place + 1, each - 1):
                found.append((place + 1, each - 1))
            place = each
        return found

    # --- changes ---

    def freeze_finished(self, group: FinishedGroup, places: list[int]) -> None:
        """The jobs at these places, which ascend, are kept in a group from now on."""
        self._runs.put(places, group)

    def append(self, entry: Entry) -> int:
        """A job has finished, or one that is kept in this group; returns its place."""
        place = self.next_place
        self._runs.append(place, entry)
        self._held += 1
        self.next_place = place + 1
        return place

    def append_group(self, group: FinishedGroup, count: int) -> None:
        """So many jobs have finished together, and are kept in a group; their places follow each other."""
        first, self.next_place = self.next_place, self.next_place + count
        self._runs.extend(range(first, self.next_place), group)
        self._held += count

    def revive(self, place: int) -> None:
        """The job of this place waits again."""
        self.retire(place)
        self.revived.add(place)
        if len(self.revived) > REVIVED_RANGES_MAX:
            self.revived.drop_first()

    def retire(self, place: int) -> None:
        """The job of this place leaves memory."""
        self.retire_many([place])

    def retire_many(self, places: list[int]) -> None:
        """The jobs of these places, which ascend, leave memory."""
        if places:
            self._runs.put(places, None)
            self._held -= len(places)
            self._first_may_be_gone = True

    def restore(self, jobs: Iterable[tuple[int, Job]], revived: Iterable[Range], next_place: int) -> None:
        """Fill an empty feed from a snapshot; the jobs come in the order of their places."""
        for place, job in jobs:
            self._put(place, job)
        self.revived = PlaceRanges(revived)
        self.next_place = next_place
        self._first_may_be_gone = True

    def _put(self, place: int, entry: Entry) -> None:
        self._runs.append(place, entry)
        self._held += 1
