"""What has just ended, on its way into a group (`finished_groups`).

Many that end together are a group of their own where the event is applied. Few, or one, join the open group
of their options, if enough jobs share these; when it is full it is put into columns, and the acceptance order
gets it. Whoever becomes plain later (it was restored, or pulled) has its objects: the last `LAG` of those
stay as they are, and the ones before them wait until there are enough of their options to make a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from .acceptance_order import AcceptanceOrder
from .completion_feed import CompletionFeed
from .events import AttemptsEnded, Change
from .finished_groups import ATTEMPT_MAX, FinishedGroup
from .interned_options import InternedOptions
from .jobs import HASH_TASK, Finished, Job, JobOptions, Outcome, State, place_of
from .queue_counts import QueueCounts
from .retention_lines import RetentionLines
from .segments import JobTable, seq_of
from .transitions import TRANSITIONS

LAG = 512
SOME = 256  # of those before the last `LAG` are looked at together
TOGETHER_MIN = 8  # jobs that end together: fewer are quicker one by one
AT_ONCE_MIN = 32  # jobs that end together: a smaller group would take as much as objects do
GROUP_MIN = 64
GROUP_MAX = 256
OPEN_MIN = 16  # jobs of the same options: for fewer no group is opened

_RUNNING, _OUTCOME, _CHANGE = State.RUNNING, Outcome.SUCCEEDED, Change.SUCCEED
_SUCCEEDED = TRANSITIONS[_RUNNING][_CHANGE]


End = tuple[Job, Finished, Change, float | None]  # a job, its report, and where it goes


def are_few(ended: list[Job]) -> bool:
    return len(ended) < TOGETHER_MIN


def ended_together(ends: list[End]) -> Iterable[tuple[list[End], bool]]:
    """What ended by one event, in parts, and whether those of each suit one group."""
    options = [options_if_plain(*end) for end in ends]
    if len(ends) <= GROUP_MAX and options.count(options[0]) == len(options):
        return ((ends, options[0] != 0),)
    return _parts(ends, options)


def _parts(ends: list[End], options: list[int]) -> Iterator[tuple[list[End], bool]]:
    begin = 0
    for chosen, alike in groupby(options):
        end = begin + len([*alike])
        parts = -(-(end - begin) // GROUP_MAX)
        for part in range(parts):
            stop = begin + -(-(end - begin) // (parts - part))
            yield ends[begin:stop], chosen != 0
            begin = stop


def options_if_plain(job: Job, finished: Finished, change: Change, run_at: float | None) -> int:
    """The id of its options if a group can hold all there is to know of a job that ends like this, or 0."""
    details, options, result = job.details, job.options, finished.result
    if (
        change is _CHANGE
        and job.state is _RUNNING
        and details is not None
        and not details.history
        and finished.outcome is _OUTCOME
        and result is not None
        and result.data is not None
        and type(job.payload) is bytes
        and finished.error is None
        and finished.log is None
        and not finished.log_bytes
        and finished.attempt == job.attempt <= ATTEMPT_MAX
        and run_at is None
        and options.task != HASH_TASK
    ):
        return id(options)  # without history nothing is spent
    return 0


def is_plain(job: Job) -> bool:
    """Whether a group can hold all there is to know of a job that succeeded, at its only attempt.

    Of a job whose history is one record, that record is its success, and it has spent nothing."""
    details = job.details
    if details is None or len(details.history) != 1 or type(job.payload) is not bytes:
        return False
    record, result = details.history[0], details.result
    return (
        result is not None
        and result.data is not None
        and not record.log_bytes
        and record.error is None
        and record.log is None
        and record.number == job.attempt <= ATTEMPT_MAX
        and not (job.failures or job.crashes or details.history_dropped)
    )


class RecentlyFinished:
    """The groups that are open, and the jobs that may come into one and are objects still.

    Changed by `queue_state.apply` alone."""

    def __init__(
        self,
        options: InternedOptions,
        jobs: JobTable,
        order: AcceptanceOrder,
        feed: CompletionFeed,
        counts: QueueCounts,
        retention: RetentionLines,
    ) -> None:
        self._options = options
        self._jobs = jobs
        self._order = order
        self._feed = feed
        self._counts = counts
        self._retention = retention
        self._recent: list[Job] = []
        self._open: dict[int, FinishedGroup] = {}  # by the id of their options; each has a row

    # --- what ends now ---

    def take(self, ends: list[End], event: AttemptsEnded, log_time: float) -> bool:
        """Running jobs have ended, all of them plain and of the same options: they leave memory as objects.

        False, and nothing done, if one is there twice, or if too few have these options."""
        jobs, finished = [end[0] for end in ends], [end[1] for end in ends]
        ids, place = [job.id for job in jobs], self._feed.next_place
        if len(jobs) >= AT_ONCE_MIN:
            group = FinishedGroup.of_reports(jobs, finished, event, log_time, place)
        else:
            group = self._open_group(jobs[0].options)
            if group is not None and len({*ids}) == len(ids):
                group.add(jobs, finished, event, log_time, place)
            else:
                group = None
        if group is None:
            return False
        self._counts.move(group.options.queue, State.RUNNING, _SUCCEEDED, len(jobs))
        for job in jobs:
            job.state = _SUCCEEDED  # lanes may have it still
            job.details = None
        self._jobs.keep_in_group(ids, group)
        self._feed.append_group(group, len(jobs))
        self._retention.ended(group.options.retention_seconds, place, log_time)
        if group.is_full:
            self.close(group)
        elif group.rows is None:
            self._order.freeze_finished(group, group.seqs())
        return True

    def take_one(self, job: Job, finished: Finished, event: AttemptsEnded, log_time: float) -> bool:
        """The same of one job, and quicker."""
        options = job.options
        group = self._open.get(id(options)) or self._open_group(options)
        if group is None:
            return False
        self._counts.move(options.queue, State.RUNNING, _SUCCEEDED, 1)
        job.state = _SUCCEEDED
        job.details = None
        self._jobs.keep_one_in_group(job.id, group)
        rows, place = group.rows, self._feed.append(group)
        self._retention.ended(options.retention_seconds, place, log_time)
        assert rows is not None
        group.ids.append(job.id)
        rows.append((job, finished, place, log_time, event.worker, event.node))
        if len(rows) >= group.full_at:
            self.close(group)
        return True

    def _open_group(self, options: JobOptions) -> FinishedGroup | None:
        """The one that jobs with these options join, if enough jobs have them."""
        group = self._open.get(id(options))
        if group is None:
            jobs = self._options[options].jobs
            if jobs < OPEN_MIN:
                return None
            group = FinishedGroup(options, min(GROUP_MAX, max(OPEN_MIN, jobs // 2)))
            self._open[id(options)] = group
        return group

    def close(self, group: FinishedGroup) -> None:
        """It is full, or has no row any more."""
        del self._open[id(group.options)]
        if group.rows:
            group.close()
            self._order.freeze_finished(group, group.seqs())

    # --- what has ended before ---

    def add(self, jobs: list[Job]) -> None:
        """These were pulled, or restored."""
        recent = self._recent
        recent += jobs
        while len(recent) >= LAG + SOME:
            self._sort_out(recent[:SOME])
            del recent[:SOME]

    def _sort_out(self, jobs: list[Job]) -> None:
        for _, same in groupby(filter(is_plain, jobs), _options_id):
            alike = [*same]
            options = alike[0].options
            if options.task == HASH_TASK:
                alike = [job for job in alike if job.details is not None and job.details.pulled]
            use = self._options.get(options)
            if use is None:
                continue  # all retired meanwhile
            if use.waiting is None:
                use.waiting = []
            use.waiting += alike
            while len(use.waiting) >= GROUP_MIN:
                self._freeze(use.waiting[:GROUP_MAX])
                del use.waiting[:GROUP_MAX]

    def _freeze(self, jobs: list[Job]) -> None:
        """Keep jobs in a group: those that are held still."""
        held = sorted(filter(self._jobs.holds, jobs), key=seq_of)
        if held:
            group = FinishedGroup.of_objects(held)
            self._jobs.keep_in_group(group.ids, group)
            self._order.freeze_finished(group, group.seqs())
            self._feed.freeze_finished(group, sorted(map(place_of, held)))


def _options_id(job: Job) -> int:
    return id(job.options)
