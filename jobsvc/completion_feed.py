"""The completion feed: finished jobs by place, in the order in which they finished.

Places count from 1, and a place never changes its job. It becomes empty in two ways, which are not the same
to a reader who passes it unread: the job was *retired*, and a completion is lost to that reader, who must be
told; or it was *revived*, and nothing is lost, because it will finish again at a later place.

Kept are the places that hold a job, and the ranges of those whose jobs were revived. Every other place up to
the end is one of a retired job. So a hole takes no memory, however long it is, and a kept job at the front
keeps nothing else. Where more ranges were revived than are remembered, the oldest count as retired: a reader
may be told of a loss that is none, and is never left untold.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import cast

from .finished_groups import FinishedGroup
from .jobs import Job

REVIVED_RANGES_MAX = 10_000
_BLOCK = 128  # entries that are looked at together
_LINGER_MIN = 1_000  # empty places that may stay in the lists before they are cut out

Entry = Job | FinishedGroup | None
Range = tuple[int, int]  # the first and the last place of it


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


def _neighbours(entries: list[Entry]) -> Iterator[tuple[Entry, int]]:
    """Each entry, and how many times it is there one after the other."""
    for _, same in groupby(entries, id):
        alike = [*same]
        yield alike[0], len(alike)


class CompletionFeed:
    """See the module. Changed by `queue_state.apply` alone."""

    def __init__(self) -> None:
        self.next_place = 1
        self.revived = PlaceRanges()
        self._places: array[int] = array("Q")  # ascending
        self._jobs: list[Entry] = []  # beside them; None: empty, and not cut out yet
        self._begin = 0  # all before this index are empty
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def __iter__(self) -> Iterator[Job]:
        """Its jobs, oldest completion first."""
        for begin in range(self._begin, len(self._jobs), _BLOCK):
            yield from self._some(begin, begin + _BLOCK)

    @property
    def first(self) -> int:
        """The first place that still holds a job; where there is none, the next one to be given."""
        return self._places[self._begin] if self._held else self.next_place

    @property
    def newest(self) -> int:
        """The last place that was given; 0 if none was."""
        return self.next_place - 1

    def job_at(self, place: int) -> Job | None:
        index = bisect_left(self._places, place)
        return self._job(index) if index < len(self._places) and self._places[index] == place else None

    def held(self, places: list[int]) -> list[bool]:
        """Which of these places hold a job."""
        index, count = bisect_left(self._places, places[0]), len(places)
        if self._places[index : index + count].tolist() == places:  # mostly they are neighbours
            return [entry is not None for entry in self._jobs[index : index + count]]
        return [self.job_at(place) is not None for place in places]

    def _job(self, index: int) -> Job | None:
        """The job at an index of the lists; a copy if it is in a group."""
        job = self._jobs[index]
        return job.job_at(self._places[index]) if type(job) is FinishedGroup else cast("Job | None", job)

    def since(self, place: int) -> list[Job]:
        """The jobs at this place and after it."""
        return [*self._some(bisect_left(self._places, place), len(self._jobs))]

    def _some(self, begin: int, end: int) -> Iterator[Job]:
        """The jobs from one index of the lists to another; copies of those that are in groups."""
        for entry, count in _neighbours(self._jobs[begin:end]):
            if type(entry) is FinishedGroup:
                yield from entry.jobs_at(self._places[begin : begin + count])
            elif entry is not None:
                yield cast("Job", entry)
            begin += count

    def entries_since(self, place: int) -> Iterator[tuple[Job | FinishedGroup, int]]:
        """What is kept from this place on: jobs, and groups with how many of theirs follow each other."""
        for entry, count in _neighbours(self._jobs[bisect_left(self._places, place) :]):
            if entry is not None:
                yield entry, count

    def after(self, place: int, count_max: int, looks_max: int) -> tuple[list[tuple[int, Job]], int]:
        """The jobs after a place, with theirs, and the place up to which these are all."""
        begin = max(bisect_right(self._places, place), self._begin)
        stop = min(begin + looks_max, len(self._places))
        found: list[tuple[int, Job]] = []
        for index in range(begin, stop):
            if len(found) >= count_max:
                return found, found[-1][0] if found else place
            job = self._job(index)
            if job is not None:
                found.append((self._places[index], job))
        return found, self.newest if stop == len(self._places) else self._places[stop] - 1

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
        self._set(places, group)

    def _set(self, places: list[int], entry: Entry) -> None:
        index, count = bisect_left(self._places, places[0]), len(places)
        if self._places[index : index + count].tolist() == places:  # mostly they are neighbours
            self._jobs[index : index + count] = [entry] * count
            return
        for place in places:
            index = bisect_left(self._places, place, index)
            self._jobs[index] = entry

    def append(self, entry: Job | FinishedGroup) -> int:
        """A job has finished, or one that is kept in this group; returns its place."""
        place = self.next_place
        self._places.append(place)
        self._jobs.append(entry)
        self._held += 1
        self.next_place = place + 1
        return place

    def append_group(self, group: FinishedGroup, count: int) -> None:
        """So many jobs have finished together, and are kept in a group; their places follow each other."""
        first, self.next_place = self.next_place, self.next_place + count
        self._places.extend(range(first, self.next_place))
        self._jobs += [group] * count
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
        if not places:
            return
        self._set(places, None)
        self._held -= len(places)
        self._tidy()

    def restore(self, jobs: Iterable[tuple[int, Job]], revived: Iterable[Range], next_place: int) -> None:
        """Fill an empty feed from a snapshot; the jobs come in the order of their places."""
        for place, job in jobs:
            self._put(place, job)
        self.revived = PlaceRanges(revived)
        self.next_place = next_place

    def _put(self, place: int, job: Job) -> None:
        self._places.append(place)
        self._jobs.append(job)
        self._held += 1

    def _tidy(self) -> None:
        self._skip_empty_front()
        if len(self._jobs) - self._begin > 2 * self._held + _LINGER_MIN:
            kept = [index for index, job in enumerate(self._jobs) if job is not None]
            self._places = array("Q", [self._places[index] for index in kept])
            self._jobs = [self._jobs[index] for index in kept]
            self._begin = 0

    def _skip_empty_front(self) -> None:
        jobs, begin = self._jobs, self._begin
        while begin < len(jobs) and jobs[begin] is None:
            begin += 1
        if begin == len(jobs) or begin > _LINGER_MIN + len(jobs) // 8:
            del jobs[:begin], self._places[:begin]
            begin = 0
        self._begin = begin
