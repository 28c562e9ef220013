"""What the program that put the service into a Ray tells `up`, which does not load Ray."""

from __future__ import annotations

import msgspec

EXIT_REFUSED, EXIT_NO_USE = 3, 4  # the request must be mended; trying again at once does not help


class Placed(msgspec.Struct):
    url: str
    is_new: bool = False  # nothing of this service was there before
    started_serve: bool = False
    words: list[str] = []  # for whoever started it
