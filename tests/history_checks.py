"""One judge for simulation, chaos and ec2 tests: what clients were told against what the service ended with.

Fill a `Told` while the test runs, make a `Final` when everything has come to rest, and `judge` them:

P1  every accepted job is still there;
P2  and is in exactly one terminal state;
P3  finished once: only a retry that somebody asked for lets a job finish again, and nobody was ever shown
    another result; the result is the expected one;
P4  (a finished job is not run again) follows: every finish that a client saw is the one that counts;
P5  what was read from the feed is what the journal holds, in order, without holes that were not told;
    states that replay the same journal are equal (`check_states`).

Ids are texts and results are anything that can be compared, so that HTTP tests can use this as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jobsvc.events import AttemptsEnded, JobsCancelled, decode_events
from jobsvc.jobs import TERMINAL, id_text
from jobsvc.log_records import HASH_BYTES, Mark, Record
from jobsvc.queue_snapshot import check_invariants, fingerprint
from jobsvc.queue_state import QueueState, apply

SHOWN_MAX = 5
TERMINAL_NAMES = frozenset(state.value for state in TERMINAL)


@dataclass(frozen=True)
class Finish:
    """One entry of the completion feed."""

    seq: int
    id: str
    state: str


@dataclass
class Told:
    """What clients asked for and what they were told."""

    accepted: dict[str, float] = field(default_factory=dict)  # id -> when
    expected: dict[str, Any] = field(default_factory=dict)  # id -> result, for jobs that must succeed
    cancel_asked: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)  # confirmed: told that it is cancelled
    retry_asked: set[str] = field(default_factory=set)
    results: list[tuple[str, Any]] = field(default_factory=list)  # every result that anybody saw
    ended: list[tuple[str, str]] = field(default_factory=list)  # every terminal state that anybody saw
    feed: list[Finish] = field(default_factory=list)  # by one reader, from the beginning
    holes: list[tuple[int, int]] = field(default_factory=list)  # what that reader was told is told no more

    def accept(self, job_id: str, when: float) -> None:
        self.accepted.setdefault(job_id, when)


@dataclass
class Final:
    """What the service ended with. `finishes` is empty where the journal cannot be read."""

    jobs: dict[str, tuple[str, Any]] = field(default_factory=dict)  # id -> (state, result)
    finishes: list[Finish] = field(default_factory=list)  # every one that ever was, by the journal
    retired: set[str] = field(default_factory=set)  # past their retention: they had ended


def judge(told: Told, final: Final) -> list[str]:
    """All violations, in words; empty if every promise was kept."""
    return [
        *check_durable(told, final),
        *check_terminal(told, final),
        *check_results(told, final),
        *check_cancels(told, final),
        *check_finished_once(told, final),
        *check_feed(told, final),
    ]


def check_durable(told: Told, final: Final) -> list[str]:
    lost = [each for each in told.accepted if each not in final.jobs and each not in final.retired]
    return _say("P1: accepted and lost", lost)


def check_terminal(told: Told, final: Final) -> list[str]:
    open_jobs = [
        f"{each} is {final.jobs[each][0]}"
        for each in told.accepted
        if each in final.jobs and final.jobs[each][0] not in TERMINAL_NAMES
    ]
    return _say("P2: not terminal", open_jobs)


def check_results(told: Told, final: Final) -> list[str]:
    wrong = []
    for each, expected in told.expected.items():
        state, result = final.jobs.get(each, ("", None))
        if state == "succeeded" and result != expected:
            wrong.append(f"{each} has {result!r}, not {expected!r}")
        if state == "failed" or (state == "cancelled" and each not in told.cancel_asked):
            wrong.append(f"{each} {state}, nobody asked for that")
    shown = [
        f"{each}: {result!r}, not {told.expected[each]!r}"
        for each, result in told.results
        if each in told.expected and result != told.expected[each]
    ]
    first: dict[str, Any] = {}
    changed = [
        f"{each}: {result!r} after {first[each]!r}"
        for each, result in told.results
        if first.setdefault(each, result) != result and each not in told.retry_asked
    ]
    return [*_say("P3: wrong end", wrong), *_say("P3: wrong result shown", shown), *_say("P3: two", changed)]


def check_cancels(told: Told, final: Final) -> list[str]:
    undone = [
        f"{each} is {final.jobs[each][0]}"
        for each in told.cancelled
        if each in final.jobs and each not in told.retry_asked and final.jobs[each][0] != "cancelled"
    ]
    return _say("P2: confirmed as cancelled, and then it was not", undone)


def check_finished_once(told: Told, final: Final) -> list[str]:
    counts: dict[str, int] = {}
    for finish in final.finishes:
        counts[finish.id] = counts.get(finish.id, 0) + 1
    twice = [each for each, count in counts.items() if count > 1 and each not in told.retry_asked]
    moved = [
        f"{each} was {state}"
        for each, state in told.ended
        if each not in told.retry_asked and each in final.jobs and final.jobs[each][0] != state
    ]
    return [*_say("P3: finished twice", twice), *_say("P3: shown as ended otherwise", moved)]


def check_feed(told: Told, final: Final) -> list[str]:
    seqs = [finish.seq for finish in told.feed]
    if seqs != sorted(set(seqs)):
        return ["P5: the feed was not read in order"]
    if not final.finishes:
        return []
    true = {finish.seq: finish for finish in final.finishes}
    wrong = [str(finish) for finish in told.feed if true.get(finish.seq) != finish]
    read = set(told.feed)
    missed = [
        str(finish)
        for finish in final.finishes
        if seqs
        and finish.seq <= seqs[-1]
        and finish not in read
        and finish.id not in told.retry_asked
        and not any(first <= finish.seq <= last for first, last in told.holes)
    ]
    return [*_say("P5: in the feed, not in the journal", wrong), *_say("P5: missing in the feed", missed)]


def _say(what: str, cases: list[str]) -> list[str]:
    if not cases:
        return []
    more = f" and {len(cases) - SHOWN_MAX} more" if len(cases) > SHOWN_MAX else ""
    return [f"{what} ({len(cases)}): {', '.join(cases[:SHOWN_MAX])}{more}"]


# --- the journal --------------------------------------------------------------------------------------


def history_of(records: Iterable[Record], mark: Mark) -> list[Record]:
    """The one history that ends at this mark, out of all records that were ever written."""
    by_chain = {record.chain: record for record in records}
    history: list[Record] = []
    chain = mark.chain
    while chain != bytes(HASH_BYTES):
        record = by_chain[chain]
        history.append(record)
        chain = record.previous
    return history[::-1]


def apply_record(state: QueueState, record: Record) -> None:
    """As a standby does."""
    if record.kind == "data":
        state.log_time = record.log_time
        for event in decode_events(record.body):
            apply(state, event, record.log_time)


def replayed(history: Iterable[Record]) -> tuple[QueueState, list[Finish]]:
    """The state after this history, and every finish on the way."""
    state = QueueState()
    finishes: list[Finish] = []
    for record in history:
        if record.kind != "data":
            continue
        state.log_time = record.log_time
        for event in decode_events(record.body):
            place = state.feed.next_place
            apply(state, event, record.log_time)
            ids: list[bytes] = []
            if isinstance(event, AttemptsEnded):
                ids = [each.job_id for each in event.finished]
            elif isinstance(event, JobsCancelled):
                ids = event.ids
            ended = [state.jobs[each] for each in ids if state.jobs[each].state in TERMINAL]
            for job in ended:
                assert job.details is not None and job.details.finish_seq is not None
                finishes.append(Finish(job.details.finish_seq, id_text(job.id), job.state.value))
            assert state.feed.next_place - place == len(ended), "a finish that no event explains"
    return state, finishes


def check_states(states: dict[str, QueueState]) -> list[str]:
    """P5: all of these have applied the same history, so they must be equal, and whole."""
    problems = []
    for name, state in states.items():
        try:
            check_invariants(state)
        except AssertionError as error:
            problems.append(f"{name}: {error}")
    prints = {name: fingerprint(state) for name, state in states.items()}
    if len(set(prints.values())) > 1:
        names = ", ".join(
            f"{name} {each.hex()[:8]} at {states[name].log_time}" for name, each in prints.items()
        )
        problems.append(f"P5: states differ: {names}")
    return problems
