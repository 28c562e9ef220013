"""Flights: requests that arrive together travel together.

A replica serves many callers, and one call of an actor costs as much as a thousand items in it. So requests
gather: what arrives while flights are in the air goes with the next one. With nothing in the air a request
leaves at once, at the end of the event loop's turn, so an idle service has no added latency.

Callers who were answered together come back together, a few milliseconds apart. If the first of them left at
once, it would take the flight of all the others, and many small flights would go on for ever, each with a
record of its own. So after a landing the next flight waits for all callers that are known: those who have
just been answered, those who wait, those whose flight is in the air and may land in time. It leaves when
they are there, when for `GAP_SECONDS` nobody has come, or after `GATHER_SECONDS`. One caller alone never
waits: there is nobody else.

Two flights may be in the air, because the leader puts a flight that arrives during a commit into the next
record: the second flight's way there is hidden behind the first one's commit.

What is bounded: the bytes of one flight, and the bytes and number of what waits. Beyond that a request is
refused before anything of it was done.

What a caller is told when nobody answers: a command that was sent may have been done, so its refusal says
that the outcome is unknown; everything that was not sent was not done. A caller that is cancelled (its client
hung up) takes nothing back: a flight belongs to no caller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from .commands import Command, FeedPage, Flight, FlightReply, ManagerStatus, ReadFeed, Reply, Request
from .errors import JobsvcError, Refusal, Unavailable

IN_THE_AIR_MAX = 2
GATHER_SECONDS = 0.015
GAP_SECONDS = 0.003
FLIGHT_BYTES_MAX = 8 * 1024 * 1024
FLIGHT_REQUESTS_MAX = 2_000
WAITING_BYTES_MAX = 256 * 1024 * 1024
WAITING_TICKETS_MAX = 50_000
RETRY_AFTER_SECONDS = 1.0
STATUS_SECONDS = 1.5  # for what the managers say when nobody has answered


class Managers(Protocol):
    """The way to whoever leads."""

    async def send(self, flight: Flight) -> FlightReply:
        """Ask the leader, across failovers, until a deadline. Raises Unavailable."""
        ...

    async def wait_feed(self, query: ReadFeed, wait_seconds: float) -> FeedPage:
        """The completion feed after a place; waits for an entry. Raises Unavailable."""
        ...

    async def statuses(self) -> list[ManagerStatus]:
        """What each manager that answers says of itself."""
        ...


class BadReply(JobsvcError):
    """The leader's answer does not fit what was asked: a defect."""


class Ticket:
    """Requests that must travel in one flight, in this order, and the caller's place to wait."""

    __slots__ = ("replies", "requests", "size_bytes")

    def __init__(self, requests: Sequence[Request], size_bytes: int) -> None:
        self.requests = requests
        self.size_bytes = size_bytes
        self.replies: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()

    @property
    def abandoned(self) -> bool:
        """Nobody waits, and it only asks."""
        return self.replies.cancelled() and not any(isinstance(each, Command) for each in self.requests)

    def answer(self, replies: list[Reply]) -> None:
        if not self.replies.done():
            self.replies.set_result(replies)

    def refuse(self, refusal: Refusal) -> None:
        self.answer([refusal] * len(self.requests))

    def fail(self, error: Exception) -> None:
        if not self.replies.done():
            self.replies.set_exception(error)


class Flights:
    """The queue in front of the leader."""

    def __init__(self, managers: Managers) -> None:
        self._managers = managers
        self._waiting: deque[Ticket] = deque()
        self._waiting_bytes = 0
        self._in_the_air: set[asyncio.Task[None]] = set()
        self._departure_planned = False
        self._aloft = 0  # tickets in the air
        self._expected = 0  # tickets that the next flight waits for
        self._gather_until = self._came_at = 0.0
        self._gathering: asyncio.TimerHandle | None = None
        self._puts = 0
        self.sent = 0
        self.requests_sent = 0

    def has_room(self, size_bytes: int) -> bool:
        """False if what waits already is all that may wait."""
        full = len(self._waiting) >= WAITING_TICKETS_MAX
        return not full and (self._waiting_bytes + size_bytes <= WAITING_BYTES_MAX or not self._waiting)

    def note_put(self) -> None:
        """This replica has put an object; the next flight tells the leader."""
        self._puts += 1

    def submit(self, ticket: Ticket) -> None:
        """Take a ticket; its `replies` will be set, whatever happens."""
        if not self.has_room(ticket.size_bytes):
            detail = "too much waits for the leader already"
            ticket.refuse(Refusal("overloaded", detail, retry_after_seconds=RETRY_AFTER_SECONDS))
            return
        self._waiting.append(ticket)
        self._waiting_bytes += ticket.size_bytes
        if self._gathering is not None:
            self._came_at = asyncio.get_running_loop().time()
        self._plan_departure()

    def _plan_departure(self) -> None:
        if self._departure_planned or len(self._in_the_air) >= IN_THE_AIR_MAX:
            return
        if self._gathering is None or len(self._waiting) >= self._expected:
            self._departure_planned = True
            asyncio.get_running_loop().call_soon(self._depart)

    def _gather(self, answered: int) -> None:
        """So many callers have been answered now: their next requests shall travel with all others."""
        expected = answered + self._aloft + len(self._waiting)
        if self._gathering is not None:
            self._gathering.cancel()
            expected = max(expected, self._expected)
        self._gathering = None
        if expected > 1:
            loop = asyncio.get_running_loop()
            self._expected, self._came_at = expected, loop.time()
            self._gather_until = loop.time() + GATHER_SECONDS
            self._gathering = loop.call_later(GAP_SECONDS, self._look_who_came)

    def _look_who_came(self) -> None:
        loop = asyncio.get_running_loop()
        at = min(self._came_at + GAP_SECONDS, self._gather_until)
        if at > loop.time():
            self._gathering = loop.call_at(at, self._look_who_came)
            return
        self._gathering = None
        self._plan_departure()

    def _depart(self) -> None:
        self._departure_planned = False
        if self._gathering is not None and self._waiting:
            self._gathering.cancel()
            self._gathering = None
        while len(self._in_the_air) < IN_THE_AIR_MAX:
            tickets = self._board()
            if not tickets:
                return
            task = asyncio.get_running_loop().create_task(self._fly(tickets), name="flight")
            self._in_the_air.add(task)
            self._aloft += len(tickets)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._in_the_air.discard(task)
        self._plan_departure()

    def _board(self) -> list[Ticket]:
        """The tickets of the next flight: in order, as many as fit, one at least."""
        tickets: list[Ticket] = []
        size_bytes = requests = 0
        while self._waiting:
            ticket = self._waiting[0]
            full = (
                size_bytes + ticket.size_bytes > FLIGHT_BYTES_MAX
                or requests + len(ticket.requests) > FLIGHT_REQUESTS_MAX
            )
            if full and tickets:
                break
            self._waiting.popleft()
            self._waiting_bytes -= ticket.size_bytes
            if ticket.abandoned:
                continue
            tickets.append(ticket)
            size_bytes += ticket.size_bytes
            requests += len(ticket.requests)
        return tickets

    async def _fly(self, tickets: list[Ticket]) -> None:
        requests = [request for ticket in tickets for request in ticket.requests]
        try:
            try:
                replies = await self._send(requests)
            finally:
                self._aloft -= len(tickets)
        except Unavailable as error:
            self._nobody_answered(tickets, await self._told(error))
        except asyncio.CancelledError:
            self._nobody_answered(tickets, "this replica is being stopped")
            raise
        except Exception as error:  # a defect: every caller gets it, and reports it as such
            for ticket in tickets:
                ticket.fail(error)
        else:
            place = 0
            for ticket in tickets:
                ticket.answer(replies[place : place + len(ticket.requests)])
                place += len(ticket.requests)
            self._gather(len(tickets))

    async def _told(self, error: Unavailable) -> str:
        """Why nobody answered, with what the managers say of themselves."""
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                statuses = await self._managers.statuses()
        except TimeoutError:
            statuses = []
        said = [f"; {status.name}: {status.problem}" for status in statuses if status.problem]
        return f"{error}{''.join(said[:1])}"

    async def _send(self, requests: list[Request]) -> list[Reply]:
        self.sent += 1
        self.requests_sent += len(requests)
        puts, self._puts = self._puts, 0
        replies = (await self._managers.send(Flight(requests, puts))).replies
        if len(replies) != len(requests):
            raise BadReply(f"{len(requests)} requests got {len(replies)} replies")
        return replies

    def _nobody_answered(self, tickets: list[Ticket], problem: str) -> None:
        """These were sent; what waits behind them was not, and has no better chance now."""
        unsent, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        for ticket in tickets:
            commands = any(isinstance(each, Command) for each in ticket.requests)
            code = "unknown_outcome" if commands else "no_leader"
            ticket.refuse(Refusal(code, problem, retry_after_seconds=RETRY_AFTER_SECONDS))
        for ticket in unsent:
            ticket.refuse(Refusal("no_leader", problem, retry_after_seconds=RETRY_AFTER_SECONDS))
