"""The sweep: it ends what a cluster left behind, and touches nothing else, whatever fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from moto import mock_aws

from jobsvc.ec2_instances import Ec2
from jobsvc.ec2_sweep import Case, Report, Sweep, Verdict

from .ec2_world import CLUSTER, Ec2World, FlakyClient, TurnedClock, refusal

MANAGERS = frozenset({"manager"})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2World]:
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # a second for each test
    with mock_aws():
        yield Ec2World()


def sweep_of(
    world: Ec2World,
    *,
    dead: bool = False,
    guards_stand_still: bool = False,
    client: Any = None,
    clock: TurnedClock | None = None,
) -> Sweep:
    clock = clock or TurnedClock()
    case = Case(cluster=CLUSTER, manager_types=MANAGERS, dead=dead, guards_stand_still=guards_stand_still)
    return Sweep(Ec2(client or world.client, sleep=clock.sleep), case, clock=clock)


def verdicts(report: Report) -> dict[str, Verdict]:
    return {each.id: each.verdict for each in report.items}


def strangers(world: Ec2World) -> dict[str, str]:
    """What others have in the account; returns it as it has to stay."""
    before = world.states()
    for cluster in ("harvest2", None):
        world.machine("head", cluster=cluster)
        world.machine(cluster=cluster, stopped=True)
        world.volume(cluster=cluster)
        world.address(cluster=cluster)
    world.address(cluster=None, machine=world.machine(cluster="Harvest"))
    return {name: state for name, state in world.states().items() if name not in before}


# --- what is left behind --------------------------------------------------------------------------


def test_a_stopped_machine_and_its_loose_volume_are_ended(world: Ec2World) -> None:
    others = strangers(world)
    # given what is left when nodes were stopped and not terminated
    stopped = world.machine(stopped=True)
    loose = world.volume()
    report = sweep_of(world).end()
    # then both are ended, and it is said
    assert report.is_clean
    assert verdicts(report) | {stopped: Verdict.ENDED, loose: Verdict.ENDED} == verdicts(report)
    assert world.states() == others


def test_a_cluster_without_head_and_manager_is_gone_with_all_that_is_up(world: Ec2World) -> None:
    others = strangers(world)
    workers = [world.machine() for _ in range(3)]
    attached = world.volume(machine=workers[0])
    report = sweep_of(world).end()
    assert report.standing == "gone"
    assert {*workers, attached} <= set(verdicts(report))
    assert world.states() == others


def test_a_look_changes_nothing(world: Ec2World) -> None:
    world.machine(stopped=True)
    world.volume()
    world.address()
    before = world.states()
    report = sweep_of(world).look()
    assert len(report.having(Verdict.END)) >= 3
    assert not report.is_clean
    assert world.states() == before


def test_repeating_it_is_harmless(world: Ec2World) -> None:
    world.machine(stopped=True)
    world.address()
    assert sweep_of(world).end().is_clean
    after = world.states()
    again = sweep_of(world).end()
    assert again.is_clean
    assert world.states() == after


def test_addresses_are_released_with_or_without_their_machine(world: Ec2World) -> None:
    world.address()
    world.address(machine=world.machine())
    report = sweep_of(world).end()
    assert report.is_clean
    assert world.states() == {}


def test_a_persistent_spot_request_is_cancelled_before_its_machine_is_ended(world: Ec2World) -> None:
    # given requests of this cluster, of another and of nobody
    ours, other, nobodys = (world.spot_request(cluster=each) for each in (CLUSTER, "harvest2", None))
    once = world.spot_request(kind="one-time")
    client = FlakyClient(world.client, 1, fail_rate=0.0)
    report = sweep_of(world, client=client).end()
    # then only ours is cancelled; what is over with its machine is left to that
    assert report.is_clean
    assert verdicts(report)[ours] is Verdict.ENDED
    assert not {other, nobodys, once} & set(verdicts(report))
    assert world.spot_requests() == {other, nobodys, once}
    assert client.calls.index("cancel_spot_instance_requests") < client.calls.index("terminate_instances")


def test_a_persistent_spot_request_of_a_live_or_guarded_cluster_stays(world: Ec2World) -> None:
    request = world.spot_request()
    manager = world.machine("manager")
    assert verdicts(sweep_of(world).end())[request] is Verdict.UNSURE
    head = world.machine("head")
    assert verdicts(sweep_of(world).end())[request] is Verdict.KEEP
    assert world.spot_requests() == {request}
    # until the cluster is said to be dead
    report = sweep_of(world, dead=True).end()
    assert report.is_clean and {request, head, manager} <= set(verdicts(report))
    assert world.spot_requests() == set()


def test_whether_there_are_spot_requests_is_not_known_if_ec2_does_not_say(world: Ec2World) -> None:
    client = FlakyClient(world.client, 1, fail_rate=1.0, names="describe_spot_instance_requests")
    report = sweep_of(world, client=client).look()
    assert not report.is_clean and "describe_spot_instance_requests" in report.unknown[0]


# --- what stays -----------------------------------------------------------------------------------


def test_a_head_protects_what_is_up_but_not_what_is_stopped(world: Ec2World) -> None:
    # given a live cluster, with things around it that nobody comes back for
    machines = world.whole_cluster()
    stopped = world.machine(stopped=True)
    attached, loose = world.volume(machine=machines[0]), world.volume()
    held, free = world.address(machine=machines[1]), world.address()
    report = sweep_of(world).end()
    # then only those are ended
    assert (report.standing, report.is_clean) == ("live", True)
    assert set(machines) | {attached, held} <= set(world.states())
    assert not {stopped, loose, free} & set(world.states())


def test_a_young_volume_of_a_live_cluster_may_be_on_its_way(world: Ec2World) -> None:
    world.machine("head")
    young = world.volume()
    report = sweep_of(world, clock=TurnedClock(ahead_seconds=0.0)).end()
    assert verdicts(report)[young] is Verdict.KEEP
    assert young in world.states()


def test_without_a_head_a_manager_may_be_bringing_one(world: Ec2World) -> None:
    # given a head that has ended, while the guard's machine and a worker are up
    _, manager, worker, *_ = machines = world.whole_cluster(1)
    world.client.terminate_instances(InstanceIds=machines[:1])
    stopped = world.machine(stopped=True)
    address = world.address()  # was the head's, and will be
    # when it is swept, then they stay and are reported
    report = sweep_of(world).end()
    assert report.standing == "guarded"
    assert [each.id for each in report.having(Verdict.UNSURE)] == [manager, worker, address]
    assert not report.is_clean and manager in report.problems[0] and "--dead" in report.problems[0]
    assert {manager, worker, address} <= set(world.states()) and stopped not in world.states()
    # until somebody says that the cluster is dead
    assert sweep_of(world, dead=True).end().is_clean
    assert world.states() == {}


def test_a_guard_that_was_told_to_stand_still_brings_no_head(world: Ec2World) -> None:
    # given a `down` that was interrupted: the head has ended, the others are up
    machines = world.whole_cluster()
    world.client.terminate_instances(InstanceIds=machines[:1])
    assert sweep_of(world, guards_stand_still=True).end().is_clean
    assert world.states() == {}


def test_a_head_protects_even_a_cluster_that_was_taken_down(world: Ec2World) -> None:
    # given a head that somebody started after `down`, and that has not said so yet
    machines = world.whole_cluster()
    report = sweep_of(world, guards_stand_still=True).end()
    assert set(machines) <= set(world.states())
    assert machines[0] in report.problems[0] and not report.is_clean


def test_two_heads_are_reported_and_left_alone(world: Ec2World) -> None:
    heads = [world.machine("head"), world.machine("head")]
    report = sweep_of(world).end()
    assert all(each in report.problems[0] for each in heads)
    assert not report.is_clean
    assert set(heads) <= set(world.states())


def test_what_is_tagged_but_used_by_others_stays_and_is_reported(world: Ec2World) -> None:
    foreign = world.machine(cluster=None)
    volume, address = world.volume(machine=foreign), world.address(machine=foreign)
    report = sweep_of(world, dead=True).end()
    assert verdicts(report) == {volume: Verdict.LEAVE, address: Verdict.LEAVE}
    assert not report.is_clean
    assert {foreign, volume, address} <= set(world.states())


def test_a_volume_without_tag_that_outlives_its_machine_is_reported(world: Ec2World) -> None:
    # given a disk of somebody's, attached by hand to a machine that ends
    machine = world.machine()
    by_hand = world.volume(cluster=None, machine=machine)
    report = sweep_of(world).end()
    # then it is not ours to delete, and not ours to keep silent about
    assert verdicts(report)[machine] is Verdict.ENDED
    assert verdicts(report)[by_hand] is Verdict.LEAVE
    assert by_hand in world.states() and not report.is_clean


def test_what_ec2_lists_without_the_tag_is_not_taken(world: Ec2World) -> None:
    # given an EC2 that does not heed filters
    class Unfiltered:
        def __getattr__(self, name: str) -> Any:
            call = getattr(world.client, name)
            return lambda **given: call(**{k: v for k, v in given.items() if k != "Filters"})

    others = strangers(world)
    world.machine(stopped=True)
    assert sweep_of(world, dead=True, client=Unfiltered()).end().is_clean
    assert world.states() == others


# --- when calls fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_half_of_the_calls_fail_and_all_is_ended_nevertheless(world: Ec2World, seed: int) -> None:
    others = strangers(world)
    machines = [world.machine() for _ in range(3)] + [world.machine(stopped=True)]
    world.volume(machine=machines[0])
    world.volume()
    world.address(machine=machines[1])
    world.address()
    client = FlakyClient(world.client, seed)
    report = sweep_of(world, dead=True, client=client).end()
    assert report.is_clean, report
    assert world.states() == others
    assert len(client.calls) > 20


@pytest.mark.parametrize("seed", range(8))
def test_half_of_the_calls_fail_and_a_live_cluster_is_not_touched(world: Ec2World, seed: int) -> None:
    world.whole_cluster()
    before = world.states()
    world.machine(stopped=True)
    assert sweep_of(world, client=FlakyClient(world.client, seed)).end().is_clean
    assert {name: state for name, state in world.states().items() if name in before} == before


def test_without_a_list_of_machines_nothing_is_ended(world: Ec2World) -> None:
    world.machine("head")
    world.machine(stopped=True)
    world.volume()
    world.address()
    before = world.states()
    client = FlakyClient(world.client, 1, fail_rate=1.0, names="describe_instances")
    report = sweep_of(world, dead=True, client=client).end(wait_seconds=60)
    assert report.standing == "unknown" and not report.is_clean
    assert "describe_instances" in report.unknown[0]
    assert world.states() == before


def test_what_is_not_known_does_not_keep_the_rest(world: Ec2World) -> None:
    # given a policy without the right to look at volumes
    class NoVolumes:
        def __getattr__(self, name: str) -> Any:
            if name == "describe_volumes":
                raise refusal(name, "UnauthorizedOperation", 403)
            return getattr(world.client, name)

    machine, volume = world.machine(), world.volume()
    clock = TurnedClock()
    began = clock.now()
    report = sweep_of(world, client=NoVolumes(), clock=clock).end()
    # then the machine is ended, the volume is said to be unknown, and nothing is waited for
    assert machine not in world.states() and volume in world.states()
    assert not report.is_clean and "UnauthorizedOperation" in report.unknown[0]
    assert clock.now() - began < 30


def test_a_machine_that_is_refused_does_not_keep_the_others(world: Ec2World) -> None:
    # given a machine with termination protection
    machines = [world.machine() for _ in range(3)]
    world.client.modify_instance_attribute(InstanceId=machines[1], DisableApiTermination={"Value": True})
    report = sweep_of(world).end()
    assert [each.id for each in report.having(Verdict.END)] == [machines[1]]
    assert "EC2 says" in report.having(Verdict.END)[0].why
    assert set(world.states()) & set(machines) == {machines[1]}
    # when the protection is taken away, a second sweep ends it
    world.client.modify_instance_attribute(InstanceId=machines[1], DisableApiTermination={"Value": False})
    assert sweep_of(world).end().is_clean


def test_what_appears_while_it_is_swept_is_ended_too(world: Ec2World) -> None:
    # given an autoscaler that starts one more machine before it dies
    world.machine("head")
    clock = TurnedClock()
    late: list[str] = []
    clock.after_sleep = lambda: late.append(world.machine("manager")) if not late else None
    assert sweep_of(world, dead=True, clock=clock).end().is_clean
    assert late and not set(late) & set(world.states())


def test_the_wait_has_an_end(world: Ec2World) -> None:
    # given an EC2 that says yes and ends nothing
    class NeverDone:
        def __getattr__(self, name: str) -> Any:
            return (lambda **_: {}) if name == "terminate_instances" else getattr(world.client, name)

    machine = world.machine()
    clock = TurnedClock()
    began = clock.now()
    report = sweep_of(world, client=NeverDone(), clock=clock).end(wait_seconds=100)
    # then it is not believed
    assert verdicts(report)[machine] is Verdict.END and not report.is_clean
    assert 100 <= clock.now() - began < 200
