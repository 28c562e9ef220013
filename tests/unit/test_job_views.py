"""What people and programs see of the queue."""

from __future__ import annotations

import pytest

from jobsvc import commands as c
from jobsvc import job_views, selections
from jobsvc.errors import Refusal
from jobsvc.jobs import BlobRef, Outcome, State

from .queue_world import HOUR, World, job_id


def pages(world: World, **filters: object) -> list[list[bytes]]:
    """Every page until the cursor ends, and a bound in case it does not."""
    found = []
    before: int | None = None
    for _ in range(100):
        page = job_views.list_jobs(world.state, c.ListJobs(before=before, **filters))  # type: ignore[arg-type]
        found.append([view.id for view in page.jobs])
        before = page.before
        if before is None:
            return found
    raise AssertionError("the pages never end")


def feed(world: World, after: int = 0, limit: int = 1000) -> list[bytes]:
    return [entry.id for entry in job_views.read_feed(world.state, c.ReadFeed(after, limit)).entries]


def test_one_job_in_every_state() -> None:
    world = World()
    [job] = world.enqueue(payload=BlobRef("payloads/x", 3, 77), run_at=world.state.log_time + 5.0)
    [view] = job_views.get_jobs(world.state, c.GetJobs([job])).items
    assert isinstance(view, c.JobView)
    assert (view.state, view.payload_bytes, view.waiting) == (State.SCHEDULED, 77, "for its time to come")
    world.after(5.0).promote()
    assert job_views.job_view(world.state, world.job(job)).waiting == "for a worker of pool default"
    world.do(c.PatchQueue("default", True))
    assert job_views.job_view(world.state, world.job(job)).waiting == "queue default is paused"
    world.do(c.PatchQueue("default", False))
    world.lease("w7")
    world.do(c.Cancel([job]))
    view = job_views.job_view(world.state, world.job(job))
    assert (view.worker, view.cancel_requested, view.leased_at) == ("w7", True, world.state.log_time)
    world.report(job, worker="w7")
    view = job_views.job_view(world.state, world.job(job))
    assert view.result is not None and view.result.data == b"1" and view.worker is None
    assert (view.finish_seq, view.finished_at) == (1, world.state.log_time)


def test_a_retry_that_waits_says_so() -> None:
    world = World()
    [job] = world.enqueue()
    world.run(job, Outcome.RAISED)
    assert job_views.job_view(world.state, world.job(job)).waiting == "for its next attempt"


def test_a_waiting_job_tells_its_place_if_asked() -> None:
    world = World()
    ids = world.enqueue(1_500)
    [urgent] = world.enqueue(priority=5)
    world.lease("w1", 1)
    world.do(c.Cancel([ids[3]]))

    def place(job: bytes) -> str | None:
        [view] = job_views.get_jobs(world.state, c.GetJobs([job], place=True)).items
        assert isinstance(view, c.JobView)
        return view.waiting

    assert world.is_in(urgent) is State.RUNNING
    assert place(ids[0]) == "for a worker of pool default"
    assert place(ids[-1]) == "for a worker of pool default, behind about 1,499 others"
    [held] = world.lease("w2", 1)
    world.report(held, Outcome.RELEASED, "w2")
    assert place(held) == "for a worker of pool default"
    assert place(ids[1]) == "for a worker of pool default, behind about 1 other"
    [later] = world.enqueue(priority=5)
    assert place(later) == "for a worker of pool default"
    assert place(ids[0]) == "for a worker of pool default, behind about 1 other"


def test_unknown_and_retired_jobs_are_told_apart() -> None:
    world = World(retained_jobs_max=0)
    [job] = world.enqueue()
    world.run(job)
    world.retire()
    codes = [each.code for each in job_views.get_jobs(world.state, c.GetJobs([job, job_id(9)])).items]  # type: ignore[union-attr]
    assert codes == ["expired_job", "unknown_job"]
    refusal = job_views.get_payload(world.state, c.GetPayload(job))
    assert isinstance(refusal, Refusal) and refusal.code == "expired_job"
    [other] = world.enqueue(payload=b"abc")
    assert job_views.get_payload(world.state, c.GetPayload(other)) == c.Payload("json", b"abc")


def test_pages_are_newest_first_and_complete() -> None:
    world = World()
    ids = world.enqueue(7)
    assert [each for page in pages(world, limit=3) for each in page] == ids[::-1]
    assert all(len(page) <= 3 for page in pages(world, limit=3))
    assert pages(World(), limit=3) == [[]]
    # a limit that makes no sense gives small pages, not an error
    assert [each for page in pages(world, limit=0) for each in page] == ids[::-1]


def test_new_jobs_do_not_disturb_a_cursor() -> None:
    world = World()
    ids = world.enqueue(5)
    first = job_views.list_jobs(world.state, c.ListJobs(limit=2))
    world.enqueue(5)
    second = job_views.list_jobs(world.state, c.ListJobs(before=first.before, limit=2))
    assert [view.id for view in [*first.jobs, *second.jobs]] == ids[:0:-1]


def test_filters_and_retired_jobs() -> None:
    world = World(retained_jobs_max=1)
    a = world.enqueue(2, queue="a", batch="x")
    b = world.enqueue(2, queue="b", task="other")
    world.run(a[0])
    world.run(a[1])
    world.retire()
    assert sum(pages(world, queue="a"), []) == [a[1]]
    assert sum(pages(world, task="other"), []) == b[::-1]
    assert sum(pages(world, batch="x", state=State.SUCCEEDED), []) == [a[1]]
    assert sum(pages(world, state=State.RUNNING), []) == []


def test_a_page_looks_at_a_bounded_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selections, "SCAN_MAX", 3)
    world = World()
    [old] = world.enqueue(queue="rare")
    world.enqueue(8)
    found = pages(world, queue="rare")
    assert found[0] == [] and len(found) == 3 and sum(found, []) == [old]


def test_the_feed_is_in_the_order_of_finishing_and_can_be_resumed() -> None:
    world = World()
    ids = world.enqueue(4)
    world.lease("w1", 4)
    order = [ids[2], ids[0], ids[3], ids[1]]
    for job in order:
        world.report(job)
    assert feed(world) == order
    page = job_views.read_feed(world.state, c.ReadFeed(0, 3))
    assert page.next == 3 and feed(world, page.next) == order[3:]
    assert job_views.read_feed(world.state, c.ReadFeed(4)).next == 4
    # and whoever wants only what is new asks where the end is
    end = job_views.read_feed(world.state, c.ReadFeed(-1))
    assert (end.entries, end.next, end.newest) == ([], 4, 4)


def test_a_revived_job_leaves_its_place_and_gets_a_new_one() -> None:
    world = World()
    failed, other = world.enqueue(2, max_attempts=1)
    world.run(failed, Outcome.RAISED)
    world.run(other)
    entry = job_views.read_feed(world.state, c.ReadFeed(0)).entries[0]
    assert (entry.id, entry.state) == (failed, State.FAILED)
    world.do(c.Retry([failed]))
    assert feed(world) == [other]
    world.run(failed)
    # whoever had read up to the end sees it again, and nobody's cursor has moved
    assert feed(world, 2) == [failed] and feed(world) == [other, failed]
    world.check()


def test_a_cursor_survives_retirement() -> None:
    world = World(retained_jobs_max=2)
    ids = world.enqueue(6)
    for job in ids[:4]:
        world.run(job)
    world.retire()
    assert feed(world, 0) == ids[2:4] and feed(world, 3) == ids[3:4]
    # also when everything goes, and the front of the feed is cut off
    world.limits = world.limits._replace(retained_jobs_max=0)
    world.retire()
    assert list(world.state.feed) == [] and world.state.feed.first == 5
    world.check()
    world.run(ids[4])
    page = job_views.read_feed(world.state, c.ReadFeed(1))
    assert [entry.seq for entry in page.entries] == [5] and page.oldest == 5 and page.next == 5
    world.check()


def test_queues_add_up() -> None:
    world = World()
    old, young = world.enqueue(queue="a"), world.after(1.0).enqueue(queue="a", priority=9)
    world.enqueue(queue="b", run_at=world.state.log_time + HOUR)
    world.do(c.PatchQueue("c", True))
    queues = job_views.get_queues(world.state, {"a": 1.5}, {"c": "gpu"}).queues
    assert [(q.name, q.pool, q.paused, sum(q.counts.values())) for q in queues] == [
        ("a", "default", False, 2),
        ("b", "default", False, 1),
        ("c", "gpu", True, 0),
    ]
    assert queues[0].oldest_queued_at == world.job(old[0]).created_at and queues[1].oldest_queued_at is None
    assert queues[0].finished_per_second == 1.5
    world.lease("w1", 2)
    assert young and job_views.get_queues(world.state, {}, {}).queues[0].oldest_queued_at is None


def test_of_many_queues_those_with_the_most_jobs_are_listed() -> None:
    world = World()
    for number in range(20):
        world.enqueue(number + 1, queue=f"q{number:02}")
    found = job_views.get_queues(world.state, {}, {}, c.GetQueues(limit=5))
    assert [queue.name for queue in found.queues] == ["q15", "q16", "q17", "q18", "q19"]
    # and none is left out of the sums
    assert found.unlisted == 15 and found.others["queued"] == sum(range(1, 16))
    [one] = job_views.get_queues(world.state, {}, {}, c.GetQueues(queue="q03")).queues
    assert (one.name, one.counts["queued"]) == ("q03", 4)
    assert job_views.get_queues(world.state, {}, {}, c.GetQueues(queue="never")).queues == []
