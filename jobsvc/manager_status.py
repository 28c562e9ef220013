"""Reading what the managers say of themselves."""

from __future__ import annotations

from .commands import ManagerStatus


def leader_of(statuses: list[ManagerStatus]) -> ManagerStatus | None:
    """The leader of the greatest epoch: one that was replaced while it slept may not know it yet."""
    leaders = [status for status in statuses if status.role == "leader"]
    return max(leaders, key=lambda status: status.epoch, default=None)


def commit_problem(statuses: list[ManagerStatus], commit_age_max: float) -> str | None:
    """Why nothing can be committed now, or None."""
    leader = leader_of(statuses)
    if leader is None:
        said = [f"; {status.name}: {status.problem}" for status in statuses if status.problem]
        return "no manager leads" + "".join(said[:1])
    if not leader.healthy:
        return leader.problem or f"{leader.name} is not healthy"
    if leader.commit_age_seconds is None or leader.commit_age_seconds > commit_age_max:
        return f"{leader.name} has committed nothing for {leader.commit_age_seconds or 0:.0f} s"
    return None


def percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def lag_records(status: ManagerStatus, leader: ManagerStatus | None) -> int | None:
    """How many records a manager is behind the leader, if that is known."""
    if status is leader:
        return 0
    if status.lag_records is None and leader is not None and status.role == "standby":
        return max(0, leader.applied_records - status.applied_records)
    return status.lag_records


def unserved_words(leader: ManagerStatus | None) -> list[str]:
    """What jobs wait for and will not get, unless somebody does something."""
    unserved = leader.pulse.unserved if leader is not None and leader.pulse is not None else {}
    return [
        f"{count:,} {'job waits' if count == 1 else 'jobs wait'} for task {task!r}, which the service's code"
        f" does not have: bring it back, or cancel what waits (jobsvc cancel --task {task})"
        for task, count in unserved.items()
    ]
