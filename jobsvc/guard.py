"""The guard: brings back a head that is gone, with no hand. It runs on the manager node (`jobsvc guard`).

It looks every few seconds at what EC2 says of the cluster's heads, and whether a head's GCS port answers;
if none does, it asks in the store:

    watch ──head gone, for sure──> claim a lease ──mine──> end what is left of it ──> `ray up` ──> watch

The journal is in the store, so a new head is all that is needed: it starts the service, which replays.

**The head is gone** if EC2 says so (ended, stopped, not there) in two looks. If EC2 says that it runs, it
must be silent in two ways at once, for minutes: its port, and the store, where it answers questions
although nobody can reach it. So a cut between this machine and a living head, however long, ends nobody.
`guard_evidence` has the rules and the one function that decides, `head_pulse` the questions. A head that
was rebooted is back in that time; and if it is our own machine that is cut off, a living head's
autoscaler has missed our raylet, and has ended our machine.

**Knowledge that is missing is no reason to act.** If EC2 or the store does not answer, nothing is known,
and time that was not watched does not count; after a gap of more than `GAP_SECONDS_MAX` (a machine that
slept, a store that was away) all of it is watched anew. The guard acts only for a head that it has itself
seen alive, so a machine that was left over brings nothing back; never while its own machine is being
ended, which is what `ray down` looks like from here; and never if the operator has taken the cluster down
(`ec2_cluster_mark`).

**Only one guard acts for a dead head.** The right to act is an object, `guard/<dead head>/<try>`, and the
store lets one create it (`put_new`). It is worth `hold_seconds`, counted by its holder from *before* it
was sent; when they are over, the holder stops, in the middle of `ray up` too. Others count from when they
*first saw* it, and wait `hold_seconds` and a margin before one of them creates the next try. Nobody's wall
clock is compared with another's. The margin is for what the holder had sent before it stopped: EC2 may do
it later.

**The holder dies half way**: its lease runs out, and the next try follows it. If the guard's process
dies, and not its machine, it goes on with its lease: what it knows is in a file that a boot takes away.
What a try finds half made when it begins (a head that is there and does not answer had its time, and is
looked at once more with the lease) it ends first, so that there are never two heads; what it makes
itself, it continues: `ray up` goes on with a head that it finds.

**An answer gets lost**: a put whose outcome is unknown is sent again, the same bytes; only who reads its
own nonce holds. `ray up` whose answer is lost has left a head, or has not: the next look tells.

**Still two heads** (the operator's `ray up` at the same moment, or a holder that was frozen inside a
call): of those that are up, the one that answers and was launched first stays, and the others are ended.
Until then the journal is safe: its epochs let one leader write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from .ec2_cluster_mark import is_down
from .errors import JobsvcError
from .guard_evidence import Ec2Says, Evidence, Verdict, judge
from .head_pulse import Questions, Sign
from .node_settings import GuardSettings
from .object_store import ObjectStore, PutOutcome, StoreError

PREFIX = "guard/"
STEP_SECONDS_MAX = 15.0
GAP_SECONDS_MAX = 60.0

_log = logging.getLogger("jobsvc.guard")


class Ec2Silent(JobsvcError):
    """EC2 did not answer, or said that it cannot: nothing is known."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """A head as EC2 shows it."""

    id: str
    is_up: bool  # pending or running
    is_ended: bool  # shutting down or terminated: neither is a machine that has been stopped
    launched_at: float
    private_ip: str


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One look at EC2."""

    heads: tuple[Head, ...]
    own_machine_runs: bool


class Cloud(Protocol):
    """EC2. `look` and `end` raise Ec2Silent."""

    async def look(self) -> Sight: ...

    async def is_impaired(self, instance_id: str) -> bool:
        """EC2 says that something is wrong with it. Not known is no: only knowledge makes us hurry."""
        ...

    async def end(self, instance_id: str) -> None: ...


class Hands(Protocol):
    """What the guard can do and ask on its own machine."""

    async def head_answers(self, ip: str) -> bool: ...

    async def launch(self, started_by: str) -> bool:
        """`ray up`; True if it says that the head is up. A cancelled one is killed."""
        ...


class Claim(msgspec.Struct, kw_only=True):
    """A lease that we asked for. `since` is on the machine's monotonic clock, before the first put."""

    key: str
    nonce: str
    since: float
    condemned: list[str]
    is_sure: bool = False


class Memory(msgspec.Struct, kw_only=True):
    """What outlives the guard's process, and not a boot: the monotonic clock starts anew then."""

    head: str | None = None  # the last one that was seen alive
    claim: Claim | None = None


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The object itself."""

    by: str
    nonce: str


class Guard:
    """One guard. `run` for ever, or `step` by step."""

    def __init__(
        self,
        settings: GuardSettings,
        store: ObjectStore,
        cloud: Cloud,
        hands: Hands,
        *,
        name: str,
        cluster_name: str,
        memory: Memory,
        remember: Callable[[Memory], None],
        new_nonce: Callable[[], str],
        monotonic: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._store = store
        self._cloud = cloud
        self._hands = hands
        self._name = name
        self._cluster_name = cluster_name
        self._memory = memory
        self._remember = remember
        self._new_nonce = new_nonce
        self._monotonic = monotonic
        self._questions = Questions(store, new_nonce)
        self._stepped_at = self._watched_at = monotonic()
        self._problem: tuple[object, ...] = ()  # what we look at, and for how long we have watched it
        self._problem_seconds = 0.0
        self._first_seen: dict[str, float] = {}  # leases of others
        # What a `ray up` of the process before this one asked of EC2 may still be on its way.
        self._not_before = monotonic() + (settings.retry_seconds if memory.claim else 0.0)
        self._said = ""

    async def run(self) -> None:
        """Look, and act, for ever. Raises Fatal where the store is unfit."""
        while True:
            if not await self.step():
                await asyncio.sleep(self._settings.poll_seconds)

    async def step(self) -> bool:
        """One look, and at most one deed. True: look again at once."""
        may_act = self._holds()  # before the look: what is done follows from what was seen while we held
        try:
            return await self._step(may_act)
        except (Ec2Silent, StoreError) as error:
            self._say(f"nothing is known: {error}")
            self._stepped_at = self._monotonic()  # it was not watched
            return False

    async def _step(self, may_act: bool) -> bool:
        sight = await self._cloud.look()
        up = [head for head in sight.heads if head.is_up]
        alive = [head for head in up if head.private_ip and await self._hands.head_answers(head.private_ip)]
        if alive:
            await self._watch(up, alive)
            return False
        if self._memory.head is None:
            self._say("no head has been seen alive from here yet")
            return False
        if not sight.own_machine_runs:
            self._say("this machine is being ended")
            return False
        dead = self._memory.head
        leases = [] if may_act else await self._see_leases(dead)
        sign, answering = await self._ask(up)
        verdict = await self._judge(dead, up, sign)
        if verdict is Verdict.LIVES:
            self._settle(answering)
            self._say(f"head {answering} answers in the store, and not here: the way to it is cut")
            return False
        if verdict is not Verdict.DEAD and not may_act:
            return False
        if await is_down(self._store, self._cluster_name):
            self._say(f"{self._cluster_name} has been taken down")
            return False
        if not may_act:
            return await self._claim(dead, up, leases)
        return await self._bring_back(sight)

    # --- watching -------------------------------------------------------------------------------

    async def _watch(self, up: list[Head], alive: list[Head]) -> None:
        keeper = min(alive, key=lambda head: (head.launched_at, head.id))
        self._settle(keeper.id)
        self._say(f"head {keeper.id} answers")
        others = tuple(head.id for head in up if head is not keeper)
        if self._watched("two heads", *others) >= self._settings.gone_seconds and others:
            for each in others:
                _log.warning("%s is a second head beside %s: it is ended", each, keeper.id)
                await self._cloud.end(each)

    def _settle(self, keeper: str) -> None:
        """This head lives: it is the one to be watched, and nothing is to be done for it."""
        claim = self._memory.claim
        if self._memory.head != keeper:
            self._set(Memory(head=keeper))
            self._first_seen.clear()
        elif claim is not None:  # it was not dead; when it is, the next try follows this one
            self._first_seen[claim.key] = claim.since
            self._set(Memory(head=keeper))

    async def _ask(self, up: list[Head]) -> tuple[Sign, str]:
        """What the store says of heads whose ports are silent, and which of them has answered.

        One that has answered is enough, and nothing is asked after it that could fail and lose the answer.
        """
        signs = set()
        for head in up:
            sign = await self._questions.look(head.id)
            if sign is Sign.ANSWERED:
                return sign, head.id
            signs.add(sign)
        return Sign.ASKED if signs == {Sign.ASKED} else Sign.NOT_ASKED, ""

    async def _judge(self, dead: str, up: list[Head], sign: Sign) -> Verdict:
        """Whether the last head that was alive is to be followed by another."""
        names = sorted(head.id for head in up)
        ec2 = Ec2Says.RUNS if dead in names else Ec2Says.COMING if names else Ec2Says.GONE
        seconds = self._watched(ec2, sign, *names)
        impaired = (
            ec2 is Ec2Says.RUNS
            and sign is Sign.ASKED
            and seconds >= self._settings.head_silent_seconds
            and await self._cloud.is_impaired(dead)
        )
        if ec2 is Ec2Says.GONE:
            self._say(f"head {dead} is gone")
        elif sign is not Sign.ANSWERED:
            others = "" if ec2 is Ec2Says.RUNS else f", after {dead}"
            self._say(f"head {', '.join(names)}{others}: {ec2.value}, its port is silent, and {sign.value}")
        seen = Evidence(ec2=ec2, store=sign, seconds=seconds, is_impaired=impaired)
        return judge(seen, self._settings)

    def _watched(self, *problem: object) -> float:
        """For how long we have looked at this very problem."""
        now = self._monotonic()
        passed = min(now - self._stepped_at, STEP_SECONDS_MAX)
        self._stepped_at = now
        is_same = problem == self._problem and now - self._watched_at <= GAP_SECONDS_MAX
        self._problem_seconds = self._problem_seconds + passed if is_same else 0.0
        self._problem, self._watched_at = problem, now
        return self._problem_seconds

    # --- the lease ------------------------------------------------------------------------------

    def _holds(self) -> bool:
        claim = self._memory.claim
        return claim is not None and claim.is_sure and self._seconds_left(claim) > 0

    def _seconds_left(self, claim: Claim) -> float:
        return claim.since + self._settings.hold_seconds - self._monotonic()

    async def _see_leases(self, dead: str) -> list[str]:
        """The leases for this head, in their order. From when we first saw one, its time counts here."""
        keys = await self._store.list(f"{PREFIX}{dead}/")
        now = self._monotonic()
        claim = self._memory.claim
        for key in keys:
            is_own = claim is not None and claim.is_sure and claim.key == key
            self._first_seen.setdefault(key, claim.since if claim is not None and is_own else now)
        return keys

    async def _claim(self, dead: str, up: list[Head], leases: list[str]) -> bool:
        """Ask for the right to act. True if we have it."""
        claim = self._memory.claim
        if claim is None or claim.is_sure or self._seconds_left(claim) <= 0:
            claim = self._next_claim(dead, up, leases)
        if claim is None:
            return False
        body = msgspec.json.encode(Lease(by=self._name, nonce=claim.nonce))
        outcome = await self._store.put_new(claim.key, body)
        if outcome is PutOutcome.UNKNOWN:
            return False  # the same again in the next step
        if outcome is PutOutcome.EXISTS and await self._store.get(claim.key) != body:
            self._set(Memory(head=dead))
            return False
        claim.is_sure = True
        self._set(Memory(head=dead, claim=claim))
        _log.warning("head %s is gone, and this guard brings another: %s", dead, claim.key)
        return True

    def _next_claim(self, dead: str, up: list[Head], leases: list[str]) -> Claim | None:
        """The claim that may be made now, if the last one has run out."""
        now = self._monotonic()
        if leases:
            patience = self._settings.hold_seconds + self._settings.margin_seconds
            if now - self._first_seen[leases[-1]] < patience:
                self._say(f"{leases[-1]} is at work")
                return None
        number = int(leases[-1].rpartition("/")[2]) + 1 if leases else 0
        claim = Claim(
            key=f"{PREFIX}{dead}/{number:04}",
            nonce=self._new_nonce(),
            since=now,
            condemned=sorted({dead, *(head.id for head in up)}),
        )
        self._set(Memory(head=dead, claim=claim))
        return claim

    # --- acting ---------------------------------------------------------------------------------

    async def _bring_back(self, sight: Sight) -> bool:
        """With the lease, and after a look that was made with it."""
        claim = self._memory.claim
        if claim is None or not self._holds():
            return False
        left_over = [head for head in sight.heads if head.id in claim.condemned and not head.is_ended]
        for head in left_over:
            _log.warning("head %s does not answer: it is ended", head.id)
            await self._cloud.end(head.id)
        if left_over or self._monotonic() < self._not_before:
            return False
        started = self._monotonic()
        try:
            worked = await asyncio.wait_for(self._hands.launch(claim.key), self._seconds_left(claim))
        except TimeoutError:
            worked = False
        _log.warning("ray up %s after %.0f s", "is done" if worked else "failed", self._monotonic() - started)
        self._not_before = self._monotonic() + self._settings.retry_seconds
        return worked

    # --- remembering ----------------------------------------------------------------------------

    def _set(self, memory: Memory) -> None:
        self._memory = memory
        self._remember(memory)

    def _say(self, text: str) -> None:
        """Once for each change, not once for each look."""
        if text != self._said:
            _log.info("%s", text)
            self._said = text
