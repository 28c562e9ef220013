"""What a cluster left behind on EC2: found by its tag, told apart from what still lives, and ended.

Whether a cluster lives is decided by what EC2 says alone. To ask the head itself would be better evidence,
but from where an operator stands its private address can rarely be reached, and no answer would then mean
nothing.

live     a head is pending or running. All machines that are up are the cluster's own, whatever they do now:
         the head that hangs is its guard's business. Only what nobody comes back for is left behind: stopped
         machines (they are never started again: `cache_stopped_nodes: False`), loose volumes, free
         addresses. A loose volume that is young may be on its way to a machine, and stays.
guarded  no head, but a manager's machine is up, and the guard on it may be bringing a new head right now,
         which will take the workers over. EC2 does not say for how long that has been so (a machine's launch
         time is not the time its head died), so nothing that is up is ended, and no address given back; both
         are reported until somebody says `dead`. After `down` has told the guards to stand still, such a
         cluster is gone.
gone     neither of them, or the operator says that the cluster is dead: everything with the tag is left
         behind.

A persistent spot request starts machines again, so it stays as long as what is up stays, and is cancelled
before any machine is ended. Ray makes none; it is known to be the cluster's only if it carries the tag.

Without a list of the machines nothing is known to be dead, and nothing is ended. A volume or an address with
the tag that is attached to a machine without it is in somebody's use, and stays. So does a volume without
the tag that outlives its machine; both are reported, since they cost money.

Ending goes in rounds: look, end what can be ended, wait, look again. A call that fails leaves its object to
the next round; an object that is gone counts as ended. So it may be repeated, interrupted, or done by two at
once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from typing import TypeVar

import msgspec

from .ec2_instances import HEAD, Address, Ec2, Ec2Error, Instance, SpotRequest, Volume

YOUNG_SECONDS = 900.0
WAIT_SECONDS = 300.0  # for machines to be terminated, after which their disks are free
POLL_SECONDS = 2.0
UNTAGGED = "untagged"  # the state of a volume that is known from its machine alone
SETTLED_LOOKS = 2  # EC2's lists may lag behind what was started a moment ago

Say = Callable[[str], None]
T = TypeVar("T")


class Clock:
    """Time, as a thing that a test can turn by hand."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Verdict(StrEnum):
    END = "left behind"  # and will be ended
    ENDING = "ending"
    ENDED = "ended"
    KEEP = "in use"  # by a live cluster
    LEAVE = "not ours"
    UNSURE = "unsure"


DONE = (Verdict.ENDED, Verdict.KEEP)


class Item(msgspec.Struct, frozen=True):
    """A machine, a disk, an address or a spot request, and what is to become of it."""

    kind: str  # instance, volume, address, spot request
    id: str
    state: str  # EC2's word
    verdict: Verdict
    why: str


class Found(msgspec.Struct, frozen=True):
    """What carries the tag. None: EC2 did not say; `errors` tells why."""

    instances: list[Instance] | None = None
    volumes: list[Volume] | None = None
    addresses: list[Address] | None = None
    requests: list[SpotRequest] | None = None
    errors: tuple[Ec2Error, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One look, judged; or the last look of a sweep with all that it ended."""

    cluster: str
    standing: str  # live, guarded, gone, unknown
    items: list[Item]
    problems: list[str]  # what somebody should look at
    unknown: list[str]  # what EC2 did not say

    @property
    def is_clean(self) -> bool:
        """Nothing is left, and that is known."""
        return not (self.problems or self.unknown) and all(each.verdict in DONE for each in self.items)

    def having(self, *verdicts: Verdict) -> list[Item]:
        return [each for each in self.items if each.verdict in verdicts]


# --- judging --------------------------------------------------------------------------------------


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Whose things are judged, and what is known beside EC2's lists."""

    cluster: str
    manager_types: frozenset[str] = frozenset()  # node types, other than the head's, that have a guard
    dead: bool = False  # the operator says so: no head protects anything
    guards_stand_still: bool = False  # they have been told that the cluster is not wanted


def judge(case: Case, found: Found, now: float) -> Report:
    """What is left behind of all that was found. Ends nothing."""
    standing, problems = _standing(case, found.instances)
    instances = [_judge_instance(each, standing) for each in found.instances or ()]
    verdicts = {each.id: each.verdict for each in instances}
    items = [*instances]
    items += [_judge_volume(each, standing, verdicts, now) for each in found.volumes or ()]
    items += [_judge_address(each, standing, verdicts) for each in found.addresses or ()]
    items += [_judge_request(each, standing) for each in found.requests or ()]
    items += _strays(found, verdicts)
    return Report(
        cluster=case.cluster,
        standing=standing,
        items=items,
        problems=problems,
        unknown=[str(error) for error in found.errors],
    )


def _standing(case: Case, instances: list[Instance] | None) -> tuple[str, list[str]]:
    """Live, guarded, gone or unknown; and what somebody should look at."""
    if instances is None:
        return "unknown", []
    if case.dead:
        return "gone", []
    heads = [each.id for each in instances if each.is_up and each.kind == HEAD]
    managers = [each.id for each in instances if each.is_up and each.node_type in case.manager_types]
    if heads:
        return "live", _problems_with(heads, case)
    if managers and not case.guards_stand_still:
        names = ", ".join(managers)
        return "guarded", [f"no head is up, but {names} may be bringing one; if that is not so, use --dead"]
    return "gone", []


def _problems_with(heads: list[str], case: Case) -> list[str]:
    names = ", ".join(heads)
    problems = []
    if len(heads) > 1:
        problems.append(f"there is more than one head: {names}; end the one that is not wanted")
    if case.guards_stand_still:
        problems.append(f"the cluster was taken down, but its head is up: {names}; take it down once more")
    return problems


def _judge_instance(instance: Instance, standing: str) -> Item:
    verdict, why = _verdict_on_instance(instance, standing)
    name = instance.node_type or instance.kind or "machine"
    return Item("instance", instance.id, instance.state, verdict, f"{name}: {why}")


def _verdict_on_instance(instance: Instance, standing: str) -> tuple[Verdict, str]:
    if instance.state == "terminated":
        return Verdict.ENDED, "has ended"
    if instance.is_ended:
        return Verdict.ENDING, "is being ended"
    if not instance.is_up:
        return Verdict.END, "stopped, and nothing starts it again; its disk costs money"
    if standing == "live":
        return Verdict.KEEP, "belongs to a live cluster"
    if standing == "guarded":
        return Verdict.UNSURE, "has no head; a guard may be bringing one"
    return Verdict.END, "has no live cluster"


def _judge_volume(volume: Volume, standing: str, verdicts: dict[str, Verdict], now: float) -> Item:
    verdict, why = _verdict_on_volume(volume, standing, verdicts, now)
    return Item("volume", volume.id, volume.state, verdict, why)


def _verdict_on_volume(
    volume: Volume, standing: str, verdicts: dict[str, Verdict], now: float
) -> tuple[Verdict, str]:
    if volume.state == "deleted":
        return Verdict.ENDED, "has been deleted"
    if volume.state == "deleting":
        return Verdict.ENDING, "is being deleted"
    if standing == "unknown":
        return Verdict.UNSURE, "it is not known which machines live"
    if volume.instances:
        return _verdict_by_machines(volume.instances, verdicts)
    if volume.state == "in-use":
        return Verdict.ENDING, "is being detached"
    if standing != "gone" and now - volume.created_at < YOUNG_SECONDS:
        return Verdict.KEEP, "young: it may be on its way to a machine"
    return Verdict.END, "attached to nothing"


def _judge_address(address: Address, standing: str, verdicts: dict[str, Verdict]) -> Item:
    state = "associated" if address.association else "free"
    if standing == "unknown":
        verdict, why = Verdict.UNSURE, "it is not known which machines live"
    elif not address.association and standing == "guarded":
        verdict, why = Verdict.UNSURE, "associated with nothing, but perhaps with the next head"
    elif not address.association:
        verdict, why = Verdict.END, "associated with nothing"
    elif address.instance:
        verdict, why = _verdict_by_machines((address.instance,), verdicts)
        # an ended machine may hold its address for a while; nobody has to wait for that
        verdict = Verdict.END if verdict is Verdict.ENDING else verdict
    else:
        verdict, why = Verdict.LEAVE, f"in use by a network interface of its own: {address.association}"
    return Item("address", address.id, state, verdict, f"{address.public_ip}: {why}")


def _judge_request(request: SpotRequest, standing: str) -> Item:
    verdict, why = {
        "live": (Verdict.KEEP, "belongs to a live cluster"),
        "guarded": (Verdict.UNSURE, "has no head; a guard may be bringing one"),
        "gone": (Verdict.END, "starts machines, and has no live cluster"),
    }.get(standing, (Verdict.UNSURE, "it is not known which machines live"))
    return Item("spot request", request.id, request.state, verdict, f"persistent: {why}")


def _verdict_by_machines(machines: tuple[str, ...], verdicts: dict[str, Verdict]) -> tuple[Verdict, str]:
    """What is attached goes with its machine. One machine that stays is enough for it to stay."""
    names = ", ".join(machines)
    held_by = {verdicts.get(each, Verdict.LEAVE) for each in machines}
    if Verdict.LEAVE in held_by:
        return Verdict.LEAVE, f"in use by {names}, which does not carry the cluster's tag"
    for verdict in (Verdict.KEEP, Verdict.UNSURE):
        if verdict in held_by:
            return verdict, f"in use by {names}"
    return Verdict.ENDING, f"goes with {names}"


def _strays(found: Found, verdicts: dict[str, Verdict]) -> Iterator[Item]:
    """Volumes without the tag that will be there when their machine has ended."""
    if found.volumes is None:
        return
    tagged = {each.id for each in found.volumes}
    for instance in found.instances or ():
        if verdicts[instance.id] in (Verdict.END, Verdict.ENDING):
            for volume in instance.kept_volumes:
                if volume not in tagged:
                    why = f"outlives {instance.id} and does not carry the cluster's tag"
                    yield Item("volume", volume, UNTAGGED, Verdict.LEAVE, why)


# --- ending ---------------------------------------------------------------------------------------


class Sweep:
    """One sweep of one cluster: what it has seen, ended, and been refused."""

    def __init__(
        self, ec2: Ec2, case: Case, *, say: Say = lambda _: None, clock: Clock | None = None
    ) -> None:
        self._ec2 = ec2
        self._case = case
        self._say = say
        self._clock = clock or Clock()
        self._found = Found()
        self._ended: dict[str, Item] = {}
        self._strays: dict[str, Item] = {}
        self._refused: dict[str, Ec2Error] = {}

    def look(self) -> Report:
        """What there is now, and what this sweep has ended."""
        errors: list[Ec2Error] = []
        self._found = Found(
            _answer(lambda: self._ec2.instances(self._case.cluster), errors),
            _answer(lambda: self._ec2.volumes(self._case.cluster), errors),
            _answer(lambda: self._ec2.addresses(self._case.cluster), errors),
            _answer(lambda: self._ec2.persistent_spot_requests(self._case.cluster), errors),
            tuple(errors),
        )
        report = judge(self._case, self._found, self._clock.now())
        return self._with_memory(report)

    def end(self, wait_seconds: float = WAIT_SECONDS) -> Report:
        """End what is left behind, until nothing is, or no more can be done, or the time is over."""
        deadline = self._clock.now() + wait_seconds
        quiet_looks = 0
        while True:
            report = self.look()
            if self._end_all(report) or self._is_open(report):
                quiet_looks = 0
            else:
                quiet_looks += 1
                # who has touched nothing and was told nothing need not look twice
                if quiet_looks == SETTLED_LOOKS or not (self._ended or self._case.dead):
                    return report
            if self._clock.now() >= deadline:
                return self.look()
            self._clock.sleep(POLL_SECONDS)

    def _end_all(self, report: Report) -> bool:
        """One round. True if something was there to be ended."""
        due = {each.id: each for each in report.having(Verdict.END) if self._may_try(each.id)}
        for request in self._found.requests or ():
            if request.id in due:
                self._note(due[request.id], _failure(partial(self._ec2.cancel, request)))
        machines = [each.id for each in self._in_order(self._found.instances or []) if each.id in due]
        failed = self._ec2.terminate(machines)
        for name in machines:
            self._note(due[name], failed.get(name))
        for volume in self._found.volumes or ():
            if volume.id in due:
                self._note(due[volume.id], _failure(partial(self._ec2.delete_volume, volume)))
        for address in self._found.addresses or ():
            if address.id in due:
                self._note(due[address.id], _failure(partial(self._ec2.release, address)))
        return bool(due)

    def _in_order(self, instances: list[Instance]) -> list[Instance]:
        """First what would start machines again: the head's autoscaler and the guard."""
        return sorted(
            instances, key=lambda each: each.kind != HEAD and each.node_type not in self._case.manager_types
        )

    def _note(self, item: Item, error: Ec2Error | None) -> None:
        if error is None:
            self._refused.pop(item.id, None)
            self._ended[item.id] = item
            self._say(f"ended {item.kind} {item.id} ({item.why})")
        else:
            self._refused[item.id] = error

    def _may_try(self, name: str) -> bool:
        return name not in self._refused or self._refused[name].may_pass

    def _is_open(self, report: Report) -> bool:
        """True while waiting may change something."""
        return (
            bool(report.having(Verdict.ENDING))
            or any(error.may_pass for error in self._found.errors)
            or any(self._may_try(each.id) for each in report.having(Verdict.END))
        )

    def _with_memory(self, report: Report) -> Report:
        """With what has vanished from EC2's lists since it was ended, and why the rest could not be."""
        items = [
            msgspec.structs.replace(each, why=f"{each.why}; EC2 says: {self._refused[each.id]}")
            if each.verdict is Verdict.END and each.id in self._refused
            else each
            for each in report.items
        ]
        self._strays.update({each.id: each for each in items if each.state == UNTAGGED})
        listed = {each.id for each in items}
        known = {
            "instance": self._found.instances is not None,
            "volume": self._found.volumes is not None,
            "address": self._found.addresses is not None,
            "spot request": self._found.requests is not None,
        }
        items += [
            msgspec.structs.replace(each, state="gone", verdict=Verdict.ENDED)
            for each in self._ended.values()
            if each.id not in listed and known[each.kind]
        ]
        items += [each for each in self._strays.values() if each.id not in listed]
        return msgspec.structs.replace(report, items=items)


def _answer(ask: Callable[[], list[T]], errors: list[Ec2Error]) -> list[T] | None:
    try:
        return ask()
    except Ec2Error as error:
        errors.append(error)
        return None


def _failure(act: Callable[[], None]) -> Ec2Error | None:
    try:
        act()
    except Ec2Error as error:
        return error
    return None
