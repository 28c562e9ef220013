"""The way to whoever leads: what counts as silence, and where the search goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from jobsvc import commands as c
from jobsvc.errors import Unavailable
from jobsvc.jobs import NotLeader, WorkerOrders, WorkerReport, encode
from jobsvc.leader_links import POLL_SECONDS, TRY_SECONDS, LeaderFinder, RayLeaderLink, RayManagers

from ..simulation import virtual_loop

DEADLINE_SECONDS = 15.0
DAY_SECONDS = 86_400.0

_report = msgspec.msgpack.Decoder(WorkerReport)
_query = msgspec.msgpack.Decoder(c.ReadFeed)


class Managers(LeaderFinder):
    """Two managers: who leads answers what it was asked to wait for, at the end of that time."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.leads: str | None = "manager-a"
        self.stopped: set[str] = set()
        self.entries: list[c.FeedEntry] = []
        self.tries: list[tuple[str, float]] = []

    async def _try(self, name: str, method: str, seconds: float, arguments: tuple[Any, ...]) -> bytes:
        self.tries.append((name, seconds))
        try:
            async with asyncio.timeout(seconds):
                if name in self.stopped:
                    await asyncio.Event().wait()
                return await self._answer(name, method, arguments)
        except TimeoutError as error:
            raise Unavailable(f"{name} did not answer") from error

    async def _answer(self, name: str, method: str, arguments: tuple[Any, ...]) -> bytes:
        if name != self.leads:
            return encode(NotLeader(None))
        if method == "report_and_ask":
            await asyncio.sleep(_report.decode(arguments[0]).wait_seconds)
            return encode(WorkerOrders(lease_seconds=30.0))
        query, wait_seconds = arguments
        await asyncio.sleep(wait_seconds)
        if name in self.stopped:
            await asyncio.Event().wait()
        after = _query.decode(query).after
        return encode(c.FeedPage([], after, 1, after))


class Links:
    def __init__(self) -> None:
        self.managers = Managers()
        self.replica = RayManagers("nowhere", DEADLINE_SECONDS)
        self.replica._finder = self.managers
        self.worker = RayLeaderLink("nowhere")
        self.worker._finder = self.managers


def tell(story: Callable[[Links], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        await story(Links())

    virtual_loop.run(whole())


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("seconds", [0.0, 0.3, 2.5, 14.0, 15.0, 16.0, 20.0, 60.0, 7_200.0, DAY_SECONDS])
def test_a_poll_of_a_quiet_feed_ends_with_its_time_and_no_page(seconds: float) -> None:
    async def story(links: Links) -> None:
        page = await links.replica.wait_feed(c.ReadFeed(7), seconds)
        assert (page.entries, page.next) == ([], 7)
        assert now() == pytest.approx(seconds)

    tell(story)


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "dead"])
def test_a_leader_that_is_lost_in_a_silent_poll_is_noticed_and_the_poll_goes_on(is_stopped: bool) -> None:
    async def story(links: Links) -> None:
        managers = links.managers
        # given a poll of a minute
        poll = asyncio.ensure_future(links.replica.wait_feed(c.ReadFeed(7), 60.0))
        await asyncio.sleep(12.0)
        # when its leader is lost, and the other one leads after a while
        managers.leads = None
        if is_stopped:
            managers.stopped.add("manager-a")
        await asyncio.sleep(4.0)
        managers.leads = "manager-b"
        before = len(managers.tries)
        # then the poll is at the new leader within a slice, and ends with its time
        await asyncio.sleep(POLL_SECONDS + 2 * TRY_SECONDS)
        assert managers.tries[-1][0] == "manager-b" and len(managers.tries) > before
        assert (await poll).next == 7
        assert now() == pytest.approx(60.0)

    tell(story)


def test_a_poll_without_any_leader_is_refused_by_the_deadline() -> None:
    async def story(links: Links) -> None:
        links.managers.leads = None
        with pytest.raises(Unavailable, match="no manager led in 15 s"):
            await links.replica.wait_feed(c.ReadFeed(7), 60.0)
        assert now() <= DEADLINE_SECONDS + POLL_SECONDS

    tell(story)


def test_a_worker_that_waits_for_orders_takes_the_silence_for_what_it_is() -> None:
    async def story(links: Links) -> None:
        # given nothing to do
        report = WorkerReport("w", "s", "default", "node", 1, wait_seconds=5.0)
        # then the leader may keep it waiting as long as it was asked to
        assert (await links.worker.report_and_ask(report)).lease_seconds == 30.0
        assert len(links.managers.tries) == 1

    tell(story)


def test_a_worker_finds_the_next_leader_though_the_last_one_is_silent_for_good() -> None:
    async def story(links: Links) -> None:
        # given a leader that is stopped, which nobody tells
        links.managers.stopped.add("manager-a")
        links.managers.leads = "manager-b"
        report = WorkerReport("w", "s", "default", "node", 1)
        # when a worker has tried in vain
        with pytest.raises(Unavailable):
            await links.worker.report_and_ask(report)
        assert now() == TRY_SECONDS
        # then its next call begins with the other
        await links.worker.report_and_ask(report)
        assert [name for name, _ in links.managers.tries] == ["manager-a", "manager-b"]

    tell(story)
