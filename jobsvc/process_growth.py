"""What stays in a process from job to job, counted: memory, descriptors, threads, and the jobs themselves.

Pools and models live in the globals of modules on purpose, so none of that is put back; a process that has
more of it than its pool allows is renewed. What the first run of a task leaves does not count, for that is
when models are loaded and pools filled: to renew the process for it would be to load them with every job.
"""

from __future__ import annotations

import os
import resource

from .job_frames import GrowthLimits

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KINDS = ("bytes of memory", "descriptors", "threads")
_OWN_LINKS = 2  # of a folder in /proc, beside one for each folder in it

Levels = tuple[int, int, int]


class ProcessGrowth:
    """Made when the tasks are loaded."""

    def __init__(self, limits: GrowthLimits) -> None:
        self._limits = limits
        self._memory = os.open("/proc/self/statm", os.O_RDONLY)
        self._descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        self._threads = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY)
        self._known: set[str] = set()
        self._jobs = 0
        self._base = self._last = self._loaded = self._levels()

    @property
    def left_bytes(self) -> int:
        """Memory that there is more than when the tasks were loaded, as of the last look."""
        return max(self._last[0] - self._loaded[0], 0)

    def count(self) -> bool:
        """One more job has run. True if it has to be the last one."""
        self._jobs += 1
        return self._limits.jobs_max is not None and self._jobs >= self._limits.jobs_max

    def begins(self, task: str) -> bool:
        """Whether this task runs for the first time; called before it does."""
        if task in self._known:
            return False
        self._known.add(task)
        self._last = self._levels()
        return True

    def look(self, was_first: bool) -> list[str]:
        """What has grown too much. `was_first`: the last job was the first run of its task."""
        before, now = self._last, self._levels()
        self._last = now
        if was_first:
            grown = [max(new - old, 0) for new, old in zip(now, before, strict=True)]
            self._base = (self._base[0] + grown[0], self._base[1] + grown[1], self._base[2] + grown[2])
        limits = self._limits
        bounds = (limits.bytes_max, limits.descriptors_max, limits.threads_max)
        too_much = [
            f"{new - old} more {kind}"
            for kind, new, old, bound in zip(_KINDS, now, self._base, bounds, strict=True)
            if new - old > bound
        ]
        if limits.left_bytes_max is not None and self.left_bytes > limits.left_bytes_max:
            too_much.append(f"{self.left_bytes} bytes of memory left by jobs")
        if self._loaded[1] < (most := _descriptors_max() * 3 // 4) < now[1]:
            too_much.append(f"{now[1]} descriptors, more than {most}")
        return too_much

    def _levels(self) -> Levels:
        memory = int(os.pread(self._memory, 100, 0).split()[1]) * _PAGE_BYTES
        descriptors = os.fstat(self._descriptors).st_size  # of kernels before 6.2: none
        threads = os.fstat(self._threads).st_nlink - _OWN_LINKS
        return memory, descriptors or len(os.listdir("/proc/self/fd")), threads


def _descriptors_max() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
