"""Runs: entries by ascending numbers, in blocks of bounded size.

Whoever holds a million numbered entries, most of which come and go in order, wants each change to cost a
little, and none to move them all. So they lie in runs of up to `RUN_MAX`. What is no more leaves an empty
place; a run that is mostly empty is drawn together, and an empty one goes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

RUN_MAX = 1_024
DRAWN_TOGETHER_MIN = 32  # a shorter run may be empty as it likes

Entry = TypeVar("Entry")


class Run(Generic[Entry]):
    """Neighbours. `numbers` ascend; an entry is None once it is no more."""

    __slots__ = ("_gone", "entries", "numbers")

    def __init__(self, numbers: Sequence[int], entries: list[Entry | None]) -> None:
        self.numbers = numbers
        self.entries = entries
        self._gone = entries.count(None)

    @property
    def live(self) -> int:
        return len(self.entries) - self._gone

    def put(self, numbers: Sequence[int], begin: int, entry: Entry | None) -> int:
        """Set those of some ascending numbers that are in this run, from `begin` on. Returns their end."""
        index = bisect_left(self.numbers, numbers[begin])
        end = bisect_right(numbers, self.numbers[-1], begin)
        last = index + end - begin - 1
        if self.numbers[last] == numbers[end - 1]:  # mostly they are neighbours
            self.entries[index : last + 1] = [entry] * (end - begin)
        else:
            for number in numbers[begin:end]:
                index = bisect_left(self.numbers, number, index)
                self.entries[index] = entry
        if entry is None:
            self._gone += end - begin
        return end

    @property
    def is_sparse(self) -> bool:
        size, live = len(self.entries), self.live
        return not live or (size >= DRAWN_TOGETHER_MIN and live * 4 < size)

    def draw_together(self) -> None:
        """It takes no new entries after that."""
        kept = [index for index, entry in enumerate(self.entries) if entry is not None]
        self.numbers = array("Q", [self.numbers[index] for index in kept])
        self.entries = [self.entries[index] for index in kept]
        self._gone = 0


class NumberedRuns(Generic[Entry]):
    """Entries by number. New ones have greater numbers than all before them."""

    def __init__(self) -> None:
        self._runs: list[Run[Entry]] = []
        self._firsts: list[int] = []  # no number in a run is smaller
        self._open: tuple[Run[Entry], array[int]] | None = None  # the last one, while it grows

    @property
    def places(self) -> int:
        """Those that take memory, empty ones too."""
        return sum(len(run.entries) for run in self._runs)

    def from_number(self, number: int) -> Iterator[tuple[Run[Entry], int]]:
        """The runs that have this number or greater ones, and where in each these begin."""
        first = max(0, bisect_right(self._firsts, number) - 1)
        for place in range(first, len(self._runs)):
            run = self._runs[place]
            begin = bisect_left(run.numbers, number) if place == first else 0
            if begin < len(run.entries):
                yield run, begin

    def get(self, number: int) -> Entry | None:
        place = bisect_right(self._firsts, number) - 1
        if place < 0:
            return None
        run = self._runs[place]
        index = bisect_left(run.numbers, number)
        found = index < len(run.entries) and run.numbers[index] == number
        return run.entries[index] if found else None

    def first_from(self, number: int) -> int | None:
        """The smallest number from this one on that has an entry."""
        for run, begin in self.from_number(number):
            for index in range(begin, len(run.entries)):
                if run.entries[index] is not None:
                    return run.numbers[index]
        return None

    def append(self, number: int, entry: Entry) -> None:
        run, numbers = self._open or self._begun(number)
        numbers.append(number)
        run.entries.append(entry)
        if len(numbers) == RUN_MAX:
            self._open = None

    def extend(self, numbers: range, entry: Entry) -> None:
        """The same entry at each of these."""
        while numbers:
            run, known = self._open or self._begun(numbers.start)
            some = numbers[: RUN_MAX - len(known)]
            known.extend(some)
            run.entries += [entry] * len(some)
            numbers = numbers[len(some) :]
            if len(known) == RUN_MAX:
                self._open = None

    def _begun(self, number: int) -> tuple[Run[Entry], array[int]]:
        numbers = array("Q")
        run: Run[Entry] = Run(numbers, [])
        self._runs.append(run)
        self._firsts.append(number)
        self._open = run, numbers
        return self._open

    def put(self, numbers: Sequence[int], entry: Entry | None) -> None:
        """Another entry, or none any more, for these, which ascend and have one."""
        done = 0
        while done < len(numbers):
            place = bisect_right(self._firsts, numbers[done]) - 1
            run = self._runs[place]
            done = run.put(numbers, done, entry)
            if entry is None:
                self._tidy(place, run)

    def _tidy(self, place: int, run: Run[Entry]) -> None:
        if not run.is_sparse:
            return
        if self._open is not None and self._open[0] is run:
            self._open = None
        if run.live:
            run.draw_together()
        else:
            del self._runs[place], self._firsts[place]
