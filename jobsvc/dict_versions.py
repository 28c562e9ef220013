"""Whether dicts have changed, without a look at what is in them: CPython numbers each change of each dict.

The number is where no function of Python's shows it, and later versions have none. So it is read from memory,
and only if it turns out to do what it should; otherwise every dict counts as changed.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable, Mapping
from typing import Any

_OFFSET = 3 * ctypes.sizeof(ctypes.c_void_p)  # behind the count of references, the type, and the length


class DictVersions:
    """Of dicts, or of what `vars` shows of classes; they must live on. Seen when it is made."""

    def __init__(self, tables: Iterable[Mapping[str, Any]]) -> None:
        found = [each if type(each) is dict else gc.get_referents(each)[0] for each in tables]
        self._are_known = _ARE_KNOWN and all(type(each) is dict for each in found)
        self._numbers = list(map(_number_of, found)) if self._are_known else []
        self.see()

    def see(self) -> None:
        self._seen = [each.value for each in self._numbers]

    def are_seen(self) -> bool:
        """Nothing was changed since."""
        return self._are_known and [each.value for each in self._numbers] == self._seen


def _number_of(table: dict[str, Any]) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(id(table) + _OFFSET)


def _are_known() -> bool:
    """Whether they change with every change, and with nothing else."""
    if dict.__basicsize__ < _OFFSET + 3 * ctypes.sizeof(ctypes.c_uint64):
        return False
    table = {"one": 1, "two": 2}
    number = _number_of(table)
    seen = {number.value}
    for value in range(10):
        table["one"] = value + 1000
        seen.add(number.value)
    at_rest = number.value
    _ = table["one"], table.get("two"), list(table)
    return len(seen) == 11 and number.value == at_rest


_ARE_KNOWN = _are_known()
