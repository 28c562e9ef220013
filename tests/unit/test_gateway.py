"""The gateway: what travels together, what waits for what, and what callers are told."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from jobsvc import commands as c
from jobsvc import flights, gateway, payload_packs
from jobsvc.errors import Refusal, Refused, Unavailable
from jobsvc.flights import BadReply
from jobsvc.gateway import Gateway
from jobsvc.jobs import BlobRef, Grant, JobOptions, NewJob, State
from jobsvc.object_store import PutOutcome, StoreError
from jobsvc.settings import Settings

from ..simulation import virtual_loop
from .http_world import Replica, run
from .manager_world import SlowStore, until
from .queue_world import job_id

OPTIONS = JobOptions("jobsvc.echo")


def enqueue(*payloads: bytes, first: int = 1) -> c.Enqueue:
    jobs = [NewJob(job_id(first + place), 0, payload) for place, payload in enumerate(payloads)]
    return c.Enqueue([OPTIONS], jobs)


class ScriptedManagers:
    """Answers flights when the story lets it. Enqueues are accepted, everything else gets its own echo."""

    def __init__(self) -> None:
        self.flights: list[c.Flight] = []
        self.may_land = asyncio.Event()
        self.may_land.set()
        self.unavailable = False

    async def send(self, flight: c.Flight) -> c.FlightReply:
        self.flights.append(flight)
        await self.may_land.wait()
        if self.unavailable:
            raise Unavailable("nobody leads")
        return c.FlightReply([self.answer(request) for request in flight.requests])

    def answer(self, request: c.Request) -> c.Reply:
        if isinstance(request, c.Enqueue):
            return c.Accepted([job.id for job in request.jobs], True)
        if isinstance(request, c.GetPayload):
            return c.Payload("json", request.id)
        return c.Changed([])

    async def wait_feed(self, query: c.ReadFeed, wait_seconds: float) -> c.FeedPage:
        raise AssertionError("nobody waits")

    async def statuses(self) -> list[c.ManagerStatus]:
        return []


class World:
    def __init__(self, **settings: Any) -> None:
        self.managers = ScriptedManagers()
        self.store = SlowStore()
        self.numbers = 1_000_000
        self.gateway = Gateway(
            self.managers, self.store, Settings(**settings), new_id=self._new_id, wall=lambda: 1_000_000.0
        )

    def _new_id(self) -> bytes:
        self.numbers += 1
        return job_id(self.numbers)

    def ask(self, *requests: c.Request) -> asyncio.Task[list[c.Reply]]:
        return asyncio.get_running_loop().create_task(self.gateway.ask(*requests))


def tell(story: Any, **settings: Any) -> None:
    async def whole() -> None:
        await story(World(**settings))

    virtual_loop.run(whole())


# --- flights --------------------------------------------------------------------------------------------


def test_a_lone_request_leaves_at_once() -> None:
    async def story(world: World) -> None:
        began = asyncio.get_running_loop().time()
        [answer] = await world.gateway.ask(enqueue(b"x"))
        assert answer == c.Accepted([job_id(1)], True)
        assert asyncio.get_running_loop().time() == began
        assert len(world.managers.flights) == 1

    tell(story)


def test_what_arrives_together_travels_together_and_each_gets_its_own_reply() -> None:
    async def story(world: World) -> None:
        # given 300 requests at the same time
        asked = [world.ask(enqueue(b"x", first=n)) for n in range(1, 301)]
        answers = await asyncio.gather(*asked)
        # then one call was enough, and nobody got another's answer
        assert len(world.managers.flights) == 1
        assert [answer.ids for [answer] in answers] == [[job_id(n)] for n in range(1, 301)]  # type: ignore[union-attr]

    tell(story)


def test_requests_gather_while_flights_are_in_the_air() -> None:
    async def story(world: World) -> None:
        world.managers.may_land.clear()
        asked = []
        for n in range(1, 101):
            asked.append(world.ask(enqueue(b"x", first=n)))
            await asyncio.sleep(0.001)
        # two flights are in the air, and nothing else was sent
        assert [len(flight.requests) for flight in world.managers.flights] == [1, 1]
        world.managers.may_land.set()
        await asyncio.gather(*asked)
        assert [len(flight.requests) for flight in world.managers.flights] == [1, 1, 98]

    tell(story)


def test_callers_who_were_answered_together_travel_together_again() -> None:
    async def story(world: World) -> None:
        # given twenty callers whose requests were answered by one flight
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*[world.ask(enqueue(b"x", first=n)) for n in range(1, 21)])
        # when they come back, each a little later than the one before
        asked = []
        for n in range(21, 41):
            asked.append(world.ask(enqueue(b"x", first=n)))
            await asyncio.sleep(0.0001)
        await asyncio.gather(*asked)
        # then nobody left alone, and the last one was not kept waiting
        assert [len(flight.requests) for flight in world.managers.flights] == [20, 20]
        assert loop.time() - began < flights.GATHER_SECONDS

    tell(story)


def test_small_flights_become_one_large_one() -> None:
    async def story(world: World) -> None:
        # given two flights in the air, and a few more who wait
        world.managers.may_land.clear()
        asked = []
        for n in range(1, 11):
            asked.append(world.ask(enqueue(b"x", first=n)))
            await asyncio.sleep(0.0001)
        assert [len(flight.requests) for flight in world.managers.flights] == [1, 1]
        # when these land and their callers come back
        world.managers.may_land.set()
        await asyncio.gather(*asked[:2])
        asked += [world.ask(enqueue(b"x", first=n)) for n in (11, 12)]
        await asyncio.gather(*asked)
        # then all travel together
        assert [len(flight.requests) for flight in world.managers.flights] == [1, 1, 10]

    tell(story)


def test_callers_who_do_not_come_back_are_waited_for_but_a_moment() -> None:
    async def story(world: World) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*[world.ask(enqueue(b"x", first=n)) for n in range(1, 21)])
        # when one of twenty comes back at once, it waits for the others for a moment
        began = loop.time()
        await world.gateway.ask(enqueue(b"x", first=21))
        assert loop.time() - began == pytest.approx(flights.GAP_SECONDS)
        # and it waits but a moment however many drop in one by one
        await asyncio.gather(*[world.ask(enqueue(b"x", first=n)) for n in range(101, 121)])
        asked = []
        for n in range(121, 130):
            asked.append(world.ask(enqueue(b"x", first=n)))
            await asyncio.sleep(0.9 * flights.GAP_SECONDS)
        await asyncio.gather(*asked)
        assert [len(flight.requests) for flight in world.managers.flights[-2:]] == [6, 3]
        # and when one comes later, for nobody
        await asyncio.sleep(1)
        began = loop.time()
        await world.gateway.ask(enqueue(b"x", first=22))
        assert loop.time() == began

    tell(story)


def test_a_flight_is_bounded_in_bytes_and_in_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "FLIGHT_BYTES_MAX", 10_000)
    monkeypatch.setattr(flights, "FLIGHT_REQUESTS_MAX", 7)

    async def story(world: World) -> None:
        await asyncio.gather(*[world.ask(enqueue(b"x" * 4_000, first=n)) for n in range(1, 7)])
        assert [len(flight.requests) for flight in world.managers.flights] == [2, 2, 2]
        world.managers.flights.clear()
        await asyncio.gather(*[world.ask(c.GetPayload(job_id(n))) for n in range(20)])
        assert [len(flight.requests) for flight in world.managers.flights] == [7, 7, 6]

    tell(story)


def test_requests_of_one_call_travel_in_one_flight_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "FLIGHT_REQUESTS_MAX", 3)

    async def story(world: World) -> None:
        pairs = [world.ask(c.GetPayload(job_id(n)), c.GetPayload(job_id(n + 50))) for n in range(4)]
        for n, replies in enumerate(await asyncio.gather(*pairs)):
            assert replies == [c.Payload("json", job_id(n)), c.Payload("json", job_id(n + 50))]
        assert [len(flight.requests) for flight in world.managers.flights] == [2, 2, 2, 2]

    tell(story)


def test_when_nobody_answers_commands_are_unknown_and_what_was_not_sent_was_not_done() -> None:
    async def story(world: World) -> None:
        world.managers.may_land.clear()
        world.managers.unavailable = True
        sent = world.ask(enqueue(b"x"))
        await asyncio.sleep(0.01)
        asked = world.ask(c.GetPayload(job_id(1)))
        await asyncio.sleep(0.01)
        behind = world.ask(enqueue(b"y", first=2))
        await asyncio.sleep(0.01)
        world.managers.may_land.set()
        codes = [(await each)[0].code for each in (sent, asked, behind)]  # type: ignore[union-attr]
        assert codes == ["unknown_outcome", "no_leader", "no_leader"]
        refusal = (await sent)[0]
        assert isinstance(refusal, Refusal) and refusal.retry_after_seconds
        # and when somebody leads again, it goes on
        world.managers.unavailable = False
        assert await world.gateway.ask(enqueue(b"x")) == [c.Accepted([job_id(1)], True)]

    tell(story)


def test_more_than_may_wait_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flights, "WAITING_BYTES_MAX", 1_000)

    async def story(world: World) -> None:
        world.managers.may_land.clear()
        asked = []
        for n in range(1, 8):
            asked.append(world.ask(enqueue(b"x" * 300, first=n)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        world.managers.may_land.set()
        answers = [answer for [answer] in await asyncio.gather(*asked)]
        refused = [answer.code for answer in answers if isinstance(answer, Refusal)]
        assert refused == ["overloaded"] * len(refused) and refused
        accepted = sum(len(flight.requests) for flight in world.managers.flights)
        assert accepted + len(refused) == 7

    tell(story)


def test_a_caller_that_goes_away_takes_nothing_back() -> None:
    async def story(world: World) -> None:
        # given two flights in the air, and an enqueue and a query behind them
        world.managers.may_land.clear()
        in_the_air = [world.ask(enqueue(b"x", first=1))]
        await asyncio.sleep(0.01)
        in_the_air.append(world.ask(enqueue(b"x", first=2)))
        await asyncio.sleep(0.01)
        behind, query = world.ask(enqueue(b"x", first=3)), world.ask(c.GetPayload(job_id(9)))
        await asyncio.sleep(0.01)
        # when all of their callers hang up
        for each in (*in_the_air, behind, query):
            each.cancel()
        await asyncio.sleep(0.01)
        world.managers.may_land.set()
        await until(lambda: len(world.managers.flights) == 3)
        # then what was to be enqueued is enqueued; the question that nobody asks any more is not
        assert [type(each) for each in world.managers.flights[2].requests] == [c.Enqueue]
        # and the gateway still works
        assert await world.gateway.ask(c.GetPayload(job_id(4))) == [c.Payload("json", job_id(4))]

    tell(story)


def test_commands_without_a_key_get_one_and_enqueues_do_not_need_it() -> None:
    async def story(world: World) -> None:
        keyed = c.Cancel([job_id(1)], key="mine")
        await world.gateway.ask(c.Cancel([job_id(1)]), keyed, c.Pull("t", 1), enqueue(b"x"))
        first, second, third, fourth = world.managers.flights[0].requests
        assert isinstance(first, c.Cancel) and first.key and first.key.startswith(c.AUTOMATIC_KEY_PREFIX)
        assert isinstance(second, c.Cancel) and second.key == "mine"
        assert isinstance(third, c.Pull) and third.key and third.key != first.key
        assert isinstance(fourth, c.Enqueue) and fourth.key is None

    tell(story)


def test_an_answer_that_does_not_fit_reaches_every_caller_as_a_defect() -> None:
    async def story(world: World) -> None:
        async def too_few(flight: c.Flight) -> c.FlightReply:
            return c.FlightReply([])

        world.managers.send = too_few  # type: ignore[method-assign]
        asked = [world.ask(enqueue(b"x", first=n)) for n in (1, 2)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [BadReply, BadReply]

    tell(story)


def test_commit_times_are_counted() -> None:
    async def story(world: World) -> None:
        world.managers.may_land.clear()
        asked = world.ask(enqueue(b"x"))
        await asyncio.sleep(0.2)
        world.managers.may_land.set()
        await asked
        durations = world.gateway.enqueue_commit_seconds
        assert dict(zip(durations.bounds, durations.counts, strict=False))[0.25] == 1
        assert durations.sum_seconds == pytest.approx(0.2)

    tell(story)


# --- payload packs --------------------------------------------------------------------------------------


def test_large_payloads_that_arrive_together_share_one_object() -> None:
    async def story(world: World) -> None:
        large = [bytes([n]) * 20_000 for n in range(5)]
        commands = [enqueue(payload, b"small", first=1 + 10 * n) for n, payload in enumerate(large)]
        await asyncio.gather(*[world.ask(command) for command in commands])
        keys = [key for key in world.store._objects if key.startswith("payloads/")]
        assert len(keys) == 1
        for command, payload in zip(commands, large, strict=True):
            reference, small = (job.payload for job in command.jobs)
            assert small == b"small"
            assert isinstance(reference, BlobRef)
            assert await world.gateway.read_blob(reference) == payload

    tell(story)


def test_small_jobs_do_not_wait_for_large_payloads() -> None:
    async def story(world: World) -> None:
        world.store.open.clear()
        large = world.ask(enqueue(b"x" * 20_000))
        await world.ask(enqueue(b"small", first=2))
        assert not large.done()
        world.store.open.set()
        assert await large == [c.Accepted([job_id(1)], True)]

    tell(story)


def test_a_put_with_an_unknown_outcome_is_sent_again_as_it_is() -> None:
    async def story(world: World) -> None:
        put_new = world.store.put_new
        tries: list[tuple[str, bytes]] = []

        async def answers_get_lost(key: str, data: bytes) -> PutOutcome:
            tries.append((key, data))
            await put_new(key, data)
            if len(tries) == 2:
                raise StoreError("no answer")
            return PutOutcome.UNKNOWN if len(tries) < 4 else await put_new(key, data)

        world.store.put_new = answers_get_lost  # type: ignore[method-assign]
        assert await world.gateway.ask(enqueue(b"x" * 20_000)) == [c.Accepted([job_id(1)], True)]
        assert len(tries) == 4 and len(set(tries)) == 1

    tell(story)


def test_a_silent_store_refuses_the_job_and_nothing_was_enqueued() -> None:
    async def story(world: World) -> None:
        async def silent(key: str, data: bytes) -> PutOutcome:
            return PutOutcome.UNKNOWN

        world.store.put_new = silent  # type: ignore[method-assign]
        [answer] = await world.gateway.ask(enqueue(b"x" * 20_000))
        assert isinstance(answer, Refusal) and answer.code == "store_silent"
        assert world.managers.flights == []

    tell(story)


def test_many_small_payloads_of_one_batch_do_not_make_a_giant_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_packs, "INLINE_BYTES_PER_COMMAND_MAX", 10_000)

    async def story(world: World) -> None:
        command = enqueue(b"tiny", *[b"x" * 1_000] * 20)
        await world.gateway.ask(command)
        assert command.jobs[0].payload == b"tiny"
        assert all(isinstance(job.payload, BlobRef) for job in command.jobs[1:])

    tell(story)


def test_a_command_that_no_record_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "COMMAND_BYTES_MAX", 10_000)

    async def story(world: World) -> None:
        options = [JobOptions("t", labels=((f"l{n}", "x" * 1_000),)) for n in range(20)]
        command = c.Enqueue(options, [NewJob(job_id(n), n, b"") for n in range(20)])
        with pytest.raises(Refused) as refused:
            await world.gateway.ask(command)
        assert refused.value.refusal.code == "too_large"
        assert world.managers.flights == []

    tell(story)


def test_payload_bytes_that_wait_for_the_store_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_packs, "PACKS_WAITING_BYTES_MAX", 50_000)

    async def story(world: World) -> None:
        world.store.open.clear()
        asked = [world.ask(enqueue(b"x" * 20_000, first=n)) for n in range(1, 5)]
        await asyncio.sleep(0.01)
        world.store.open.set()
        answers = [answer for [answer] in await asyncio.gather(*asked)]
        kinds = [answer.code if isinstance(answer, Refusal) else "accepted" for answer in answers]
        assert kinds == ["accepted", "accepted", "overloaded", "overloaded"]
        # and afterwards there is room again
        assert await world.gateway.ask(enqueue(b"x" * 20_000, first=9)) == [c.Accepted([job_id(9)], True)]

    tell(story)


def test_an_object_that_is_gone_is_told_as_such() -> None:
    async def story(world: World) -> None:
        with pytest.raises(Refused, match="not in the store"):
            await world.gateway.read_blob(BlobRef("payloads/none", 0, 5))

    tell(story)


# --- waiting --------------------------------------------------------------------------------------------


def waiting(replica: Replica, job: bytes, seconds: float = 30.0) -> asyncio.Task[c.JobView]:
    return asyncio.get_running_loop().create_task(replica.gateway.wait_for_job(job, seconds))


async def enqueued(replica: Replica, *numbers: int) -> list[bytes]:
    ids = [job_id(n) for n in numbers]
    jobs = [NewJob(each, 0, b'{"args":[]}') for each in ids]
    await replica.gateway.get(c.Enqueue([OPTIONS], jobs), c.Accepted)
    return ids


def test_a_waiter_is_woken_by_the_end_of_its_job_alone() -> None:
    async def story(replica: Replica) -> None:
        first, second = await enqueued(replica, 1, 2)
        waiters = [waiting(replica, first), waiting(replica, second)]
        await asyncio.sleep(0.1)
        [grant] = await replica.take(1)
        began = asyncio.get_running_loop().time()
        await replica.finish(grant)
        view = await waiters[0]
        assert (view.id, view.state) == (first, State.SUCCEEDED)
        assert asyncio.get_running_loop().time() - began < 0.2
        assert not waiters[1].done()
        waiters[1].cancel()

    run(story)


def test_who_waits_gets_the_job_with_the_news_and_does_not_ask_again() -> None:
    async def story(replica: Replica) -> None:
        [job] = await enqueued(replica, 1)
        waiter = waiting(replica, job)
        await asyncio.sleep(0.1)
        [grant] = await replica.take(1)
        flights = len(replica.managers.flights)
        # when it ends
        await replica.finish(grant)
        view = await waiter
        # then what the waiter got is what anybody would be told who asked now
        assert len(replica.managers.flights) == flights
        assert view == await replica.gateway.job(job)
        assert view.state is State.SUCCEEDED and view.result is not None

    run(story)


def test_all_who_wait_share_one_subscription_which_ends_with_them() -> None:
    async def story(replica: Replica) -> None:
        ids = await enqueued(replica, *range(1, 51))
        waiters = [waiting(replica, each) for each in ids for _ in range(3)]
        await asyncio.sleep(1.0)
        assert (replica.managers.feed_open, replica.gateway.waiting) == (1, 150)
        assert await replica.run_all() == 50
        assert {(await each).state for each in waiters} == {State.SUCCEEDED}
        assert replica.gateway.waiting == 0
        # then it ends, and asks no more
        await until(lambda: replica.managers.feed_open == 0)
        calls = replica.managers.feed_calls
        await asyncio.sleep(60.0)
        assert replica.managers.feed_calls == calls

    run(story)


def test_a_job_that_ends_between_the_look_and_the_wait_is_not_missed() -> None:
    async def story(replica: Replica) -> None:
        # given every moment at which the job may end, as seen by the waiter
        for number, delay in enumerate([0.0, 0.001, 0.004, 0.005, 0.006, 0.01, 0.011, 0.02], start=1):
            [job] = await enqueued(replica, number)
            [grant] = await replica.take(1)
            waiter = waiting(replica, job, seconds=5.0)
            await asyncio.sleep(delay)
            await replica.finish(grant)
            began = asyncio.get_running_loop().time()
            assert (await waiter).state is State.SUCCEEDED
            assert asyncio.get_running_loop().time() - began < 1.0

    run(story)


@pytest.mark.parametrize("seed", range(20))
def test_whenever_waits_begin_and_jobs_end_nobody_is_left_waiting(seed: int) -> None:
    async def story(replica: Replica) -> None:
        loop, random = asyncio.get_running_loop(), Random(seed)
        ids = await enqueued(replica, *range(1, 31))
        grants = await replica.take(30)

        async def end(grant: Grant, at: float) -> None:
            await asyncio.sleep(at)
            await replica.finish(grant)

        async def wait(job: bytes, at: float, ended_at: float) -> None:
            await asyncio.sleep(at)
            began = loop.time()
            assert (await replica.gateway.wait_for_job(job, 60.0)).state is State.SUCCEEDED
            assert loop.time() - max(began, ended_at) < 0.3

        ends = {grant.job_id: random.uniform(0.0, 0.5) for grant in grants}
        began = loop.time()
        parts = [end(grant, ends[grant.job_id]) for grant in grants]
        for job in ids:
            parts += [wait(job, random.uniform(0.0, 0.6), began + ends[job]) for _ in range(3)]
        await asyncio.gather(*parts)

    run(story)


def test_a_wait_ends_with_its_time_and_shows_the_job_as_it_is() -> None:
    async def story(replica: Replica) -> None:
        [job] = await enqueued(replica, 1)
        began = asyncio.get_running_loop().time()
        view = await replica.gateway.wait_for_job(job, 3.0)
        assert view.state is State.QUEUED
        assert 3.0 <= asyncio.get_running_loop().time() - began < 3.2
        with pytest.raises(Refused) as refused:
            await replica.gateway.wait_for_job(job_id(77), 3.0)
        assert refused.value.refusal.code == "unknown_job"

    run(story)


def test_a_wait_survives_the_death_of_the_leader() -> None:
    async def story(replica: Replica) -> None:
        pair = replica.pair
        standby = pair.start("manager-b")
        await until(lambda: standby.role == "standby")
        [job] = await enqueued(replica, 1)
        waiter = waiting(replica, job, seconds=60.0)
        await asyncio.sleep(0.5)
        # when the leader dies, and the job ends under its successor
        pair.kill("manager-a")
        standby.suspect_leader()
        await until(lambda: standby.role == "leader")
        [grant] = await replica.take(1)
        await replica.finish(grant)
        assert (await waiter).state is State.SUCCEEDED

    run(story)


def test_a_flight_outlives_a_failover_and_its_jobs_are_there_once() -> None:
    async def story(replica: Replica) -> None:
        pair = replica.pair
        standby = pair.start("manager-b")
        await until(lambda: standby.role == "standby")
        pair.store.open.clear()
        asked = asyncio.get_running_loop().create_task(enqueued(replica, 1, 2))
        await asyncio.sleep(0.1)
        pair.kill("manager-a")
        pair.store.open.set()
        standby.suspect_leader()
        assert await asked == [job_id(1), job_id(2)]
        assert replica.jobs == 2

    run(story)


def test_where_puts_cost_money_packs_are_few_and_the_leader_hears_of_them() -> None:
    async def story(world: World) -> None:
        # given large payloads at a high rate, for ten seconds
        asked = []
        for n in range(1_000):
            asked.append(world.ask(enqueue(b"x" * 20_000, first=n + 1)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*asked)
        # then each of two replicas makes a tenth of thirty PUTs a second, and says so
        packs = len(await world.store.list("payloads/"))
        assert 25 <= packs <= 10 * 30 * 0.1 + 4
        assert sum(flight.puts for flight in world.managers.flights) == packs

    tell(story, data="s3://bucket/prefix")
