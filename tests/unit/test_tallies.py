"""What a leadership counts: by queue and task, within bounds, and durations."""

from __future__ import annotations

from jobsvc import commands as c
from jobsvc.errors import Refusal
from jobsvc.jobs import Details, Finished, Job, JobOptions, Lease, NewJob, Outcome, State
from jobsvc.tallies import OTHER, PAIRS_MAX, QUEUES_MAX, Tallies

START = 1_000.0


def job(name: bytes, queue: str = "q", task: str = "t", **fields: object) -> Job:
    made = Job(name, JobOptions(task, queue), b"", 1, START)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def leased(name: bytes, at: float, queue: str = "q", run_at: float | None = None, attempt: int = 1) -> Job:
    details = Details(run_at=run_at, lease=Lease("w", at))
    return job(name, queue, attempt=attempt, state=State.RUNNING, details=details)


def counted(tallies: Tallies, name: str) -> dict[tuple[str, ...], float]:
    return {tuple(each.labels.values()): each.value for each in tallies.counts() if each.name == name}


def test_jobs_are_counted_by_queue_and_task() -> None:
    # given a batch for two queues, the same request again, and a refused one
    tallies = Tallies()
    options = [JobOptions("t", "q"), JobOptions("t", "r")]
    batch = c.Enqueue(options, [NewJob(b"1", 0, b""), NewJob(b"2", 1, b""), NewJob(b"3", 1, b"")])
    tallies.command(batch, c.Accepted([b"1", b"2", b"3"], True))
    tallies.command(batch, c.Accepted([b"1", b"2", b"3"], False))
    tallies.command(batch, Refusal("key_reused", "another request had this key"))
    # when they end
    tallies.job_finished(job(b"1", state=State.SUCCEEDED))
    # then each is counted once, with its labels
    assert counted(tallies, "jobs_enqueued") == {("q", "t"): 1, ("r", "t"): 2}
    assert counted(tallies, "idempotent_replays") == {(): 1}
    assert counted(tallies, "refused") == {("key_reused",): 1}
    assert counted(tallies, "jobs_finished") == {("q", "t", "succeeded"): 1}


def test_a_late_report_is_stale_and_nothing_else() -> None:
    tallies = Tallies()
    jobs = {b"1": job(b"1"), b"2": job(b"2"), b"3": job(b"3")}
    ends = [
        Finished(b"1", 1, Outcome.RAISED, START, START + 0.2),
        Finished(b"2", 1, Outcome.SUCCEEDED, START, START + 0.2),
        Finished(b"3", 1, Outcome.RELEASED, START, START),
    ]
    tallies.attempts_ended(jobs, ends, [(b"2", 1)])
    assert counted(tallies, "attempts_finished") == {("q", "t", "raised"): 1, ("q", "t", "released"): 1}
    assert counted(tallies, "stale_results") == {(): 1}
    (spread,) = tallies.spreads()
    assert (sum(spread.counts), round(spread.sum_seconds, 3)) == (1, 0.2)  # what was released did not run


def test_a_wait_begins_when_the_job_may_run_and_ends_with_its_first_lease() -> None:
    tallies = Tallies()
    tallies.leased([leased(b"1", START + 3.0), leased(b"2", START + 9.0, run_at=START + 5.0)])
    tallies.leased([leased(b"3", START + 99.0, attempt=2)])  # its first wait was counted, its backoff is none
    (spread,) = tallies.spreads()
    assert (spread.name, spread.labels) == ("queue_wait_seconds", {"queue": "q"})
    assert (sum(spread.counts), spread.sum_seconds) == (2, 7.0)


def test_callers_cannot_make_series_without_end() -> None:
    # given far more queues than a series each would be good for
    tallies = Tallies()
    for number in range(1_000):
        tallies.job_finished(job(b"1", f"queue-{number}", state=State.FAILED))
        tallies.leased([leased(b"1", START + 1.0, f"queue-{number}")])
    # then the rest is one series, and nothing is missing from the sum
    ended = counted(tallies, "jobs_finished")
    assert len(ended) == PAIRS_MAX + 1
    assert ended[OTHER, OTHER, "failed"] == 1_000 - PAIRS_MAX
    spreads = tallies.spreads()
    assert len(spreads) == QUEUES_MAX + 1
    assert sum(sum(each.counts) for each in spreads) == 1_000
