"""Whether a dict has changed, without a look at what is in it: CPython numbers each change of each dict.

The number is where no function of Python's shows it, and later versions have none. So it is read from memory,
and only if it turns out to do what it should; otherwise every dict counts as changed.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Mapping
from typing import Any

_OFFSET = 3 * ctypes.sizeof(ctypes.c_void_p)  # behind the count of references, the type, and the length


class DictVersion:
    """Of a dict, or of what `vars` shows of a class. Seen when it is made."""

    __slots__ = ("_number", "_seen")

    def __init__(self, table: Mapping[str, Any]) -> None:
        found = table if type(table) is dict else gc.get_referents(table)[0]
        self._number = _number_of(found) if _IS_KNOWN and type(found) is dict else None
        self.see()

    def see(self) -> None:
        self._seen = -1 if self._number is None else self._number.value

    def is_seen(self) -> bool:
        """Nothing was changed since."""
        return self._number is not None and self._number.value == self._seen


def _number_of(table: dict[str, Any]) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(id(table) + _OFFSET)


def _is_known() -> bool:
    """Whether it changes with every change, and with nothing else."""
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


_IS_KNOWN = _is_known()
