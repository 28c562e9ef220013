"""The whole service in one thread and in virtual time: managers, workers, clients, and a bad network between.

The pair of managers, the workers and their way to the leader are the real classes. Each process is one
context of the `VirtualLoop`, so it can be stopped and killed as the kernel does it. Messages are delayed,
lost, doubled, and held back by partitions; the store is a `FaultyObjectStore` for each process. When the
faults end, every job must end, and `history_checks` compares what clients were told with the journal.

Replay one seed with its trace:  python -m tests.simulation.service_world SEED
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from random import Random
from typing import Any

import msgspec

from jobsvc import commands as c
from jobsvc.errors import DataMissing, Fatal, JobsvcError, Refusal, StoreUnfit, Unavailable
from jobsvc.events import AttemptsEnded, decode_events
from jobsvc.faulty_store import FaultRates, FaultyObjectStore
from jobsvc.job_frames import ReadyJob
from jobsvc.jobs import (
    TERMINAL,
    BlobRef,
    ErrorInfo,
    Finished,
    JobOptions,
    NewJob,
    NotLeader,
    Outcome,
    Result,
    State,
    encode,
    id_text,
)
from jobsvc.journal import LogReader
from jobsvc.leader_links import LeaderFinder, RayLeaderLink
from jobsvc.log_records import Mark, Record, decode_record
from jobsvc.manager import Manager
from jobsvc.object_store import MemoryObjectStore, PutOutcome
from jobsvc.queue_snapshot import restore
from jobsvc.queue_state import QueueState
from jobsvc.settings import PoolSettings, Settings
from jobsvc.simulated_runner import Plan, SimulatedRunner
from jobsvc.worker import Worker

from ..history_checks import Final, Finish, Told, apply_record, check_states, history_of, judge, replayed
from .virtual_loop import Deadlock, VirtualLoop, run

START = 1_700_000_000.0
CLOCK_STEPS = (0.5, 7.0, 3_600.0, 86_400.0 * 9)  # seconds, both ways
MANAGERS = ("manager-a", "manager-b")
CLIENTS = ("client-1", "client-2")
RAGE_SECONDS = 25.0
CALM_SECONDS = 400.0

SETTINGS = Settings(
    pools={"default": PoolSettings(min_workers=1, max_workers=3, idle_seconds=15.0)},
    lease_seconds=8.0,
    heartbeat_seconds=2.0,
    outbox_after_seconds=1.5,
    orphan_seconds=40.0,
    takeover_silence_seconds=2.5,
    stepdown_seconds=6.0,
    idle_record_seconds=2.0,
    commit_interval_seconds=0.02,
    inline_bytes_max=128,
    snapshot_records=25,
)

# Jobs leave memory almost as soon as they have ended; what was theirs is deleted meanwhile.
SHORT_MEMORY = msgspec.structs.replace(SETTINGS, retention_seconds=6.0)

_replies = msgspec.msgpack.Decoder(c.FlightReply | NotLeader)
_pages = msgspec.msgpack.Decoder(c.FeedPage | NotLeader)
_outbox = msgspec.msgpack.Decoder(list[Finished])
_statuses = msgspec.msgpack.Decoder(c.ManagerStatus)


class Violation(AssertionError):
    """A promise of the service was broken."""


# --- jobs ---------------------------------------------------------------------------------------------


def answer_to(payload: bytes) -> bytes:
    """What every task that succeeds returns: the size is in the payload's first byte."""
    digest = hashlib.sha256(payload).hexdigest().encode()
    return b'"' + digest * (1 + payload[0] % 6) + b'"'


def plan_of(job: ReadyJob) -> Plan:
    """How one attempt goes: by the task, the job and the attempt, so that replay finds the same."""
    luck = Random(job.job_id + bytes([job.attempt % 256]))
    seconds = luck.expovariate(1.0) * {"long": 6.0, "quick": 0.02}.get(job.task, 0.4)
    output = b"hello\n" * luck.randrange(3) if job.task == "talks" else b""
    if job.task == "bad" or (job.task == "flaky" and luck.random() < 0.4):
        return Plan(seconds, Outcome.RAISED, error=ErrorInfo("ValueError", "no luck"), output=output)
    if job.task == "crashes" and luck.random() < 0.5:
        return Plan(seconds, Outcome.CRASHED, error=ErrorInfo("Killed", "signal 9"), output=output)
    return Plan(seconds, data=answer_to(job.payload), output=output)


TASKS = ("quick", "quick", "plain", "long", "flaky", "bad", "crashes", "talks", "hurried")
MUST_SUCCEED = {"quick", "plain", "long", "flaky", "crashes", "talks"}


def options_of(task: str, priority: int) -> JobOptions:
    patient = task in MUST_SUCCEED  # lost workers spend attempts too
    return JobOptions(
        task,
        priority=priority,
        max_attempts=1000 if patient else 2,
        max_crashes=1000 if patient else 2,
        backoff_base_seconds=0.2,
        backoff_cap_seconds=2.0,
        timeout_seconds=0.3 if task == "hurried" else None,
    )


# --- the store ----------------------------------------------------------------------------------------


class ArchivedStore(MemoryObjectStore):
    """What all processes share. Remembers every record that ever was, and takes the trace."""

    def __init__(self, trace: Callable[[str], None]) -> None:
        super().__init__()
        self._trace = trace
        self.records: list[bytes] = []
        self.outbox: dict[tuple[bytes, int], float] = {}  # attempts that succeeded and are written down
        self.outbox_lists: dict[str, float] = {}  # worker -> when a leader looked
        self.ignored: list[str] = []

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        outcome = await super().put_new(key, data)
        if outcome is PutOutcome.CREATED and key.startswith("log/"):
            self.records.append(data)
            self._check_outbox(decode_record(data, self.cluster_id()))
        if outcome is PutOutcome.CREATED and key.startswith("outbox/"):
            now = asyncio.get_running_loop().time()
            for each in _outbox.decode(data):
                if each.outcome is Outcome.SUCCEEDED:
                    self.outbox[each.job_id, each.attempt] = now
        self._trace(f"put {key} {outcome.value}")
        return outcome

    async def list(self, prefix: str) -> list[str]:
        if prefix.startswith("outbox/"):
            self.outbox_lists[prefix.split("/")[1]] = asyncio.get_running_loop().time()
        return await super().list(prefix)

    def _check_outbox(self, record: Record) -> None:
        """P4: what a worker has written down is not given to another after a leader has looked there."""
        if record.kind != "data" or not self.outbox:
            return
        for event in decode_events(record.body):
            if isinstance(event, AttemptsEnded):
                for each in event.finished:
                    written = self.outbox.get((each.job_id, each.attempt))
                    if written is None or each.outcome not in (Outcome.LOST, Outcome.RELEASED):
                        continue
                    looked = self.outbox_lists.get(event.worker, -1.0)
                    if looked > written or asyncio.get_running_loop().time() > written + 15.0:
                        self.ignored.append(f"{id_text(each.job_id)} attempt {each.attempt}")

    async def delete(self, key: str) -> None:
        self._trace(f"delete {key}")
        await super().delete(key)

    def read(self, ref: BlobRef) -> bytes | None:
        data = self._objects.get(ref.key)
        return None if data is None else data[ref.offset : ref.offset + ref.length]

    def cluster_id(self) -> bytes:
        return self._objects["cluster"][-16:]


class ProcessStore(FaultyObjectStore):
    """One process' way to the store."""

    def calm(self) -> None:
        self.heal()
        self._put_rates = self._read_rates = FaultRates()


# --- processes and the network -------------------------------------------------------------------------


class Process:
    """One life of one place."""

    def __init__(self, place: str, name: str, store: ProcessStore) -> None:
        self.place = place
        self.name = name
        self.store = store
        self.body: Any = None  # the Manager or the Worker
        self.runner: SimulatedRunner | None = None  # the Worker's
        self.calls: dict[asyncio.Future[Any], None] = {}  # those that wait for an answer of this process


class Network:
    """Calls between processes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = Random(f"{world.seed} network")
        self.loss = 0.02
        self.double = 0.03
        self.delay = 0.01
        self.parted: set[frozenset[str]] = set()

    def calm(self) -> None:
        self.loss = self.double = 0.0
        self.parted.clear()

    async def call(self, source: str, target: str, work: Callable[[Any], Awaitable[Any]]) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        for _ in range(2 if self._random.random() < self.double else 1):
            self._later(partial(self._arrive, source, target, work, answer))
        return await answer

    def _later(self, act: Callable[[], None]) -> None:
        """Messages belong to no process: they fly while sender and receiver sleep or die."""
        lost = self._random.random() < self.loss
        seconds = self._random.expovariate(1.0) * self.delay
        if self._random.random() < 0.02:
            seconds += self._random.random() * 40 * self.delay
        if not lost:
            self._world.loop.call_later(seconds, act, context=Context())

    def _arrive(
        self, source: str, target: str, work: Callable[[Any], Awaitable[Any]], answer: asyncio.Future[Any]
    ) -> None:
        if frozenset((source, target)) in self.parted:
            return
        process = self._world.processes.get(target)
        if process is None or process.body is None:
            self._later(partial(_fail, answer, f"{target} is dead"))
            return
        process.calls[answer] = None
        task = self._world.loop.start(process.name, _awaited(work, process.body))
        task.add_done_callback(partial(self._reply, source, process, answer), context=Context())

    def _reply(
        self, source: str, process: Process, answer: asyncio.Future[Any], task: asyncio.Task[Any]
    ) -> None:
        process.calls.pop(answer, None)
        if frozenset((source, process.place)) in self.parted:
            return
        if task.cancelled():
            self._later(partial(_fail, answer, "cancelled"))
            return
        error = task.exception()
        if error is None:
            self._later(partial(_set, answer, task.result()))
            return
        if not isinstance(error, JobsvcError):
            self._world.find(f"{process.name} answered a call with {error!r}")
        self._later(partial(_fail, answer, repr(error)))

    def died(self, process: Process) -> None:
        for answer in process.calls:
            self._later(partial(_fail, answer, f"{process.name} died"))


async def _awaited(work: Callable[[Any], Awaitable[Any]], body: Any) -> Any:
    return await work(body)


def _set(answer: asyncio.Future[Any], value: Any) -> None:
    if not answer.done():
        answer.set_result(value)


def _fail(answer: asyncio.Future[Any], why: str) -> None:
    if not answer.done():
        answer.set_exception(Unavailable(why))


class Finder(LeaderFinder):
    """The real search for the leader; only the call itself is simulated."""

    def __init__(self, network: Network, place: str) -> None:
        super().__init__("simulated")
        self._network = network
        self._place = place

    async def _try(self, name: str, method: str, seconds: float, arguments: tuple[Any, ...]) -> bytes:
        try:
            async with asyncio.timeout(seconds):
                answer: bytes = await self._network.call(
                    self._place, name, lambda manager: getattr(manager, method)(*arguments)
                )
                return answer
        except TimeoutError as error:
            raise Unavailable(f"{name} did not answer") from error


class WorkersLink(RayLeaderLink):
    def __init__(self, network: Network, place: str) -> None:
        self._finder = Finder(network, place)


class SimulatedPeer:
    """One manager's way to the other, as `manager_actor.PeerActor`."""

    def __init__(self, world: World, place: str) -> None:
        self._world = world
        self._place = place
        self.name = MANAGERS[1 - MANAGERS.index(place)]

    async def push(self, records: list[bytes]) -> int:
        async def follow(manager: Manager) -> int:
            return await manager.follow(records)

        applied: int = await self._call(follow, 2.0)
        return applied

    async def status(self) -> c.ManagerStatus | None:
        async def ask(manager: Manager) -> bytes:
            return manager.status()

        if self.name not in self._world.processes:
            return None
        return _statuses.decode(await self._call(ask, 1.0))

    async def _call(self, work: Callable[[Manager], Awaitable[Any]], seconds: float) -> Any:
        try:
            async with asyncio.timeout(seconds):
                return await self._world.network.call(self._place, self.name, work)
        except TimeoutError as error:
            raise Unavailable(f"{self.name} is silent") from error


class SimulatedFleet:
    """Ray's part: workers' processes begin after a while, and are gone when they end."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        self._world.fleet[name] = pool
        self._world.after(self._world.random.random(), partial(self._world.begin_worker, name, pool))

    async def end(self, name: str) -> None:
        self._world.fleet.pop(name, None)
        self._world.kill(name)

    async def names(self) -> dict[str, str]:
        if not self._world.calm and self._world.random.random() < 0.05:
            raise Unavailable("no list of actors")
        return dict(self._world.fleet)

    async def trouble(self) -> str | None:
        return None

    async def machines(self) -> None:
        return None


# --- clients -----------------------------------------------------------------------------------------------


class Client:
    """One replica: it sends everything again under the same ids until it has an answer."""

    def __init__(self, world: World, place: str) -> None:
        self._world = world
        self._place = place
        self._random = Random(f"{world.seed} {place}")
        self._finder = Finder(world.network, place)
        self._mine: list[bytes] = []
        self._commands = 0

    async def ask(self, *requests: c.Request) -> list[Any]:
        flight = encode(c.Flight(list(requests)))
        while True:
            try:
                reply = await self._finder.ask_leader("handle_flight", (flight,), _replies, 15.0)
            except Unavailable:
                await asyncio.sleep(0.1)
                continue
            if len(reply.replies) != len(requests):
                self._world.find("a flight came back with another number of replies")
            return list(reply.replies)

    def _key(self) -> str:
        self._commands += 1
        return f"~{self._place}-{self._commands}"

    async def live(self) -> None:
        random = self._random
        while not self._world.calm:
            await asyncio.sleep(random.expovariate(1.0) * 0.8)
            point = random.random()
            if point < 0.55 or not self._mine:
                await self._enqueue()
            elif point < 0.65:
                await self._cancel(random.choice(self._mine))
            elif point < 0.72:
                await self._retry(random.choice(self._mine))
            else:
                await self._look(random.sample(self._mine, min(len(self._mine), 5)))

    async def _enqueue(self) -> None:
        random, world = self._random, self._world
        options: list[JobOptions] = []
        jobs: list[NewJob] = []
        for number in range(random.choice((1, 1, 2, 6))):
            task = random.choice(TASKS)
            options.append(options_of(task, random.randrange(2)))
            job_id, payload = random.randbytes(16), random.randbytes(16)
            jobs.append(NewJob(job_id, number, payload))
            if task in MUST_SUCCEED:
                world.told.expected[id_text(job_id)] = answer_to(payload)
        if random.random() < 0.3:
            await self._pack(jobs)
        command = c.Enqueue(options, jobs, self._key() if random.random() < 0.5 else None, b"f")
        (answer,) = await self.ask(command)
        if not isinstance(answer, c.Accepted) or answer.ids != [job.id for job in jobs]:
            world.find(f"an enqueue was answered with {answer!r}")
            return
        for job in jobs:
            world.told.accept(id_text(job.id), world.loop.time())
            self._mine.append(job.id)

    async def _pack(self, jobs: list[NewJob]) -> None:
        """Payloads that lie in the store."""
        key = f"payloads/{jobs[0].id.hex()}"
        offset, parts = 0, []
        for job in jobs:
            assert isinstance(job.payload, bytes)
            parts.append(job.payload)
            job.payload = BlobRef(key, offset, len(job.payload))
            offset += job.payload.length
        store = self._world.processes[self._place].store
        for _ in range(1000):
            if await store.put_new(key, b"".join(parts)) is not PutOutcome.UNKNOWN:
                break
            await asyncio.sleep(0.2)

    async def _cancel(self, job_id: bytes) -> None:
        self._world.told.cancel_asked.add(id_text(job_id))
        (answer,) = await self.ask(c.Cancel([job_id], self._key()))
        if not isinstance(answer, c.Changed):
            self._world.find(f"a cancel was answered with {answer!r}")
        elif answer.items == [State.CANCELLED]:
            self._world.told.cancelled.add(id_text(job_id))

    async def _retry(self, job_id: bytes) -> None:
        self._world.told.retry_asked.add(id_text(job_id))
        (answer,) = await self.ask(c.Retry([job_id], self._key()))
        if not isinstance(answer, c.Changed):
            self._world.find(f"a retry was answered with {answer!r}")

    async def _look(self, ids: list[bytes]) -> None:
        (found,) = await self.ask(c.GetJobs(ids))
        for job_id, view in zip(ids, found.items, strict=True):
            if isinstance(view, Refusal):
                if view.code == "expired_job" and self._world.settings is SHORT_MEMORY:
                    continue
                self._world.find(f"an accepted job is refused: {view}")
            elif view.state in TERMINAL:
                self._world.told.ended.append((id_text(job_id), view.state.value))
                self._see(job_id, view.result)

    def _see(self, job_id: bytes, result: Result | None) -> None:
        value = self._world.value(result) if result is not None else None
        expired = value is None and self._world.settings is SHORT_MEMORY
        if result is not None and not expired:
            self._world.told.results.append((id_text(job_id), value))

    async def read_feed(self) -> None:
        """Follow the feed from its beginning."""
        after, store = 0, ""
        while True:
            try:
                query = encode(c.ReadFeed(after, store=store))
                page = await self._finder.ask_leader("wait_feed", (query, 2.0), _pages, 15.0, 2.0)
            except Unavailable:
                await asyncio.sleep(0.1)
                continue
            for entry in page.entries:
                self._world.told.feed.append(Finish(entry.seq, id_text(entry.id), entry.state.value))
                self._see(entry.id, entry.result)
            self._world.told.holes += page.holes
            if page.reset is not None:
                self._world.find(f"P5: place {after} is {page.reset}, and was given")
            after, store = page.next, page.store
            self._world.feed_read = after


# --- the world ----------------------------------------------------------------------------------------------


class World:
    """One run. `story` is all of it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.settings = SHORT_MEMORY if seed % 4 == 3 else SETTINGS
        self.random = Random(f"{seed} service")
        self.loop = VirtualLoop()
        self.digest = hashlib.blake2b()
        self.lines: list[str] | None = None
        self.found: str | None = None
        self.store = ArchivedStore(self.trace)
        self.processes: dict[str, Process] = {}
        self.fleet: dict[str, str] = {}
        self.network = Network(self)
        self.told = Told()
        self.calm = False
        self.feed_read = 0
        self.lives = 0
        self.skew = {name: self.random.uniform(-1.5, 1.5) for name in MANAGERS}
        self.clock_steps = Random(f"{seed} clocks")  # apart, so that the other accidents stay as they were

    def trace(self, line: str) -> None:
        line = f"{self.loop.time():9.3f} {line}"
        self.digest.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    def fingerprint(self) -> str:
        return self.digest.hexdigest()[:16]

    def find(self, violation: str) -> None:
        self.found = self.found or violation
        self.trace(f"VIOLATION {violation}")

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.loop.call_later(seconds, act, context=Context())

    # --- processes ---

    def _process(self, place: str) -> Process:
        self.lives += 1
        name = f"{place}#{self.lives}"
        store = ProcessStore(
            self.store,
            Random(f"{self.seed} store {name}"),
            delay_seconds=0.02,
            put_error_rate=0.01,
            put_lost_rate=0.02,
            put_late_rate=0.02,
            read_error_rate=0.01,
            late_seconds=15.0,
            timeout_seconds=3.0,
        )
        if self.calm:
            store.calm()
        self.processes[place] = Process(place, name, store)
        self.trace(f"{name} begins")
        return self.processes[place]

    def begin_manager(self, place: str) -> None:
        if place in self.processes:
            return
        process = self._process(place)

        async def live() -> None:
            process.body = Manager(
                name=place,
                settings=self.settings,
                store=process.store,
                peer=SimulatedPeer(self, place),
                fleet=SimulatedFleet(self),
                wall=lambda: START + self.loop.time() + self.skew[place],
                random=Random(f"{self.seed} {process.name}"),
                nonce=hashlib.blake2b(process.name.encode(), digest_size=16).digest(),
                node=place,
                pid=self.lives,
            )
            await process.body.run()

        self.loop.start(process.name, live()).add_done_callback(
            partial(self._manager_ended, process), context=Context()
        )

    def _manager_ended(self, process: Process, task: asyncio.Task[None]) -> None:
        error = task.exception()
        self.trace(f"{process.name} ends: {error!r}")
        if not isinstance(error, Fatal) or isinstance(error, DataMissing | StoreUnfit):
            self.find(f"{process.name} ended with {error!r}")
        if self.processes.get(process.place) is process:
            self.kill(process.place)

    def begin_worker(self, place: str, pool: str) -> None:
        if place not in self.fleet or place in self.processes:
            return
        process = self._process(place)

        begun: set[tuple[bytes, int]] = set()

        def plan(job: ReadyJob) -> Plan:
            if job.key in begun:
                self.find(f"P4: {process.name} runs {id_text(job.job_id)} attempt {job.attempt} again")
            begun.add(job.key)
            return plan_of(job)

        async def live() -> str:
            runner = process.runner = SimulatedRunner(plan, lambda: START + self.loop.time())
            if not self.calm and self.random.random() < 0.2:
                self._cannot_import(process)
            process.body = Worker(
                name=place,
                session=process.name,
                pool=pool,
                node="node",
                pid=self.lives,
                settings=self.settings,
                store=process.store,
                leader=WorkersLink(self.network, place),
                runner=runner,
                wall=lambda: START + self.loop.time(),
                random=Random(f"{self.seed} {process.name}"),
            )
            why: str = await process.body.run()
            return why

        self.loop.start(process.name, live()).add_done_callback(
            partial(self._worker_ended, process), context=Context()
        )

    def _worker_ended(self, process: Process, task: asyncio.Task[str]) -> None:
        error = task.exception()
        if error is not None:
            self.find(f"{process.name} ended with {error!r}")
        else:
            self.trace(f"{process.name} ends: {task.result()}")
        if self.processes.get(process.place) is process:
            self.kill(process.place)

    def kill(self, place: str, pause: float = 0.0) -> None:
        """SIGKILL; who watches is told, mostly."""
        process = self.processes.pop(place, None)
        if process is None:
            return
        self.trace(f"{process.name} is gone")
        self.loop.kill(process.name)
        self.network.died(process)
        if place in MANAGERS:
            pause += 0.3 + self.random.expovariate(1.0) * (0.5 if self.calm else 1.5)
            self.after(pause, partial(self.begin_manager, place))
            other = MANAGERS[1 - MANAGERS.index(place)]
            self._notice(other, lambda manager: manager.suspect_leader())
        elif self.fleet.pop(place, None) is not None:
            for manager in MANAGERS:
                self._notice(manager, lambda manager: manager.worker_gone(place))

    def _notice(self, manager: str, tell: Callable[[Manager], None]) -> None:
        if not self.calm and self.random.random() < 0.3:
            return  # the machine is gone, and nothing tells

        def told() -> None:
            process = self.processes.get(manager)
            if process is not None and process.body is not None:
                self.loop.start(process.name, _told(tell, process.body))

        self.after(self.random.random() * 0.02, told)

    # --- faults ---

    async def clocks_step(self) -> None:
        """In half of the seeds, somebody sets the managers' clocks: by seconds, hours, days, both ways."""
        random = self.clock_steps
        while self.seed % 2 and self.loop.time() < RAGE_SECONDS:
            await asyncio.sleep(random.expovariate(1.0) * 6.0)
            step = random.choice([0.0, *CLOCK_STEPS])
            self.skew[random.choice(MANAGERS)] = random.choice([step, -step])
            self.trace(f"clocks: {self.skew}")

    async def rage(self) -> None:
        random = self.random
        while self.loop.time() < RAGE_SECONDS and self.found is None:
            await asyncio.sleep(random.expovariate(1.0) * 2.0)
            place = random.choice([*MANAGERS, *MANAGERS, *sorted(self.fleet)])
            point = random.random()
            if point < 0.3:
                self.kill(place)
            elif point < 0.4:
                self._leave_workers_alone(random.random() * 6.0)
            elif point < 0.7:
                self._stall(place, random.expovariate(1.0) * 5.0)
            elif point < 0.85:
                pair = frozenset((place, random.choice([*MANAGERS, *CLIENTS])))
                self.network.parted.add(pair)
                self.after(random.expovariate(1.0) * 6.0, partial(self.network.parted.discard, pair))
            elif point < 0.88 and place in self.processes:
                self._cannot_import(self.processes[place])
            elif point < 0.93 and place in self.processes:
                store = self.processes[place].store
                store.cut()
                self.after(random.expovariate(1.0) * 5.0, store.heal)
            else:
                until = self.loop.time() + random.random() * 4
                for process in self.processes.values():
                    process.store.outage_until(until)

    def _leave_workers_alone(self, seconds: float) -> None:
        """Both managers die; a worker that has written its outbox may die before one is back."""
        for manager in MANAGERS:
            self.kill(manager, seconds)
        for worker in sorted(self.fleet):
            if self.random.random() < 0.5:
                self.after(1.0 + self.random.random() * seconds, partial(self.kill, worker))

    def _cannot_import(self, process: Process) -> None:
        """The worker's job processes cannot load their tasks for a while."""
        if process.runner is not None:
            self.trace(f"{process.name} is held back")
            process.runner.hold_back("no database")
            self.after(self.random.expovariate(1.0) * 5.0, partial(process.runner.hold_back, None))

    def _stall(self, place: str, seconds: float) -> None:
        process = self.processes.get(place)
        if process is not None:
            self.trace(f"{process.name} stalls for {seconds:.1f} s")
            self.loop.freeze(process.name)
            self.after(seconds, partial(self.loop.thaw, process.name))

    def become_calm(self) -> None:
        self.trace("calm")
        self.calm = True
        self.network.calm()
        for process in self.processes.values():
            process.store.calm()
            self.loop.thaw(process.name)

    # --- the story ---

    async def story(self) -> None:
        for place in MANAGERS:
            self.after(self.random.random(), partial(self.begin_manager, place))
        clients = []
        for place in CLIENTS:
            process = self._process(place)
            process.body = Client(self, place)
            clients.append(self.loop.start(process.name, process.body.live()))
        reader = Client(self, "client-1")
        self.loop.start(self.processes["client-1"].name, reader.read_feed())
        clocks = asyncio.ensure_future(self.clocks_step())
        await self.rage()
        await clocks
        self.become_calm()
        await self._until(lambda: all(task.done() for task in clients), "a client still waits")
        for task in clients:
            task.result()
        await self._until(self._all_ended, "jobs have not ended")
        await self._until(self._level, "leader and standby do not come level")
        self.judge_states()
        await self.judge_history()

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = self.loop.time() + CALM_SECONDS
        while not condition():
            if self.loop.time() > deadline:
                self.find(f"{otherwise} after {CALM_SECONDS:g} calm seconds")
            if self.found is not None:
                raise Violation(self.found)
            await asyncio.sleep(0.1)

    def _leader(self) -> Manager | None:
        for place in MANAGERS:
            process = self.processes.get(place)
            if process is not None and process.body is not None and process.body.leader is not None:
                manager: Manager = process.body
                return manager
        return None

    def _all_ended(self) -> bool:
        leader = self._leader()
        jobs = leader.state.jobs.values() if leader is not None else ()
        return leader is not None and all(job.state in TERMINAL for job in jobs)

    def _level(self) -> bool:
        """Leader and standby have applied the same records, nothing is open, and the feed is read."""
        bodies = [self.processes[place].body for place in MANAGERS if place in self.processes]
        leaders = [body for body in bodies if body is not None and body.leader is not None]
        standbys = [body for body in bodies if body is not None and body.role == "standby"]
        if len(leaders) != 1 or len(standbys) != 1 or not self._all_ended():
            return False
        commits, reader = leaders[0].leader.commits, standbys[0]._reader
        open_batch = bool(commits._batch.events) or commits._in_the_air is not None
        all_read = self.feed_read >= leaders[0].state.feed.newest
        return not open_batch and reader.mark == commits.mark and all_read

    def judge_states(self) -> None:
        states = {place: self.processes[place].body.state for place in MANAGERS}
        leader = self._leader()
        assert leader is not None and leader.leader is not None
        mark = leader.leader.commits.mark
        history = self._history(mark)
        states["replay"], finishes = replayed(history)
        for state in states.values():
            state.log_time = mark.log_time  # a leader's runs ahead of its last record
        for problem in check_states(states):
            self.find(problem)
        if self.store.ignored:
            self.find(f"P4: in the outbox, and given to others: {self.store.ignored}")
        replay = states["replay"]
        retired = {id_text(each) for each in replay.retired}
        final = Final(finishes=finishes, jobs=self._ends(replay), retired=retired)
        for problem in judge(self.told, final):
            self.find(problem)

    def _history(self, mark: Mark) -> list[Record]:
        cluster = self.store.cluster_id()
        return history_of((decode_record(each, cluster) for each in self.store.records), mark)

    def _ends(self, state: QueueState) -> dict[str, tuple[str, Any]]:
        ends: dict[str, tuple[str, Any]] = {}
        for job in state.jobs.values():
            result = job.details.result if job.details is not None else None
            ends[id_text(job.id)] = (job.state.value, self.value(result) if result is not None else None)
        return ends

    def value(self, result: Result) -> bytes | None:
        return result.data if result.ref is None else self.store.read(result.ref)

    async def judge_history(self) -> None:
        """Whoever starts now, from the newest snapshot, comes to the same end."""
        processes = list(self.processes.values())
        for process in processes:
            self.loop.kill(process.name)
        flying = {task for process in processes for task in process.store.flying if not task.done()}
        if flying:
            await asyncio.wait(flying)
        reader = LogReader(self.store, self.store.cluster_id())
        body = await reader.restart()
        *_, state = restore(body or b"")
        while (record := await reader.read_next()) is not None:
            apply_record(state, record)
        replay, _ = replayed(self._history(reader.mark))
        for problem in check_states({"from the snapshot": state, "from the beginning": replay}):
            self.find(problem)


async def _told(tell: Callable[[Manager], None], manager: Manager) -> None:
    tell(manager)


def play(seed: int, *, lines: list[str] | None = None) -> World:
    """One whole run. Raises Violation with the command that replays it."""
    world = World(seed)
    world.lines = lines
    try:
        run(world.story(), world.loop)
    except (Violation, Deadlock) as error:
        world.find(str(error))
    if world.found is not None:
        raise Violation(f"{world.found}\nreplay: python -m tests.simulation.service_world {seed}")
    return world


if __name__ == "__main__":
    told: list[str] = []
    try:
        play(int(sys.argv[1]), lines=told)
    finally:
        print("\n".join(told))
