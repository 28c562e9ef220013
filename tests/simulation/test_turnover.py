"""What it does for a second it does for a month: a world that turns every table over ten times.

The real managers on virtual time, with small limits, over a store that is quick as a directory and one that
takes 30 ms for each request, as S3 does. Workers are played by the world: they return small results, or put
packs.
After a tenth of the story nothing may grow any more, and nothing may take longer; at its end every job that
is gone has its line, and every object belongs to somebody.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import msgspec
import pytest

from jobsvc import commands as c
from jobsvc import completion_feed, decisions, queue_snapshot, queue_state, recently_finished, remembered_keys
from jobsvc.jobs import BlobRef, JobOptions, NewJob, Outcome, Result, id_text
from jobsvc.manager import Manager
from jobsvc.queue_state import QueueState

from ..unit.manager_world import Pair, SlowStore, done, run, until
from ..unit.queue_world import job_id

TURNS = 10
MAX_JOBS, RETAINED, REMEMBERED, KEYS, QUEUES = 1_200, 400, 600, 30, 25
BATCH = 100


class EvenStore(SlowStore):
    """Each request takes as long as the others."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.put_seconds = self.seconds = seconds

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        await asyncio.sleep(self.seconds)
        return await super().get(key, offset, length)

    async def list(self, prefix: str) -> list[str]:
        await asyncio.sleep(self.seconds)
        return await super().list(prefix)

    async def delete(self, key: str) -> None:
        await asyncio.sleep(self.seconds)
        await super().delete(key)

    async def delete_many(self, keys: list[str]) -> None:
        await asyncio.sleep(self.seconds)
        for key in keys:
            self._objects.pop(key, None)

    def holding(self, *prefixes: str) -> int:
        return sum(key.startswith(prefixes) for key in self._objects)


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_state, "RETIRED_REMEMBERED_MAX", REMEMBERED)
    monkeypatch.setattr(remembered_keys, "KEYS_MAX", KEYS)
    monkeypatch.setattr(decisions, "QUEUES_MAX", QUEUES)
    monkeypatch.setattr(completion_feed, "REVIVED_RANGES_MAX", 100)
    small = {"LAG": 16, "SOME": 16, "AT_ONCE_MIN": 12, "GROUP_MIN": 8, "GROUP_MAX": 32, "OPEN_MIN": 8}
    small["TOGETHER_MIN"] = 4
    for name, number in small.items():
        monkeypatch.setattr(recently_finished, name, number)


def sizes(state: QueueState) -> dict[str, int]:
    """Every table of the state, and what lies in it."""
    return {
        "jobs": len(state.jobs),
        "table": sum(map(len, state.jobs._shards)),
        "order": len(state.order),
        "feed": state.feed.places,
        "revived": len(state.feed.revived),
        "options": len(state.options),
        "queues": len(state.counts),
        "lanes": len(state.lanes),
        "due": len(state.due),
        "retention": len(state.retention),
        "failures": len(state.failures),
        "unpulled": len(state.unpulled),
        "keys": len(state.keys),
        "keys order": len(state.keys._order),
        "automatic keys": len(state.automatic_keys),
        "packs": len(state.packs),
        "retired": len(state.retired),
        "retired order": len(state.retired_order),
        "paused": len(state.paused),
        "leases": len(state.leases),
    }


class Story:
    """One service that does the same again and again."""

    def __init__(self, pair: Pair, store: EvenStore, leader: Manager, packed: bool) -> None:
        self.pair, self.store, self.leader, self.packed = pair, store, leader, packed
        self.ids: list[bytes] = []
        self.numbers = count(1)
        self.refused = 0

    async def turn(self, number: int) -> None:
        """A batch, under names and keys that were never used before; some of it fails, and is put back."""
        queue = f"user-{number}"
        options = [
            JobOptions("demo.task", queue, max_attempts=1, batch=f"b{number}"),
            JobOptions("jobsvc.sha512", queue, retention_seconds=1.0 if number % 2 else None),
        ]
        new = [NewJob(job_id(next(self.numbers)), int(n % 10 == 9), b"{}") for n in range(BATCH)]
        command = c.Enqueue(options, new, f"key-{number}", b"f")
        [answer] = await self.pair.ask(self.leader, command)
        while not isinstance(answer, c.Accepted):
            assert answer.code == "too_many_jobs"
            self.refused += 1
            await asyncio.sleep(answer.retry_after_seconds)
            [answer] = await self.pair.ask(self.leader, command)
        self.ids += answer.ids
        failed = await self.work(Outcome.RAISED)
        await self.pair.ask(self.leader, c.Retry(failed[:2], f"~retry-{number}", b"f"))
        await self.work(Outcome.SUCCEEDED)
        await self.pair.ask(self.leader, c.Pull("jobsvc.sha512", 20, f"~pull-{number}", b"f"))

    async def work(self, for_every_tenth: Outcome) -> list[bytes]:
        """Lease and end all that wait. Returns the ids of those that failed."""
        failed: list[bytes] = []
        while grants := (await self.pair.report(self.leader, can_take=64)).grants:
            ends = [
                done(grant, for_every_tenth if n % 10 == 0 else Outcome.SUCCEEDED)
                for n, grant in enumerate(grants)
            ]
            failed += [end.job_id for end in ends if end.outcome is Outcome.RAISED]
            if self.packed:
                key = f"results/{grants[0].job_id.hex()}-{grants[0].attempt}"
                await self.store.put_new(key, b"x" * len(ends))
                for place, end in enumerate(ends):
                    if end.outcome is Outcome.SUCCEEDED:
                        end.result = Result("raw", ref=BlobRef(key, place, 1))
            await self.pair.report(self.leader, finished=ends)
        return failed

    async def lines(self) -> list[str]:
        found = []
        for key in sorted(key for key in self.store._objects if key.startswith("finished/")):
            found += [msgspec.json.decode(line)["id"] for line in self.store._objects[key].splitlines()]
        return found


@pytest.mark.parametrize("packed", [False, True], ids=["small results", "packs"])
@pytest.mark.parametrize("seconds", [0.001, 0.03], ids=["directory", "S3"])
def test_what_it_does_for_a_second_it_does_for_a_month(seconds: float, packed: bool) -> None:
    async def tell(pair: Pair) -> None:
        store = EvenStore(seconds)
        pair.store = store
        a, b = await pair.leader_and_standby()
        story = Story(pair, store, a, packed)
        loop = asyncio.get_running_loop()
        turns = TURNS * max(MAX_JOBS // BATCH, REMEMBERED // BATCH, KEYS, QUEUES)
        samples: list[dict[str, Any]] = []
        for number in range(turns):
            began = loop.time()
            await story.turn(number)
            objects = {"packs stored": store.holding("results/"), "log": store.holding("log/", "snapshots/")}
            samples.append({**sizes(a.state), **objects, "seconds": loop.time() - began})
        # then nothing has grown, and nothing takes longer, since the first tenth
        early, late = samples[turns // 10 : turns * 3 // 10], samples[-turns // 5 :]
        for name in early[0]:
            before, after = most(early, name), most(late, name)
            assert after <= before * 1.25 + 20, f"{name}: {before} at first, {after} at last"
        assert story.refused <= turns // 10, "503 is no steady state"
        await at_the_end(story, b)

    async def at_the_end(story: Story, standby: Manager) -> None:
        state = story.leader.state
        await until(lambda: standby.state.jobs.keys() == state.jobs.keys(), 30.0)
        for each in (state, standby.state):
            queue_snapshot.check_invariants(each)
        held = {id_text(job) for job in state.jobs}
        lines = await story.lines()
        assert {id_text(job) for job in story.ids} - held <= set(lines), "a job is gone without a line"
        await until(lambda: story.store.holding("results/") == len(state.packs), 30.0)

    run(
        tell,
        max_jobs=MAX_JOBS,
        retained_jobs_max=RETAINED,
        idempotency_seconds=5.0,
        snapshot_records=200,
        commit_interval_seconds=0.034 if seconds > 0.01 else 0.0,
    )


def most(samples: list[dict[str, Any]], name: str) -> float:
    return max(float(sample[name]) for sample in samples)
