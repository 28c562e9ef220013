"""The pair of managers: follow, take over, lead; and what a leader does for replicas and workers."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from jobsvc import commands as c
from jobsvc import commit_loop, leader, orphans
from jobsvc.errors import Fatal, Fenced
from jobsvc.events import AttemptsEnded, JobsEnqueued, JobsLeased
from jobsvc.jobs import BlobRef, Grant, NotLeader, Outcome, Result, State, encode, id_text
from jobsvc.manager import Manager
from jobsvc.object_store import PutOutcome, StoreError
from jobsvc.queue_snapshot import check_invariants, fingerprint
from jobsvc.scaling import MachineRequest, Machines
from jobsvc.settings import PoolSettings

from .manager_world import START, Pair, done, enqueue_of, run, until
from .queue_world import job_id


def same_jobs(first: object, second: object) -> bool:
    for manager in (first, second):
        check_invariants(manager.state)  # type: ignore[attr-defined]
    times = first.state.log_time, second.state.log_time  # type: ignore[attr-defined]
    second.state.log_time = first.state.log_time  # type: ignore[attr-defined]
    try:
        return fingerprint(first.state) == fingerprint(second.state)  # type: ignore[attr-defined]
    finally:
        second.state.log_time = times[1]  # type: ignore[attr-defined]


def test_one_leads_and_the_other_follows() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        # given jobs that the leader has taken
        ids = await pair.enqueue(a, 1, 2, 3)
        # then the standby has them too, and says who leads
        await until(lambda: len(b.state.jobs) == 3)
        assert same_jobs(a, b)
        answers = [
            await b.handle_flight(encode(c.Flight([c.GetJobs(ids)]))),
            await b.wait_feed(encode(c.ReadFeed(0)), 0.0),
        ]
        for answer in answers:
            assert msgspec.msgpack.decode(answer, type=NotLeader) == NotLeader("manager-a")
        assert await pair.raw_report(b) == NotLeader("manager-a")
        status = pair.status(a)
        assert (status.role, status.epoch, status.healthy) == ("leader", 1, True)
        await until(lambda: pair.status(a).applied_records == pair.status(b).applied_records)

    run(story)


def test_two_that_start_together_agree_on_one() -> None:
    async def story(pair: Pair) -> None:
        a, b = pair.start("manager-a"), pair.start("manager-b")
        await until(lambda: {a.role, b.role} == {"leader", "standby"})
        await asyncio.sleep(30.0)
        assert {a.role, b.role} == {"leader", "standby"}
        assert all(not task.done() for task in pair.tasks.values())

    run(story)


def test_a_flight_is_answered_in_order_when_its_record_is_durable() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        # given a store that does not answer for a while
        pair.store.open.clear()
        ids = [job_id(1), job_id(2)]
        asked = [enqueue_of(ids), c.GetJobs(ids[:1]), c.Cancel(ids[1:]), c.Retry([job_id(9)])]
        flight = asyncio.create_task(pair.ask(a, *asked))
        await asyncio.sleep(0.5)  # its record is in the air now, and nothing else is to be written
        read = asyncio.create_task(pair.ask(a, c.GetJobs(ids)))
        # then nobody hears anything, readers neither: what they would hear is not durable
        await asyncio.sleep(1.0)
        assert not flight.done() and not read.done()
        pair.store.open.set()
        accepted, found, cancelled, retried = await flight
        assert accepted == c.Accepted(ids, True) and found.items[0].state is State.QUEUED
        assert cancelled == c.Changed([State.CANCELLED]) and retried.items[0].code == "unknown_job"
        assert [view.state for view in (await read)[0].items] == [State.QUEUED, State.CANCELLED]

    run(story)


def test_many_flights_share_a_record() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await asyncio.gather(*(pair.enqueue(a, number) for number in range(1, 201)))
        enqueues = [
            events for events in await pair.events() if any(isinstance(e, JobsEnqueued) for e in events)
        ]
        assert sum(len(events) for events in enqueues) == 200
        assert len(enqueues) <= 3

    run(story)


def test_a_busy_leader_puts_more_into_a_record_and_a_quiet_one_does_not_wait() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        loop = asyncio.get_running_loop()

        # given a fast store, and callers whose requests come one by one, several at a time
        pair.store.put_seconds = 0.0002
        before = len(await pair.records())
        calls = []
        for number in range(1, 401):
            calls.append(loop.create_task(pair.enqueue(a, number)))
            await asyncio.sleep(0.0005 if number > 20 else 0.0)
        await asyncio.gather(*calls)
        # then they share records
        assert len(await pair.records()) - before < 60
        # and when nobody has come for a while, the next two callers wait for nothing but the store
        await asyncio.sleep(1.0)
        began = loop.time()
        await pair.enqueue(a, 1001)
        alone = loop.time() - began
        began = loop.time()
        await pair.enqueue(a, 1002)
        assert loop.time() - began == pytest.approx(alone)

    run(story)


def test_in_a_busy_leader_a_worker_with_jobs_in_hand_waits_for_company_and_who_has_nothing_does_not() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        pair.store.put_seconds = 0.0002
        loop = asyncio.get_running_loop()
        await pair.enqueue(a, *range(1, 31))
        grants = (await pair.report(a, can_take=20)).grants
        keys = [(grant.job_id, grant.attempt) for grant in grants]

        async def seconds_of_a_report(place: int, caller: bool) -> float:
            # given a leader that has just written a large record
            large = range(100 * (place + 1), 100 * (place + 1) + commit_loop.BUSY_EVENTS)
            await asyncio.gather(*(pair.enqueue(a, number) for number in large))
            # when a worker reports a job and has others, and perhaps a caller comes a moment later
            began = loop.time()
            ends = done(grants[place])
            call = asyncio.create_task(pair.report(a, finished=[ends], holding=keys[place + 1 :]))
            if caller:
                await asyncio.sleep(0.001)
                await pair.enqueue(a, 1000)
            await call
            return loop.time() - began

        # then the record waits for more, but a caller ends that wait for all
        patient = commit_loop.PATIENT_INTERVAL_SECONDS
        assert await seconds_of_a_report(0, caller=False) == pytest.approx(patient, abs=0.002)
        least = commit_loop.BUSY_INTERVAL_SECONDS
        assert await seconds_of_a_report(1, caller=True) == pytest.approx(least, abs=0.002)
        # and so does a worker that has nothing in hand
        large = range(900, 900 + commit_loop.BUSY_EVENTS)
        await asyncio.gather(*(pair.enqueue(a, number) for number in large))
        began = loop.time()
        await pair.report(a, "w2", can_take=1)
        assert loop.time() - began == pytest.approx(least, abs=0.002)

    run(story)


def test_a_worker_that_ran_dry_gets_its_next_job_with_the_answer_to_its_last_report() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        [first] = await pair.enqueue(a, 1)
        [grant] = (await pair.report(a, can_take=5)).grants
        # when it reports the only job that it had, and another one comes soon
        call = asyncio.create_task(pair.report(a, can_take=5, finished=[done(grant)]))
        await until(lambda: a.state.jobs[first].state is State.SUCCEEDED)
        [second] = await pair.enqueue(a, 2)
        assert [each.job_id for each in (await call).grants] == [second]

    run(story)


def test_a_worker_that_ran_dry_waits_but_a_moment_and_a_newer_call_ends_that() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        loop = asyncio.get_running_loop()
        await pair.enqueue(a, 1, 2)
        grants = (await pair.report(a, can_take=5)).grants
        # given one of two jobs finished: it has something to do, and is answered when that is settled
        began = loop.time()
        kept = (grants[1].job_id, grants[1].attempt)
        await pair.report(a, can_take=5, finished=[done(grants[0])], holding=[kept])
        assert loop.time() - began < leader.RAN_DRY_SECONDS
        # when the other one is reported and nothing comes, the answer comes after a moment
        began = loop.time()
        call = asyncio.create_task(pair.report(a, can_take=5, finished=[done(grants[1])]))
        await call
        assert leader.RAN_DRY_SECONDS <= loop.time() - began < 2 * leader.RAN_DRY_SECONDS
        # and a newer call ends such a wait; what was reported is settled before it is answered
        [third] = await pair.enqueue(a, 3)
        [grant] = (await pair.report(a, can_take=5)).grants
        began = loop.time()
        call = asyncio.create_task(pair.report(a, can_take=5, finished=[done(grant)]))
        await asyncio.sleep(0)
        newer = asyncio.create_task(pair.report(a, can_take=5, wait_seconds=5.0))
        assert not (await call).stale
        assert loop.time() - began < leader.RAN_DRY_SECONDS
        durable = [event for events in await pair.events() for event in events]
        ends = [event for event in durable if isinstance(event, AttemptsEnded)]
        assert any(each.job_id == third for event in ends for each in event.finished)
        newer.cancel()

    run(story)


def test_what_others_put_comes_off_the_records() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()

        async def records_in_ten_seconds(puts: int) -> int:
            before, flights = len(await pair.records()), []
            for number in range(500):
                jobs = enqueue_of([job_id(1_000 * (puts + 1) + number)])
                flight = c.Flight([jobs], puts if number % 50 == 0 else 0)
                flights.append(asyncio.create_task(a.handle_flight(encode(flight))))
                await asyncio.sleep(0.02)
            records = len(await pair.records()) - before
            await asyncio.gather(*flights)
            return records

        # given thirty PUTs a second, of which others make none, then ten
        alone, shared = await records_in_ten_seconds(0), await records_in_ten_seconds(10)
        # then the journal keeps within what is left
        assert 200 <= alone <= 310
        assert shared <= alone - 80

    run(story, commit_interval_seconds=1 / 30)


def test_packs_that_nobody_refers_to_are_deleted_when_they_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    # given days that are minutes
    monkeypatch.setattr(orphans, "ORPHAN_SECONDS", 120.0)
    monkeypatch.setattr(orphans, "FIRST_LOOK_SECONDS", 10.0)
    monkeypatch.setattr(orphans, "LOOK_EVERY_SECONDS", 30.0)
    monkeypatch.setattr(orphans, "SURE_SECONDS", 10.0)

    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        # given packs of which a job needs one
        needed, orphan = (f"payloads/{int(START * 1000):012x}-{n}" for n in (1, 2))
        for key in (needed, orphan):
            await pair.store.put_new(key, b"{}")
        command = enqueue_of([job_id(1)])
        command.jobs[0].payload = BlobRef(needed, 0, 2)
        await pair.ask(a, command)
        # when it is older than anyone who might still refer to it
        await asyncio.sleep(90.0)
        assert orphan in pair.store_keys()
        await asyncio.sleep(90.0)
        # then the other one is gone
        assert orphan not in pair.store_keys()
        assert needed in pair.store_keys()

    run(story)


def test_who_waits_gets_the_lease_in_the_record_of_the_enqueue() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        # given an idle worker that waits
        waiting = asyncio.create_task(pair.report(a, can_take=5, wait_seconds=20.0))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        # when a job comes
        [job] = await pair.enqueue(a, 1)
        # then the worker has it, and one record says both
        orders = await waiting
        assert [grant.job_id for grant in orders.grants] == [job]
        assert orders.options[orders.grants[0].option].task == "demo.task"
        [record] = [e for e in await pair.events() if any(isinstance(each, JobsEnqueued) for each in e)]
        assert [type(event) for event in record] == [JobsEnqueued, JobsLeased]

    run(story)


def test_few_jobs_are_spread_over_those_who_wait() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        calls = [
            asyncio.create_task(pair.report(a, f"w{n}", can_take=100, wait_seconds=20.0)) for n in range(4)
        ]
        await asyncio.sleep(0.5)
        await pair.enqueue(a, *range(1, 9))
        assert [len((await call).grants) for call in calls] == [2, 2, 2, 2]

    run(story)


def test_a_newer_call_ends_an_older_one() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        older = asyncio.create_task(pair.report(a, can_take=1, wait_seconds=60.0))
        await asyncio.sleep(0.5)
        newer = asyncio.create_task(pair.report(a, can_take=1, wait_seconds=60.0))
        assert (await asyncio.wait_for(older, 1.0)).grants == []
        await pair.enqueue(a, 1)
        assert len((await newer).grants) == 1

    run(story)


def test_a_lost_grant_is_granted_again_under_the_same_attempt() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1, 2)
        first = await pair.report(a, can_take=2)
        # when the answer got lost, the worker asks again with empty hands
        again = await pair.report(a, can_take=2)
        assert again.grants == first.grants and len(first.grants) == 2
        # when half of it arrived, it gets the other half
        held = [(first.grants[0].job_id, 1)]
        assert (await pair.report(a, holding=held, can_take=1)).grants == first.grants[1:]

    run(story)


def test_a_completion_is_taken_once_and_its_repetition_is_stale() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1)
        [grant] = (await pair.report(a, can_take=1)).grants
        feed = asyncio.create_task(pair.feed(a, 0, 30.0))
        assert (await pair.report(a, finished=[done(grant)])).stale == []
        assert (await pair.report(a, finished=[done(grant)])).stale == [(grant.job_id, 1)]
        assert [entry.id for entry in (await feed).entries] == [grant.job_id]
        assert c.Count("stale_results", {}, 1) in pair.status(a).counters

    run(story)


def test_a_leader_that_was_replaced_calls_no_place_of_its_successor_beyond_the_end() -> None:
    async def story(pair: Pair) -> None:
        # given a leader that does not know that it was replaced, and a job that ended under its successor
        a, b = await pair.leader_and_standby()
        pair.peers["manager-a"].cut = pair.peers["manager-b"].cut = True
        b.suspect_leader()
        await until(lambda: b.role == "leader")
        await pair.enqueue(b, 1)
        [grant] = (await pair.report(b, can_take=1)).grants
        await pair.report(b, finished=[done(grant)])
        place = (await pair.feed(b, 0)).next
        assert (a.role, place) == ("leader", 1)
        # when a reader of that place asks the old one, then it says nothing, and ends
        asked = [
            asyncio.ensure_future(pair.feed(a, place)),
            asyncio.ensure_future(pair.ask(a, c.ReadFeed(place))),
        ]
        await until(lambda: pair.tasks["manager-a"].done())
        assert not any(each.done() for each in asked)
        for each in asked:
            each.cancel()
        # and a place that was never given is none of the feed, as the new one says at once
        page = await pair.feed(b, 9, 30.0)
        assert (page.reset, len(page.entries), page.next) == (c.FEED_AHEAD, 1, 1)

    run(story)


def test_the_feed_waits_no_longer_than_it_was_told() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        began = asyncio.get_running_loop().time()
        assert (await pair.feed(a, 0, 5.0)).entries == []
        assert 5.0 <= asyncio.get_running_loop().time() - began < 5.5

    run(story)


def test_a_dead_leader_is_replaced_at_once_and_knows_everything() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        await pair.enqueue(a, 1, 2)
        [grant] = (await pair.report(a, can_take=1)).grants
        # when the leader dies, and the rim says so
        pair.kill("manager-a")
        began = asyncio.get_running_loop().time()
        b.suspect_leader()
        await until(lambda: b.role == "leader")
        assert asyncio.get_running_loop().time() - began < 0.2
        assert 0.0 <= pair.status(b).takeover_seconds < 1.3  # the dead one showed life each second
        # then the worker re-attaches: what it holds stays its own, its completion counts once
        orders = await pair.report(b, holding=[(grant.job_id, 1)], busy=True)
        assert orders.drop == [] and orders.grants == []
        assert (await pair.report(b, finished=[done(grant)])).stale == []
        assert [view.state for view in (await pair.ask(b, c.GetJobs([job_id(1), job_id(2)])))[0].items] == [
            State.SUCCEEDED,
            State.QUEUED,
        ]
        assert pair.status(b).epoch == 2
        # and the dead one comes back as standby
        again = pair.start("manager-a")
        await until(lambda: again.role == "standby" and same_jobs(b, again))

    run(story)


def test_silence_alone_is_enough_to_take_over_and_the_old_leader_is_fenced() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        # given a leader that hangs in its store and cannot reach the standby
        pair.peers["manager-a"].cut = True
        stuck = pair.store.put_new
        held = asyncio.Event()

        async def hold(key: str, data: bytes) -> object:
            if asyncio.current_task() in pair_tasks(a):
                await held.wait()
            return await stuck(key, data)

        pair.store.put_new = hold  # type: ignore[method-assign]
        answer = asyncio.create_task(pair.ask(a, enqueue_of([job_id(7)])))
        # when the standby has heard nothing for long enough, it leads
        await until(lambda: b.role == "leader", 20.0)
        assert pair.status(b).takeover_seconds >= pair.settings.takeover_silence_seconds
        # and when the old one wakes, it ends, and answers nobody
        held.set()
        with pytest.raises((Fenced, Fatal)):
            await asyncio.wait_for(asyncio.shield(pair.tasks["manager-a"]), 30.0)
        assert not answer.done()
        answer.cancel()
        [found] = await pair.ask(b, c.GetJobs([job_id(7)]))
        assert found.items[0].code == "unknown_job"  # its sender sends it again

    def pair_tasks(manager: object) -> set[object]:
        leader = manager.leader  # type: ignore[attr-defined]
        return leader._tasks if leader is not None else set()

    run(story, stepdown_seconds=60.0)


def test_a_leader_that_commits_but_cannot_reach_the_standby_stays_leader() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        pair.peers["manager-a"].cut = True
        for number in range(1, 31):
            await pair.enqueue(a, number)
            await asyncio.sleep(1.0)
        assert (a.role, b.role) == ("leader", "standby")
        await until(lambda: same_jobs(a, b))
        # and when it can again, pushes go on where the standby is
        pair.peers["manager-a"].cut = False
        await pair.enqueue(a, 99)
        await until(lambda: same_jobs(a, b), 2.0)

    run(story)


def test_log_time_never_falls_whatever_the_clocks_say() -> None:
    async def story(pair: Pair) -> None:
        # given a standby whose clock is an hour behind
        pair.clock_errors["manager-b"] = -3600.0
        a, b = await pair.leader_and_standby()
        await pair.enqueue(a, 1)
        pair.kill("manager-a")
        b.suspect_leader()
        await until(lambda: b.role == "leader")
        await pair.enqueue(b, 2)
        # then its records go on where the other one's ended
        times = [record.log_time for record in await pair.records()]
        assert times == sorted(times)
        assert b.state.jobs[job_id(2)].created_at >= b.state.jobs[job_id(1)].created_at
        # and a worker that fails now is not retried an hour later than it should be
        [one, _] = (await pair.report(b, can_take=2)).grants
        await pair.report(b, finished=[done(one, Outcome.RAISED)])
        await until(lambda: b.state.jobs[one.job_id].state is State.QUEUED, 10.0)

    run(story)


def test_a_read_after_a_long_sleep_needs_a_commit() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.ask(a, c.GetQueues())
        before = len(await pair.records())
        # given a leader that committed just now, a read costs nothing
        await pair.enqueue(a, 1)
        await pair.ask(a, c.GetQueues())
        assert len(await pair.records()) == before + 1
        # when it has not committed for longer, a read waits for a record of its own
        assert a.leader is not None
        a.leader.commits.committed_at -= 100.0
        await pair.ask(a, c.GetQueues())
        assert len(await pair.records()) == before + 2

    run(story, idle_record_seconds=1000.0, takeover_silence_seconds=10_000.0)


def test_the_standby_writes_snapshots_and_a_third_recovers_from_one() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        for number in range(1, 61):
            await pair.enqueue(a, number)
            if number % 3 == 0:
                orders = await pair.report(a, can_take=1)
                await pair.report(a, finished=[done(grant) for grant in orders.grants])
        await until(lambda: any(key.startswith("snapshots/") for key in pair.store_keys()))
        await until(lambda: "log/0000000001/000000000000" not in pair.store_keys())
        # when both die, and one comes back
        pair.kill("manager-a")
        pair.kill("manager-b")
        again = pair.start("manager-b")
        await until(lambda: again.role == "leader")
        # then it has everything
        assert len(again.state.jobs) == 60 and again.state.feed.next_place == a.state.feed.next_place
        a.state.epoch = again.state.epoch
        assert same_jobs(a, again)

    run(story, snapshot_records=10)


def test_a_lost_workers_outbox_is_settled_before_its_leases_are_given_back() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        ids = await pair.enqueue(a, 1, 2, 3)
        grants = (await pair.report(a, can_take=3)).grants
        holding = [(grant.job_id, grant.attempt) for grant in grants]
        await pair.report(a, holding=holding[1:], busy=True, finished=[])
        await pair.report(a, holding=holding[1:], busy=True, can_take=0)
        # given a worker that wrote its first completion to the outbox, runs the second job, and dies
        await pair.store.put_new("outbox/w1/s/000001", encode([done(grants[0])]))
        del pair.fleet.there["w1"]
        a.worker_gone("w1")
        await until(lambda: not a.state.leases)
        # then the first counts, the second is charged, the third is not
        assert [a.state.jobs[each].state for each in ids] == [State.SUCCEEDED, State.QUEUED, State.QUEUED]
        assert [a.state.jobs[each].crashes for each in ids] == [0, 1, 0]
        await until(lambda: "outbox/w1/s/000001" not in pair.store_keys())
        assert "w1" not in a.leader.registry.workers  # type: ignore[union-attr]
        # and what the dead one held, it must drop if it was not dead at all
        orders = await pair.report(a, holding=holding[1:], session="s")
        assert orders.drop == holding[1:]

    run(story)


async def _two_that_lead(pair: Pair) -> tuple[Manager, Manager, Grant]:
    """manager-b has taken over and leased a job to w1; manager-a has not noticed, and has just committed."""
    a, b = await pair.leader_and_standby()
    for peer in pair.peers.values():
        peer.cut = True
    await pair.enqueue(a, 1)
    b.suspect_leader()
    await until(lambda: b.role == "leader")
    [grant] = (await pair.report(b, can_take=1)).grants
    assert a.role == "leader"
    return a, b, grant


def test_who_was_replaced_may_call_a_result_stale_but_says_which_epoch_it_leads() -> None:
    async def story(pair: Pair) -> None:
        a, b, grant = await _two_that_lead(pair)
        key = (grant.job_id, grant.attempt)
        of_a = await pair.report(a, holding=[key])
        assert (of_a.drop, of_a.epoch) == ([key], 1)
        of_a = await pair.report(a, finished=[done(grant)])
        assert (of_a.stale, of_a.epoch) == ([key], 1)
        of_b = await pair.report(b, finished=[done(grant)])
        assert (of_b.stale, of_b.epoch) == ([], 2)
        assert b.state.jobs[grant.job_id].state is State.SUCCEEDED

    run(story)


def test_who_was_replaced_deletes_no_outbox() -> None:
    async def story(pair: Pair) -> None:
        a, b, grant = await _two_that_lead(pair)
        await pair.store.put_new("outbox/w1/s/000001", encode([done(grant)]))
        a.worker_gone("w1")
        await until(lambda: pair.tasks["manager-a"].done())
        assert isinstance(pair.tasks["manager-a"].exception(), Fenced)
        assert "outbox/w1/s/000001" in pair.store_keys()
        b.worker_gone("w1")
        await until(lambda: b.state.jobs[grant.job_id].state is State.SUCCEEDED)

    run(story)


def test_a_silent_worker_is_lost_after_the_lease_time_also_under_a_new_leader() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        [job] = await pair.enqueue(a, 1)
        await pair.report(a, can_take=1)
        pair.kill("manager-a")
        b.suspect_leader()
        await until(lambda: b.role == "leader")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await until(lambda: b.state.jobs[job].state is State.QUEUED)
        # then it was given the full time again, and not much more
        assert 6.0 <= loop.time() - began <= 8.5
        assert b.state.jobs[job].failures == 0

    run(story, lease_seconds=6.0, heartbeat_seconds=1.0)


def test_a_new_life_under_the_same_name_gets_nothing_of_the_old_one() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1)
        [grant] = (await pair.report(a, can_take=1, session="old")).grants
        await pair.report(a, holding=[(grant.job_id, 1)], busy=True, session="old")
        [again] = (await pair.report(a, can_take=1, session="new")).grants
        assert (again.job_id, again.attempt) == (grant.job_id, 2)
        assert a.state.jobs[grant.job_id].crashes == 1

    run(story)


def test_what_was_never_leased_is_to_be_dropped() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1)
        strange = [(job_id(1), 1), (job_id(99), 4)]
        orders = await pair.report(a, holding=strange)
        assert orders.drop == strange

    run(story)


def test_a_cancel_wakes_the_worker_that_runs_the_job() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        [job] = await pair.enqueue(a, 1)
        await pair.report(a, can_take=1)
        call = asyncio.create_task(pair.report(a, holding=[(job, 1)], busy=True, wait_seconds=60.0))
        await asyncio.sleep(0.5)
        [answer] = await pair.ask(a, c.Cancel([job]))
        assert answer == c.Changed([State.RUNNING])
        orders = await asyncio.wait_for(call, 1.0)
        assert orders.cancel == [(job, 1)]
        # it is told again until it confirms
        assert (await pair.report(a, holding=[(job, 1)], busy=True)).cancel == [(job, 1)]
        [grant] = [done(type("G", (), {"job_id": job, "attempt": 1})(), Outcome.CANCELLED)]
        await pair.report(a, finished=[grant])
        assert a.state.jobs[job].state is State.CANCELLED

    run(story)


def test_a_delayed_job_comes_in_time() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1, backoff_base_seconds=20.0, backoff_cap_seconds=20.0)
        [grant] = (await pair.report(a, can_take=1)).grants
        await pair.report(a, finished=[done(grant, Outcome.RAISED)])
        details = a.state.jobs[grant.job_id].details
        assert details is not None and details.run_at is not None
        due = details.run_at
        [again] = (await pair.report(a, can_take=1, wait_seconds=60.0)).grants
        assert again.attempt == 2
        assert 0.0 <= a.state.log_time - due < 0.1

    run(story)


def test_jobs_past_their_retention_leave_a_line_and_nothing_else() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        pack = BlobRef("payloads/p", 0, 2)
        await pair.store.put_new(pack.key, b"{}")
        job = job_id(1)
        command = enqueue_of([job])
        command.jobs[0].payload = pack
        await pair.ask(a, command)
        [grant] = (await pair.report(a, can_take=1)).grants
        owned = [f"results/{id_text(job)}/1", f"logs/{id_text(job)}/1/000000"]
        for key in owned:
            await pair.store.put_new(key, b"x")
        finished = done(grant, log_bytes=1)
        finished.result = Result("raw", ref=BlobRef(owned[0], 0, 1))
        await pair.report(a, finished=[finished])
        await until(lambda: job not in a.state.jobs, 40.0)
        await until(lambda: not {pack.key, *owned} & set(pair.store_keys()))
        [key] = [key for key in pair.store_keys() if key.startswith("finished/")]
        line = msgspec.json.decode((await pair.store.get(key)) or b"")
        assert (line["id"], line["state"], len(line["attempts"])) == (id_text(job), "succeeded", 1)
        [found] = await pair.ask(a, c.GetJobs([job]))
        assert found.items[0].code == "expired_job"

    run(story, retention_seconds=10.0)


def test_retirement_outlasts_a_store_that_does_not_answer() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        [job] = await pair.enqueue(a, 1)
        [grant] = (await pair.report(a, can_take=1)).grants
        await pair.store.put_new(f"logs/{id_text(job)}/1/000000", b"x")
        await pair.report(a, finished=[done(grant, log_bytes=1)])
        # given a store that fails each request a few times, and whose first put of the lines says nothing
        whole_list, whole_put, failures = pair.store.list, pair.store.put_new, iter(range(1000))

        async def flaky_list(prefix: str) -> list[str]:
            if prefix.startswith("logs/") and next(failures) < 3:
                raise StoreError("away")
            return await whole_list(prefix)

        async def flaky_put(key: str, data: bytes) -> PutOutcome:
            if key.startswith("finished/") and next(failures) < 2:
                return PutOutcome.UNKNOWN
            return await whole_put(key, data)

        pair.store.list, pair.store.put_new = flaky_list, flaky_put  # type: ignore[method-assign]
        # then the line is written, the log is deleted, and the leader leads
        await until(lambda: not any(key.startswith("logs/") for key in pair.store_keys()))
        assert any(key.startswith("finished/") for key in pair.store_keys())
        assert a.role == "leader" and job not in a.state.jobs

    run(story, retention_seconds=5.0)


def test_deleting_many_objects_does_not_stop_time() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        [first] = await pair.enqueue(a, 1)
        command = enqueue_of([job_id(2)])
        command.jobs[0].run_at = a.state.log_time + 30.0
        await pair.ask(a, command)
        [grant] = (await pair.report(a, can_take=1)).grants
        finished = done(grant)
        finished.result = Result("raw", ref=BlobRef("results/x", 0, 1))
        await pair.report(a, finished=[finished])
        # given a store that hangs in a delete
        hanging = asyncio.Event()

        async def hang(key: str) -> None:
            hanging.set()
            await asyncio.sleep(3600.0)

        pair.store.delete = hang  # type: ignore[method-assign]
        await asyncio.wait_for(hanging.wait(), 25.0)
        # then a delayed job comes in time all the same
        assert first not in a.state.jobs
        [late] = (await pair.report(a, can_take=1, wait_seconds=60.0)).grants
        assert late.job_id == job_id(2)
        assert asyncio.get_running_loop().time() < 40.0

    run(story, retention_seconds=5.0)


def test_grants_after_a_recovery_come_in_the_order_of_the_queue() -> None:
    async def story(pair: Pair) -> None:
        a, b = await pair.leader_and_standby()
        # given a worker that never heard of three leases, the most urgent of which is the youngest
        await pair.enqueue(a, 1, 2)
        await pair.enqueue(a, 3, priority=9)
        lost = await pair.report(a, can_take=3)
        for number in range(10, 30):
            await pair.enqueue(a, number, queue="other")
        await until(lambda: any(key.startswith("snapshots/") for key in pair.store_keys()))
        # when everything comes back from a snapshot
        pair.kill("manager-a")
        pair.kill("manager-b")
        again = pair.start("manager-b")
        await until(lambda: again.role == "leader")
        # then it is told in the same order
        granted = (await pair.report(again, can_take=3)).grants
        assert [grant.job_id for grant in granted] == [job_id(3), job_id(1), job_id(2)]
        assert [g.job_id for g in lost.grants] == [g.job_id for g in granted]

    run(story, snapshot_records=10)


# --- pools ----------------------------------------------------------------------------------------


def test_a_pool_grows_with_the_work_and_empties_when_it_is_done() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, *range(1, 61))
        await until(lambda: len(pair.fleet.started) == 3)
        assert pair.fleet.started == [f"worker-default-1.{n}" for n in (1, 2, 3)]

        async def work(name: str) -> str:
            finished = []
            while True:
                orders = await pair.report(a, name, finished=finished, can_take=50, wait_seconds=5.0)
                if orders.retire:
                    await pair.report(a, name, leaving=True)
                    pair.fleet.there.pop(name)
                    return name
                finished = [done(grant) for grant in orders.grants]

        left = await asyncio.gather(*(work(name) for name in list(pair.fleet.started)))
        assert sorted(left) == pair.fleet.started and pair.fleet.there == {}
        assert a.state.totals()[State.SUCCEEDED] == 60
        await until(lambda: not a.leader.registry.workers)  # type: ignore[union-attr]

    pools = {"default": PoolSettings(max_workers=3, idle_seconds=4.0)}
    run(story, pools=pools)


def test_a_worker_that_the_fleet_does_not_know_is_lost() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        [job] = await pair.enqueue(a, 1)
        await pair.report(a, can_take=1)
        del pair.fleet.there["w1"]
        began = asyncio.get_running_loop().time()
        await until(lambda: a.state.jobs[job].state is State.QUEUED)
        assert asyncio.get_running_loop().time() - began < 5.0

    run(story)


def test_a_worker_that_was_asked_to_leave_and_does_not_is_ended() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        await pair.report(a)
        await until(lambda: pair.fleet.ended == ["w1"], 120.0)

    pools = {"default": PoolSettings(max_workers=0, idle_seconds=1.0)}
    run(story, lease_seconds=6.0, heartbeat_seconds=1.0, pools=pools)


def test_a_job_says_which_machines_its_pool_waits_for() -> None:
    async def story(pair: Pair) -> None:
        # given workers that do not start, and an autoscaler that has asked for machines
        a, _ = await pair.leader_and_standby()
        pair.fleet.outlook = Machines(requested=[MachineRequest("worker-a", 2, START)])
        [job] = await pair.enqueue(a, 1)
        # then the job says so after a moment
        await until(lambda: "machines" in str(a.leader and a.leader.pool_views["default"].waiting))
        [found] = await pair.ask(a, c.GetJobs([job]))
        said = "for a worker of pool default: 1 worker to start: waiting for 2 machines since 13:46:40 UTC"
        assert found.items[0].waiting == said
        # and no longer when a worker is there
        [name] = pair.fleet.started
        waiting = asyncio.create_task(pair.report(a, name, wait_seconds=20.0))
        await until(lambda: a.leader is not None and a.leader.pool_views["default"].waiting is None)
        [found] = await pair.ask(a, c.GetJobs([job]))
        assert found.items[0].waiting == "for a worker of pool default"
        waiting.cancel()

    run(story, pools={"default": PoolSettings(max_workers=5)})


def test_where_machines_are_refused_workers_wait_for_other_types() -> None:
    async def story(pair: Pair) -> None:
        a, _ = await pair.leader_and_standby()
        fleet = pair.fleet

        def refused(*types: str, impossible: bool = False) -> Machines:
            assert a.leader is not None
            now = a.leader.commits.now()
            requests = [MachineRequest(each, 1, now, "there is none") for each in types]
            return Machines(refused=requests, impossible=[{"CPU": 1}] if impossible else [])

        # given a worker that waits for a machine of a type that the cloud has not
        await pair.enqueue(a, 1)
        await until(lambda: len(fleet.there) == 1)
        [first] = fleet.there
        fleet.outlook = refused("worker-a")
        # then another one is started in its place, not on that type; and not on the next that is refused
        await until(lambda: fleet.ended == [first] and len(fleet.there) == 1)
        assert fleet.not_on == {"worker-a"}
        fleet.outlook = refused("worker-a", "worker-b")
        await until(lambda: len(fleet.ended) == 2 and len(fleet.there) == 1)
        assert fleet.not_on == {"worker-a", "worker-b"}
        # and when there are no others, on any
        fleet.outlook = refused("worker-a", "worker-b", impossible=True)
        await until(lambda: len(fleet.ended) == 3 and len(fleet.there) == 1)
        assert fleet.not_on == frozenset()
        # where it stays
        await asyncio.sleep(20.0)
        assert len(fleet.ended) == 3

    run(story, pools={"default": PoolSettings(max_workers=5)})


def test_a_worker_that_was_given_up_is_replaced_though_its_process_is_still_listed() -> None:
    async def story(pair: Pair) -> None:
        # given a worker that holds a job when its machine is gone, and a fleet that does not see that
        a, _ = await pair.leader_and_standby()
        await pair.enqueue(a, 1)
        await until(lambda: len(pair.fleet.there) == 1)
        [gone] = pair.fleet.there
        assert (await pair.report(a, gone, can_take=1)).grants
        # then it is ended and another one is started when its lease has passed
        began = asyncio.get_running_loop().time()
        await until(lambda: len(pair.fleet.started) == 2)
        assert asyncio.get_running_loop().time() - began < 35.0
        assert pair.fleet.ended == [gone]
        assert gone not in pair.fleet.there

    run(story, pools={"default": PoolSettings(max_workers=5)})


@pytest.mark.parametrize("idle_seconds", [1.0, 4.0, 60.0])
def test_a_leader_that_has_nothing_to_write_is_healthy(idle_seconds: float) -> None:
    async def story(pair: Pair) -> None:
        leader, _ = await pair.leader_and_standby()
        for _ in range(30):
            await asyncio.sleep(9.0)
            assert leader.describe().problem is None

    run(story, idle_record_seconds=idle_seconds)
