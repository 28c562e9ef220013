"""Nodes share one journal while everything goes wrong: stalls, crashes, wrong takeovers, late writes.

The nodes run the real reader, writer, claim and snapshots. A node's state is the list of what it has applied,
so histories can be compared to the last record. The world watches:

- all committed histories are prefixes of one another (`see`), a snapshot's state included;
- an acknowledged record comes after all that were acknowledged before its append began (`acknowledge`);
- the newest snapshot is never deleted (`WatchedStore.delete`);
- at the end a fresh replay holds every acknowledged record once, and each writer's in order;
- a reader is never told that there is nothing where something lay already when it asked (`read_next`);
- every data record was written by the process whose takeover began its epoch: a void claimant writes nothing;
- when the faults stop, somebody leads and records are acknowledged.

Replay one seed with its trace:  python -m tests.simulation.journal_world SEED [rough|steered]
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from random import Random
from typing import NamedTuple

from jobsvc.errors import Fatal
from jobsvc.faulty_store import FaultRates, FaultyObjectStore
from jobsvc.journal import LogReader, LogWriter, Record, StaleReader, claim
from jobsvc.log_records import Mark, decode_record, log_key
from jobsvc.object_store import MemoryObjectStore, PutOutcome, StoreError
from jobsvc.read_ahead import Reach
from jobsvc.snapshots import InvalidSnapshot, SnapshotGone, prune, write_snapshot

from .virtual_loop import Deadlock, VirtualLoop, run

CLUSTER = b"simulated world."
ENTRY_BYTES = 8
CALM_SECONDS = 200.0
REACH = Reach(records_max=5, bytes_max=5 * 1024, after_records=2)  # so little that it is used all the time


class Violation(AssertionError):
    """A promise of the journal was broken."""


class Weather(NamedTuple):
    """What kind of world a run is. Times in seconds of the world."""

    seconds: float = 30.0
    nodes: int = 3
    delay: float = 0.05
    late: float = 20.0
    put_error: float = 0.03
    put_lost: float = 0.05
    put_late: float = 0.05
    read_error: float = 0.02
    think: float = 0.6  # mean pause of a follower
    claim: float = 0.12  # chance that a follower which is at the end claims, after one more pause
    record: float = 0.4  # mean pause of a leader
    snapshot: float = 0.15  # chance per pause
    leader_snapshots: bool = False
    calamity: float = 4.0  # mean time between two
    stall: float = 12.0  # mean length
    crash_share: float = 0.35


ROUGH = Weather()
# Pruning right behind a leader that others often believe dead, and stalls that outlive several snapshots.
STEERED = Weather(
    nodes=4,
    snapshot=0.35,
    leader_snapshots=True,
    claim=0.1,
    record=0.3,
    stall=15.0,
    calamity=2.5,
    crash_share=0.1,
)
WEATHERS = {"rough": ROUGH, "steered": STEERED}


class WatchedStore(MemoryObjectStore):
    """What all nodes share. Judges each effect, and takes the trace."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._digest = hashlib.blake2b()
        self.lines: list[str] | None = None
        self.created: list[Record] = []
        self.violation: str | None = None

    def trace(self, line: str) -> None:
        line = f"{self._loop.time():9.3f} {line}"
        self._digest.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)

    def fingerprint(self) -> str:
        return self._digest.hexdigest()[:16]

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        outcome = await super().put_new(key, data)
        if outcome is PutOutcome.CREATED and key.startswith("log/"):
            self.created.append(decode_record(data, CLUSTER))
            self.trace(f"put {key} {self.created[-1].kind} of {writer_of(self.created[-1])}")
        else:
            self.trace(f"put {key} {outcome.value}")
        return outcome

    def lying_at(self, key: str) -> bytes | None:
        return self._objects.get(key)

    async def delete(self, key: str) -> None:
        if key.startswith("snapshots/") and key in self._objects:
            newest = max(other for other in self._objects if other.startswith("snapshots/"))
            if key == newest:
                self.violation = f"the newest snapshot was deleted: {key}"
        self.trace(f"delete {key}")
        await super().delete(key)


def writer_of(record: Record) -> str:
    return record.nonce.decode().rstrip(".")


class NodeStore(FaultyObjectStore):
    """One node's way to the shared store."""

    def calm(self) -> None:
        self._put_rates = self._read_rates = FaultRates()


class Node:
    """One process: follows, claims, leads, snapshots, prunes; ends at whatever is fatal."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.weather = world.weather
        self.random = Random(f"{world.seed} {name}")
        self.store = NodeStore(
            world.store,
            Random(f"{world.seed} store {name}"),
            delay_seconds=self.weather.delay,
            put_error_rate=self.weather.put_error,
            put_lost_rate=self.weather.put_lost,
            put_late_rate=self.weather.put_late,
            read_error_rate=self.weather.read_error,
            late_seconds=self.weather.late,
        )
        if world.calm:
            self.store.calm()
        self.reader = LogReader(self.store, CLUSTER, reach=REACH)
        self.state: list[bytes] = []
        self.inbox: list[bytes] = []
        self.snapshot: asyncio.Task[None] | None = None

    async def live(self) -> None:
        world = self.world
        while True:
            try:
                await self.recover()
                await self.lead(await self.follow())
            except StaleReader as error:
                world.store.trace(f"{self.name} stale: {error}")
            except StoreError:
                await asyncio.sleep(0.2)
            except Fatal as error:
                world.store.trace(f"{self.name} ends: {type(error).__name__}: {error}")
                if type(error).__name__ in ("DataMissing", "StoreUnfit"):
                    world.find(f"{self.name} says of a whole log: {error}")
                return

    async def recover(self) -> None:
        body = await self.reader.restart()
        self.state = [] if body is None else entries(body)
        self.world.see(self.state, whole=True)

    def apply(self, record: Record) -> None:
        self.state.append(record.chain[:ENTRY_BYTES])
        self.world.see(self.state)

    async def follow(self) -> LogWriter:
        reader, random = self.reader, self.random
        quiet = 0
        while True:
            for encoded in self.take_inbox():
                pushed = reader.accept_pushed(encoded)
                if pushed is not None:
                    self.apply(pushed)
            record = await self.read_next()
            if record is not None:
                self.apply(record)
                quiet = 0
                continue
            quiet += 1
            if quiet % 8 == 0:
                await reader.check_stale()
            self.maybe_snapshot(reader.mark)
            await self.think()
            if random.random() < self.weather.claim:
                self.world.store.trace(f"{self.name} claims {reader.mark.next_position}")
                writer = await claim(
                    reader, nonce=self.nonce(), log_time=self.world.loop.time(), random=random
                )
                if writer is not None:
                    self.apply_takeover(writer)
                    return writer

    async def read_next(self) -> Record | None:
        mark, world = self.reader.mark, self.world
        key = log_key(mark.next_position)
        lying_there = world.store.lying_at(key)
        record = await self.reader.read_next()
        same = self.reader.mark is mark and world.store.lying_at(key) is lying_there
        if record is None and lying_there is not None and same:
            world.find(f"{self.name} was told that {key} is not there, but it was")
        return record

    def apply_takeover(self, writer: LogWriter) -> None:
        self.state.append(writer.mark.chain[:ENTRY_BYTES])
        self.world.see(self.state)

    def nonce(self) -> bytes:
        return self.name.encode().ljust(16, b".")

    async def think(self) -> None:
        await asyncio.sleep(self.random.expovariate(1.0) * self.weather.think)

    def take_inbox(self) -> list[bytes]:
        pushed, self.inbox = self.inbox, []
        return pushed

    async def lead(self, writer: LogWriter) -> None:
        world, random = self.world, self.random
        world.store.trace(f"{self.name} leads {writer.epoch}")
        while True:
            floor = world.acknowledged_top
            record = await self.append(writer, random.randbytes(4))
            self.apply(record)
            world.acknowledge(self, floor)
            self.push(record)
            if self.weather.leader_snapshots:
                self.maybe_snapshot(writer.mark)
            await asyncio.sleep(random.expovariate(1.0) * self.weather.record)

    async def append(self, writer: LogWriter, body: bytes) -> Record:
        log_time = max(writer.mark.log_time, self.world.loop.time())
        if self.random.random() < 0.02:  # a caller that gives up, and comes back with the same record
            try:
                async with asyncio.timeout(self.random.random() * 0.1):
                    return await writer.append(body, 1, log_time)
            except TimeoutError:
                pass
        return await writer.append(body, 1, log_time)

    def push(self, record: Record) -> None:
        for other in self.world.nodes.values():
            if other is not self and self.random.random() < 0.7:
                other.inbox.append(record.encoded)

    def maybe_snapshot(self, mark: Mark) -> None:
        busy = self.snapshot is not None and not self.snapshot.done()
        if mark.last_position is None or busy or self.random.random() >= self.weather.snapshot:
            return
        self.snapshot = asyncio.create_task(self.write_snapshot(mark, b"".join(self.state)))

    async def write_snapshot(self, mark: Mark, body: bytes) -> None:
        try:
            await write_snapshot(self.store, CLUSTER, mark, body)
            await prune(self.store, CLUSTER)
        except (StoreError, SnapshotGone):
            pass  # as the manager does: the next one will cover more
        except InvalidSnapshot as error:
            self.world.find(f"{self.name}: {error}")


class World:
    """One run. `story` is all of it; raises Violation."""

    def __init__(self, seed: int, weather: Weather = ROUGH) -> None:
        self.seed = seed
        self.weather = weather
        self.random = Random(f"{seed} world")
        self.loop = VirtualLoop()
        self.store = WatchedStore(self.loop)
        self.nodes: dict[int, Node] = {}
        self.lives = 0
        self.calm = False
        self.history: list[bytes] = []  # the longest committed one that anybody has seen
        self.acknowledged: list[tuple[str, bytes]] = []
        self.acknowledged_top = -1  # greatest index in the history of an acknowledged record
        self.found: str | None = None
        self.flying: set[asyncio.Task[None]] = set()

    # --- what must be true ---

    def find(self, violation: str) -> None:
        self.found = self.found or violation
        self.store.trace(f"VIOLATION {violation}")

    def see(self, state: list[bytes], whole: bool = False) -> None:
        history = self.history
        if len(state) > len(history):
            if whole and state[: len(history)] != history:
                self.find("a snapshot holds another history")
            if not whole and len(state) != len(history) + 1:
                self.find("a state has grown by more than one record")
            history.extend(state[len(history) :])
        elif whole and state != history[: len(state)]:
            self.find("a snapshot holds another history")
        elif not whole and state[-1] != history[len(state) - 1]:
            self.find(f"two histories at record {len(state) - 1}")

    def acknowledge(self, node: Node, floor: int) -> None:
        index = len(node.state) - 1
        if index <= floor:
            self.find(f"{node.name}: record {index} acknowledged, after {floor} was before it began")
        self.acknowledged.append((node.name, node.state[-1]))
        self.acknowledged_top = max(self.acknowledged_top, index)

    async def judge(self) -> None:
        """After everything has landed: a fresh replay against what was promised."""
        try:
            state = await self.replay()
        except (StaleReader, Fatal) as error:
            self.find(f"a fresh replay does not go through: {error}")
            return
        self.see(state, whole=True)
        places = {entry: index for index, entry in enumerate(state)}
        if len(places) != len(state):
            self.find("a record was applied twice")
        lost = [entry for _, entry in self.acknowledged if entry not in places]
        if lost:
            self.find(f"{len(lost)} of {len(self.acknowledged)} acknowledged records are lost")
            return
        for name in {name for name, _ in self.acknowledged}:
            order = [places[entry] for its, entry in self.acknowledged if its == name]
            if order != sorted(order):
                self.find(f"{name} acknowledged out of order")
        takeovers = {
            record.position.epoch + 1: record.nonce
            for record in self.store.created
            if record.kind == "takeover" and record.chain[:ENTRY_BYTES] in places
        }
        for record in self.store.created:
            if record.kind == "data" and record.nonce != takeovers.get(record.position.epoch):
                self.find(f"{writer_of(record)} wrote {record.position} without having won that epoch")

    async def replay(self) -> list[bytes]:
        reader = LogReader(self.store, CLUSTER, reach=REACH)
        body = await reader.restart()
        state = [] if body is None else entries(body)
        while (record := await reader.read_next()) is not None:
            state.append(record.chain[:ENTRY_BYTES])
        return state

    # --- what happens ---

    def begin(self, place: int) -> None:
        self.lives += 1
        node = Node(self, f"{'abcdefgh'[place]}{self.lives}")
        self.nodes[place] = node
        self.loop.start(node.name, node.live()).add_done_callback(lambda _: self.ended(place, node))

    def ended(self, place: int, node: Node) -> None:
        """A process that ended by itself, or was killed, comes back after a while."""
        if self.nodes.get(place) is node:
            self.flying |= node.store.flying
            self.loop.kill(node.name)
            self.loop.call_later(self.random.random() * 3, self.begin, place)

    async def rage(self) -> None:
        random, loop, weather = self.random, self.loop, self.weather
        until = loop.time() + weather.seconds
        while loop.time() < until:
            await asyncio.sleep(random.expovariate(1.0) * weather.calamity)
            place = random.randrange(weather.nodes)
            node = self.nodes[place]
            point = random.random()
            if point < weather.crash_share:
                self.store.trace(f"{node.name} is killed")
                self.ended(place, node)
            elif point < weather.crash_share + 0.1:
                self.store.trace(f"{node.name} is cut off")
                node.store.cut()
                loop.call_later(random.expovariate(1.0) * weather.stall, node.store.heal)
            else:
                self.stall(node, random.expovariate(1.0) * weather.stall)
                if random.random() < 0.3:  # machines share a hypervisor: two that sleep together
                    self.stall(
                        self.nodes[random.randrange(weather.nodes)], random.expovariate(1.0) * weather.stall
                    )

    def stall(self, node: Node, seconds: float) -> None:
        self.store.trace(f"{node.name} stalls for {seconds:.1f} s")
        self.loop.freeze(node.name)
        self.loop.call_later(seconds, self.loop.thaw, node.name)

    async def story(self) -> None:
        for place in range(self.weather.nodes):
            self.begin(place)
        await self.rage()
        await self.become_calm()
        await self.progress()
        for node in self.nodes.values():
            self.flying |= node.store.flying
            self.loop.kill(node.name)
        self.nodes.clear()
        while flying := {task for task in self.flying if not task.done()}:
            await asyncio.wait(flying)
        await self.judge()

    async def become_calm(self) -> None:
        self.store.trace("calm")
        self.calm = True
        for node in self.nodes.values():
            node.store.heal()
            node.store.calm()
            self.loop.thaw(node.name)

    async def progress(self) -> None:
        """Somebody leads, and records are acknowledged."""
        wanted = len(self.acknowledged) + 5
        deadline = self.loop.time() + CALM_SECONDS
        while len(self.acknowledged) < wanted and self.found is None:
            if self.loop.time() > deadline:
                self.find(f"no progress in {CALM_SECONDS:g} calm seconds")
                return
            await asyncio.sleep(0.5)


def entries(body: bytes) -> list[bytes]:
    return [body[i : i + ENTRY_BYTES] for i in range(0, len(body), ENTRY_BYTES)]


def play(seed: int, weather: str = "rough", *, lines: list[str] | None = None) -> World:
    """One whole run. Raises Violation with the command that replays it."""
    world = World(seed, WEATHERS[weather])
    world.store.lines = lines
    try:
        run(world.story(), world.loop)
    except Deadlock as error:
        world.find(f"deadlock {error}")
    found = world.found or world.store.violation
    if found is not None:
        raise Violation(f"{found}\nreplay: python -m tests.simulation.journal_world {seed} {weather}")
    return world


if __name__ == "__main__":
    told: list[str] = []
    try:
        play(int(sys.argv[1]), *sys.argv[2:3], lines=told)
    finally:
        print("\n".join(told))
