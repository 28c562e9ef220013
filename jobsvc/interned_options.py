"""One object for the options that many jobs share, and how many jobs share it.

Options that travelled with a batch and that no job has are forgotten again, like those whose last job has
retired: what is kept is bounded by the jobs, whatever callers send.
"""

from __future__ import annotations

import msgspec

from .jobs import Job, JobOptions


class OptionsUse(msgspec.Struct):
    """Interned options, and how many jobs share them."""

    options: JobOptions
    jobs: int = 0
    waiting: list[Job] | None = None  # finished ones, until there are enough for a group (`finished_groups`)


class InternedOptions(dict[JobOptions, OptionsUse]):
    """Options -> the object that stands for all that are equal, and its users."""

    def intern(self, options: JobOptions) -> OptionsUse:
        entry = self.get(options)
        if entry is None:
            entry = self[options] = OptionsUse(options)
        return entry

    def use(self, options: JobOptions, count: int) -> None:
        """So many jobs more, or fewer, have these options."""
        self[options].jobs += count

    def forget_unused(self, options: list[JobOptions]) -> None:
        for each in options:
            if each in self and self[each].jobs == 0:
                del self[each]
