"""How many workers a pool should have."""

from __future__ import annotations

import pytest

from jobsvc.scaling import JobSeconds, MachineRequest, Machines, impossible, outlook, shape_of, wanted_workers
from jobsvc.settings import PoolSettings

POOL = PoolSettings(min_workers=0, max_workers=100, target_drain_seconds=10.0)


@pytest.mark.parametrize(
    ("queued", "running", "job_seconds", "wanted"),
    [
        (0, 0, None, 0),
        (1, 0, None, 1),  # one job needs one worker
        (1, 0, 0.001, 1),
        (0, 1, 0.001, 1),  # what runs is not taken away
        (5, 0, 3600.0, 5),  # never more workers than jobs
        (1000, 0, 0.1, 10),  # 100 seconds of work in 10 seconds
        (990, 10, 0.1, 10),
        (1000, 0, None, 100),
        (10_000, 0, 60.0, 100),  # never more than the pool may have
    ],
)
def test_wanted_follows_the_work(queued: int, running: int, job_seconds: float | None, wanted: int) -> None:
    assert wanted_workers(POOL, queued=queued, running=running, job_seconds=job_seconds) == wanted


def test_the_least_number_is_kept_without_work() -> None:
    pool = PoolSettings(min_workers=2, max_workers=3)
    assert wanted_workers(pool, queued=0, running=0, job_seconds=None) == 2
    assert wanted_workers(pool, queued=500, running=0, job_seconds=9.0) == 3


def test_no_drain_time_means_a_worker_for_each_job() -> None:
    pool = PoolSettings(max_workers=50, target_drain_seconds=0.0)
    assert wanted_workers(pool, queued=20, running=0, job_seconds=0.1) == 20


def test_wanted_never_falls_when_work_grows() -> None:
    sizes = [wanted_workers(POOL, queued=n, running=3, job_seconds=0.7) for n in range(2000)]
    assert sizes == sorted(sizes)


def test_the_measure_follows_the_latest_reports() -> None:
    seconds = JobSeconds()
    seconds.add(0, 5.0)
    assert seconds.seconds is None
    seconds.add(10, 20.0)
    assert seconds.seconds == 2.0
    seconds.add(1, 7.0)
    assert seconds.seconds == pytest.approx(3.0)  # one report is not the truth
    seconds.add(1000, 100.0)
    assert seconds.seconds == pytest.approx(0.1, rel=0.01)  # many are


# --- what a pool waits for --------------------------------------------------------------------------


NOON = 1_800_014_400.0  # 12:00:00 UTC
SHAPE = shape_of(PoolSettings(num_cpus=4, num_gpus=1, resources={"licence": 1}))


def test_a_pool_waits_for_machines_since_they_were_asked_for() -> None:
    asked = [MachineRequest("worker-a", 1, NOON), MachineRequest("worker-b", 2, NOON + 5)]
    said = outlook(Machines(requested=asked), SHAPE, NOON + 9)
    assert said == "waiting for 3 machines since 12:00:00 UTC"
    assert outlook(Machines(starting=1), SHAPE, NOON) == "waiting for 1 machine"


def test_what_the_cloud_refused_is_said_in_its_own_words_for_a_while() -> None:
    refused = MachineRequest("worker-a", 1, NOON, "InsufficientInstanceCapacity:\n no m6i.xlarge")
    machines = Machines(requested=[MachineRequest("worker-b", 1, NOON)], refused=[refused])
    assert outlook(machines, SHAPE, NOON + 10) == (
        "waiting for 1 machine since 12:00:00 UTC; "
        "worker-a was refused: InsufficientInstanceCapacity: no m6i.xlarge"
    )
    assert outlook(Machines(refused=[refused]), SHAPE, NOON + 10_000) is None


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (
            [{"CPU": 8}, {"CPU": 2}],
            "no machine here has what a worker of this pool needs (GPU: 1, licence: 1)",
        ),
        (
            [{"CPU": 8, "licence": 1}, {"CPU": 2, "GPU": 1, "licence": 1}],
            "no machine here has what a worker of this pool needs (CPU: 4, GPU: 1, licence: 1)",
        ),
        ([{"CPU": 4, "GPU": 1, "licence": 1, "memory": 1e9}], None),
        (None, None),
    ],
)
def test_without_an_autoscaler_the_machines_that_are_here_decide(
    here: list[dict[str, float]] | None, said: str | None
) -> None:
    assert impossible(Machines(here=here), SHAPE) == said


def test_a_shape_that_no_machine_has_is_named() -> None:
    said = outlook(Machines(impossible=[SHAPE]), SHAPE, NOON)
    assert said == "no machine type of the cluster has this pool's shape (CPU: 4, GPU: 1, licence: 1)"
    assert outlook(Machines(impossible=[SHAPE]), shape_of(PoolSettings()), NOON) is None
