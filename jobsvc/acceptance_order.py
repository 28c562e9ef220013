"""All jobs in the order of their acceptance, in blocks: what leaves is cut out block by block.

A block is a frozen segment (`segments`), or a run of neighbours that are none (`numbered_runs`). A segment
that was thawed is made a run when somebody comes to it. So a million jobs that leave cost a little each, and
never a second for all of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import cast

from .finished_groups import FinishedGroup, is_in_open_group
from .jobs import Job
from .numbered_runs import RUN_MAX, Run
from .segments import JobTable, Segment

_Run = Run[Job | FinishedGroup]


class AcceptanceOrder:
    """Jobs and frozen segments by seq. Changed where events are applied."""

    def __init__(self, jobs: JobTable) -> None:
        self._jobs = jobs
        self._blocks: list[_Run | Segment] = []
        self._firsts: list[int] = []  # no seq in a block is smaller
        self._open: tuple[_Run, array[int]] | None = None  # the last one, while it grows

    def __len__(self) -> int:
        """The places there are, empty ones too; a frozen segment has one."""
        return sum(1 if self._is_frozen(block) else len(self._run(n).entries) for n, block in self._each())

    def __iter__(self) -> Iterator[Job | Segment]:
        """Oldest first."""
        for number, block in self._each():
            if isinstance(block, Segment) and block.jobs is None:
                yield block
            else:
                run = self._run(number)
                for seq, entry in zip(run.numbers, list(run.entries), strict=True):
                    if type(entry) is FinishedGroup:
                        yield entry.job_with_seq(seq)
                    elif entry is not None:
                        yield self._as_it_is(cast("Job", entry))

    def _as_it_is(self, job: Job) -> Job:
        return self._jobs[job.id] if is_in_open_group(job) else job

    def newest_first(self, before: int) -> Iterator[Job | Segment | tuple[FinishedGroup, int]]:
        """What is older than `before`: jobs, rows of groups, and the frozen segments that begin earlier."""
        for number in range(bisect_left(self._firsts, before) - 1, -1, -1):
            block = self._blocks[number]
            if isinstance(block, Segment) and block.jobs is None:
                yield block
                continue
            run = self._run(number)
            for index in range(bisect_left(run.numbers, before) - 1, -1, -1):
                entry = run.entries[index]
                if type(entry) is FinishedGroup:
                    yield entry, run.numbers[index]
                elif entry is not None:
                    yield self._as_it_is(cast("Job", entry))

    @property
    def oldest_seq(self) -> int | None:
        """The seq of the oldest job; None if there is none."""
        first = next(iter(self), None)
        return None if first is None else first.seq

    def append(self, segment: Segment) -> None:
        """What has just been accepted, and is frozen."""
        self._put(segment.seq, segment)
        self._open = None

    def extend(self, jobs: list[Job]) -> None:
        """What has just been accepted, and is not."""
        while jobs:
            if len(jobs) == 1 and self._open is not None and len(self._open[1]) < RUN_MAX:
                run, seqs = self._open
                seqs.append(jobs[0].seq)
                run.entries.append(jobs[0])
                return
            if self._open is None or len(self._open[1]) >= RUN_MAX:
                seqs = array("Q")
                run = _Run(seqs, [])
                self._put(jobs[0].seq, run)
                self._open = run, seqs
            run, seqs = self._open
            some = jobs[: RUN_MAX - len(seqs)]
            seqs.extend([job.seq for job in some])
            run.entries += some
            jobs = jobs[len(some) :]

    def _put(self, first: int, block: _Run | Segment) -> None:
        self._blocks.append(block)
        self._firsts.append(first)

    def freeze_finished(self, group: FinishedGroup, seqs: Sequence[int]) -> None:
        """The jobs of these seqs, which ascend, are kept in a group from now on."""
        done = 0
        while done < len(seqs):
            done = self._run(bisect_right(self._firsts, seqs[done]) - 1).put(seqs, done, group)

    def retire_many(self, seqs: list[int]) -> None:
        """The jobs of these seqs are no more."""
        seqs.sort()
        done = 0
        while done < len(seqs):
            number = bisect_right(self._firsts, seqs[done]) - 1
            run = self._run(number)
            done = run.put(seqs, done, None)
            if self._open is not None and self._open[0] is run and run.is_sparse:
                self._open = None
            if not run.live:
                del self._blocks[number], self._firsts[number]
            elif run.is_sparse:
                run.draw_together()

    def _each(self) -> Iterator[tuple[int, _Run | Segment]]:
        return enumerate(self._blocks)

    def _is_frozen(self, block: _Run | Segment) -> bool:
        return isinstance(block, Segment) and block.jobs is None

    def _run(self, number: int) -> _Run:
        """A block that is no frozen segment, as a run."""
        block = self._blocks[number]
        if isinstance(block, Segment):
            assert block.jobs is not None, "a job of a frozen segment was retired"
            block = self._blocks[number] = _Run(range(block.seq, block.stop), list(block.jobs))
        return block
