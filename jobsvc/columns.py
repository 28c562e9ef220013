"""Columns: values of many rows in little memory. Each is written once, and looks like a sequence.

Integers that are neighbours are a range, those that are close to each other differences, times an array, and
values of which few are different a palette.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import eq
from typing import Generic, Protocol, TypeVar

PALETTE_MAX = 64

Value = TypeVar("Value")


class Column(Protocol[Value]):
    """What an array, a list, a range and the two below have in common."""

    def __getitem__(self, index: int, /) -> Value: ...

    def __len__(self) -> int: ...

    def index(self, value: Value, /) -> int: ...


class _Shifted:
    """Integers that are close to each other, as differences from the smallest."""

    __slots__ = ("_base", "_differences")

    def __init__(self, base: int, differences: array[int]) -> None:
        self._base = base
        self._differences = differences

    def __len__(self) -> int:
        return len(self._differences)

    def __getitem__(self, index: int) -> int:
        return self._base + self._differences[index]

    def index(self, value: int) -> int:
        return self._differences.index(value - self._base)


class _Palette(Generic[Value]):
    """Values of which few are different."""

    __slots__ = ("_numbers", "_values")

    def __init__(self, values: list[Value], numbers: bytes) -> None:
        self._values = values
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Value:
        return self._values[self._numbers[index]]

    def index(self, value: Value) -> int:
        return self._numbers.index(self._values.index(value))


def integers(values: Sequence[int]) -> Column[int]:
    first, stop = values[0], values[0] + len(values)
    if values[-1] == stop - 1 and all(map(eq, values, range(first, stop))):
        return range(first, stop)  # mostly they are neighbours
    base = min(values)
    if max(values) - base < 1 << 32:
        return _Shifted(base, array("I", [value - base for value in values]))
    return array("Q", values)


def palette_or_list(values: Sequence[Value]) -> Column[Value]:
    if values.count(values[0]) == len(values):
        return _Palette([values[0]], bytes(len(values)))
    different = [*dict.fromkeys(values)]
    if len(different) > PALETTE_MAX:
        return [*values]
    numbers = {value: number for number, value in enumerate(different)}
    return _Palette(different, bytes(map(numbers.__getitem__, values)))


def times(values: Sequence[float]) -> Column[float]:
    same = values.count(values[0]) == len(values)
    return _Palette([values[0]], bytes(len(values))) if same else array("d", values)


def some_of(column: Column[Value], rows: Sequence[int]) -> Sequence[Value]:
    if isinstance(rows, range) and isinstance(column, range | list | array):
        return column[rows.start : rows.stop]
    return [*map(column.__getitem__, rows)]
