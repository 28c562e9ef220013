"""A worker: takes leases, has the jobs run, and reports what became of them until someone has taken it down.

Where an attempt is, from lease to settled report. A worker knows of an attempt in exactly one of these
places:

    held      leased; its payload is fetched, it waits in the runner, or it runs
    ending    ended; its result or its output is being stored
    finished  its report is ready, and is sent with every call until a leader's answer settles it

**One call.** `report_and_ask` carries what is finished, what is held, and how many jobs there is room
for. A report that settles something does not wait; with nothing to report the worker leaves a call
waiting at the leader, which is its heartbeat and the way that grants and cancels reach it at once. When
something finishes meanwhile, the worker sends a new call, which ends the waiting one. Answers are obeyed
whenever they come, but for those of a leader that was replaced (`CallPace.heard`); obeying twice is
harmless: what is known is not taken again, what has ended not cancelled.

**No answer.** The worker goes on with what it holds and keeps asking. A report that nobody has settled
for `outbox_after_seconds` is written to the outbox, once, so that it survives this worker too; when a
leader is back, it gets all reports again with the list of what is held, and both know where they stand.
After `orphan_seconds` without an answer the worker gives up: it kills what runs, writes that down as
given back, and ends.

**Leases.** A worker does not watch over the end of its leases. If it could not reach a leader for longer
than `lease_seconds`, its jobs may have been given to others; it finishes them all the same, because the
leader may just as well have been gone, and the leader refuses what is stale. The safety lies in that
refusal alone.

**Leaving.** `retire` (the leader's order), `drain` (the machine is going away): nothing new is taken,
what has not started goes back at once and without charge, the running job may finish (until the drain's
deadline), everything is reported, and `run` returns why.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from .attempts import HeldAttempt, UnsettledReports, finished_report, inline_result
from .call_pace import CallPace
from .errors import Unavailable
from .job_frames import HeldBack, JobEnded, JobKey
from .jobs import ErrorInfo, Finished, Outcome, WorkerOrders, WorkerReport, id_text
from .object_store import ObjectStore
from .payload_fetch import PayloadFetch
from .prefetch import BusySeconds, Prefetch
from .settings import MIB, Settings
from .worker_objects import AttemptLog, WorkerObjects
from .worker_packs import WorkerPacks
from .worker_parts import JobRunner, LeaderLink

CALLS_MAX = 3  # in the air at once: one that counts, and those that it has overtaken
ENDING_MAX = 1_000  # attempts whose results are being stored, before no more jobs are asked for
ENDING_BYTES_MAX = 64 * MIB  # of results and output that are being stored; above it, waiting jobs go back
LOOK_SECONDS = 0.5
PATIENCE_SECONDS_MAX = 2.0  # a job that has run for so long keeps no others waiting here


class Worker:
    """One life of a worker. All its methods are for the loop that `run` runs on."""

    def __init__(
        self,
        *,
        name: str,
        session: str,
        pool: str,
        node: str,
        pid: int,
        actor: str = "",
        environment: str = "",
        settings: Settings,
        store: ObjectStore,
        leader: LeaderLink,
        runner: JobRunner,
        wall: Callable[[], float],
        random: random.Random,
    ) -> None:
        self.name, self.session = name, session
        self._pool, self._node, self._pid, self._actor = pool, node, pid, actor
        self._environment = environment
        self._settings, self._leader, self._runner = settings, leader, runner
        self._wall, self._random = wall, random
        self._objects = WorkerObjects(store, random)
        self._packs = WorkerPacks(self._objects, settings, session, wall)
        self._prefetch = Prefetch(
            settings.prefetch_seconds,
            settings.prefetch_jobs_max,
            min(settings.heartbeat_seconds, PATIENCE_SECONDS_MAX),
        )
        self._held, self._ending = dict[JobKey, HeldAttempt](), dict[JobKey, HeldAttempt]()
        self._finished = UnsettledReports(name, session, self._objects)
        self._busy_seconds = BusySeconds()
        self._ending_bytes = self._stale = 0
        self._payloads = PayloadFetch(self._objects, self._holds, runner.submit, self._finish_unstarted)
        self._outbox_task: asyncio.Task[None] | None = None
        self._leaving: str | None = None
        self._code = ""  # digest of the service's, as far as heard
        self._told_held_back: HeldBack | None = None  # in the latest report
        self._kill_at = self._give_up_at = float("inf")
        self._news = asyncio.Event()
        self._pace = CallPace(random)
        self._waiting_call: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order, so that ends are, too
        self._defect: asyncio.Future[str] | None = None

    # --- life ---

    async def run(self) -> str:
        """Work until there is a reason to end, and return it: retired, drained or orphaned."""
        loop = asyncio.get_running_loop()
        self._pace.answered_at = loop.time()
        self._defect = loop.create_future()
        await self._runner.start()
        lives = [
            asyncio.create_task(self._talk(), name=f"{self.name} talks to the leader"),
            asyncio.create_task(self._follow_runner(), name=f"{self.name} follows its runner"),
            asyncio.create_task(self._keep_watch(), name=f"{self.name} keeps watch"),
        ]
        try:
            done, _ = await asyncio.wait([*lives, self._defect], return_when=asyncio.FIRST_COMPLETED)
            return [each.result() for each in [*lives, self._defect] if each in done][0]
        finally:
            ends = [*lives, *self._tasks]
            for each in ends:
                each.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            await self._runner.close()

    def drain(self, deadline_seconds: float) -> None:
        """The machine is going away: give back what has not started, end within the deadline."""
        now = asyncio.get_running_loop().time()
        to_report = min(1.0, deadline_seconds / 4)
        to_kill = self._settings.kill_grace_seconds
        self._kill_at = min(self._kill_at, now + max(deadline_seconds - to_kill - to_report, 0.0))
        self._give_up_at = min(self._give_up_at, now + deadline_seconds)
        self._leave("drained")

    def describe(self) -> str:
        """What runs, in words for people."""
        running = self._runner.current
        return "idle" if running is None else f"{running.task} {id_text(running.job_id)}"

    def statistics(self) -> dict[str, float]:
        return {
            "held": len(self._held),
            "ending": len(self._ending),
            "unsettled": len(self._finished),
            "stale_reports": self._stale,
            "outbox_objects": self._finished.outbox_objects,
        }

    def _leave(self, why: str) -> None:
        if self._leaving is None:
            self._leaving = why
            self._give_back(list(self._held))
            self._news.set()

    # --- talking to the leader ---

    async def _talk(self) -> str:
        while True:
            await self._wait_turn()
            if self._must_call() or self._crowded():
                left = self._has_left()
                answered = await self._call(0.0)
                if left and answered and not self._finished:
                    return self._leaving or "left"
            else:
                self._waiting_call = self._spawn(self._wait_for_orders(), f"{self.name} waits for orders")

    def _has_left(self) -> bool:
        return self._leaving is not None and not self._held and not self._ending

    def _must_call(self) -> bool:
        """There is something that must not wait at the leader."""
        return len(self._finished) > 0 or self._has_left() or self._ability_changed()

    def _ability_changed(self) -> bool:
        """The leader must hear at once that this worker can run nothing, and that it can again."""
        return self._runner.held_back != self._told_held_back

    def _crowded(self) -> bool:
        """Calls that were overtaken have not come back: no more that wait."""
        return self._pace.in_air >= CALLS_MAX - 1

    async def _wait_turn(self) -> None:
        loop = asyncio.get_running_loop()
        while (at := self._turn_at()) > loop.time():
            self._news.clear()
            try:
                async with asyncio.timeout_at(at if at < float("inf") else None):
                    await self._news.wait()
            except TimeoutError:
                return

    def _turn_at(self) -> float:
        pace = self._pace
        if self._finished:
            return max(pace.pause_until, self._finished.due)
        if self._has_left() or self._ability_changed():
            return pace.pause_until
        if self._waiting_call is not None:
            return float("inf")
        if self._crowded():
            return max(pace.pause_until, pace.called_at + self._settings.heartbeat_seconds)
        return max(pace.pause_until, pace.quiet_until)

    async def _wait_for_orders(self) -> None:
        try:
            await self._call(self._settings.heartbeat_seconds)
        finally:
            if self._waiting_call is asyncio.current_task():
                self._waiting_call = None
            self._news.set()

    async def _call(self, wait_seconds: float) -> bool:
        """One exchange with the leader. False if nobody answered."""
        loop, pace = asyncio.get_running_loop(), self._pace
        if wait_seconds == 0.0:
            self._waiting_call = None  # overtaken: the leader ends it, or its own time does
        held_back = self._runner.held_back
        report = self._report(wait_seconds, held_back)
        told_before, self._told_held_back = self._told_held_back, held_back
        number = pace.begin(loop.time())
        try:
            patience_seconds = 2 * self._settings.takeover_silence_seconds + 1.0
            async with asyncio.timeout(wait_seconds + patience_seconds):
                orders = await self._leader.report_and_ask(report)
            pace.heard(orders.epoch)
        except (Unavailable, TimeoutError):
            self._busy_seconds.put_back(report.busy_seconds)
            self._objects.pace.put_back(report.puts)
            self._finished.not_sent()
            self._told_held_back = told_before
            pace.failed(number, loop.time())
            return False
        finally:
            pace.in_air -= 1
        news = self._obey(report, orders)
        empty = wait_seconds > 0 and not news
        pace.answered(number, loop.time(), empty, self._prefetch.gather_seconds if orders.grants else 0.0)
        return True

    def _report(self, wait_seconds: float, held_back: HeldBack | None) -> WorkerReport:
        running = self._runner.current
        holding = list(self._held)
        busy = running is not None and (running.job_id, running.attempt) in self._held
        if running is not None and busy:
            key = (running.job_id, running.attempt)
            holding.remove(key)
            holding.insert(0, key)
        who = (self.name, self.session, self._pool, self._node, self._pid)
        return WorkerReport(
            *who,
            finished=self._finished.to_send(),
            holding=[*holding, *self._ending],
            busy=busy,
            can_take=self._room(),
            wait_seconds=wait_seconds,
            leaving=self._has_left(),
            busy_seconds=self._busy_seconds.take(),
            current=None if running is None else self.describe(),
            puts=self._objects.pace.take_made(),
            actor=self._actor,
            held_back=held_back.why if held_back is not None else None,
            held_back_since=held_back.since if held_back is not None else 0.0,
            code=self._code,
            environment=self._environment,
        )

    def _room(self) -> int:
        crowded = len(self._ending) >= ENDING_MAX or self._ending_bytes > ENDING_BYTES_MAX
        if self._leaving is not None or crowded or self._runner.held_back is not None:
            return 0
        held = Counter(each.task for each in self._held.values())
        return self._prefetch.room(held, self._running_seconds())

    def _running_seconds(self) -> float:
        running = self._runner.current
        return 0.0 if running is None else asyncio.get_running_loop().time() - running.started

    # --- obeying ---

    def _obey(self, report: WorkerReport, orders: WorkerOrders) -> bool:
        """Returns whether something in it was new; a leader repeats what is not done yet."""
        self._finished.settle(report.finished)
        self._objects.pace.interval_seconds = orders.put_interval_seconds
        self._stale += len(orders.stale)
        ended = [self._end_early(key, Outcome.RELEASED, forget=True) for key in orders.drop]
        ended += [self._end_early(key, Outcome.CANCELLED) for key in orders.cancel]
        news = self._take(orders) or any(ended)
        if orders.code is not None and orders.code.digest != self._code:
            self._code, news = orders.code.digest, True
            self._runner.use_code(orders.code)
        if orders.retire:
            self._leave("retired")
        return news

    def _take(self, orders: WorkerOrders) -> bool:
        inline: list[HeldAttempt] = []
        referred: list[HeldAttempt] = []
        for grant in orders.grants:
            key = (grant.job_id, grant.attempt)
            if key in self._held or key in self._ending or key in self._finished:
                continue  # granted twice: an answer was lost, or overtaken
            held = HeldAttempt(grant, orders.options[grant.option])
            self._held[key] = held
            (referred if held.ref is not None else inline).append(held)
        if self._leaving is not None:
            self._give_back([each.key for each in [*inline, *referred]])
            return False
        if inline:
            self._runner.submit([each.ready(each.inline_payload) for each in inline])
        if referred:
            self._spawn(self._payloads.fetch_all(referred), f"{self.name} fetches payloads")
        return bool(inline or referred)

    def _end_early(self, key: JobKey, outcome: Outcome, forget: bool = False) -> bool:
        """End an attempt whether it has started or not. With `forget` nobody wants to hear of it."""
        held = self._held.get(key)
        if held is None:
            return False  # it has ended already; its report says how
        if forget:
            held.forgotten = True
            self._finished.remember(key)
        if not held.submitted or key in self._runner.withdraw({key}):
            self._finish_unstarted(held, outcome)
            return True
        return self._runner.kill(key, outcome)  # False: it has ended or is being killed; its end is coming

    def _give_back(self, keys: list[JobKey]) -> None:
        """Release those of the attempts that have not started."""
        unstarted = self._runner.withdraw(set(keys))
        for key in keys:
            held = self._held.get(key)
            if held is not None and (not held.submitted or key in unstarted):
                self._finish_unstarted(held, Outcome.RELEASED)

    def _finish_unstarted(self, held: HeldAttempt, outcome: Outcome, error: ErrorInfo | None = None) -> None:
        self._let_go(held.key)
        if not held.forgotten:
            now = self._wall()
            self._add_finished(held.finished(outcome, now, now, error))

    # --- following the runner ---

    async def _follow_runner(self) -> str:
        while True:
            for event in await self._runner.next_events():
                if isinstance(event, JobEnded):
                    self._job_ended(event)
                else:
                    held = self._held.get((event.job_id, event.attempt))
                    if held is not None and not held.forgotten:
                        if held.log is None:
                            held.log = AttemptLog(self._objects, event.job_id, event.attempt)
                        held.log.add(event.data)
            self._upload_output()
            if self._ability_changed():
                self._news.set()

    def _upload_output(self) -> None:
        """Of the attempt that runs: for whoever looks on. What has ended goes into a pack."""
        running = self._runner.current
        held = self._held.get((running.job_id, running.attempt)) if running is not None else None
        if held is not None and held.log is not None and held.log.due:
            self._spawn(held.log.upload(), f"{self.name} uploads output")

    def _job_ended(self, ended: JobEnded) -> None:
        held = self._let_go((ended.job_id, ended.attempt))
        if held is None:
            return  # given up
        if ended.never_ran:
            if not held.forgotten:
                self._add_finished(
                    held.finished(Outcome.RELEASED, ended.started_at, ended.ended_at, ended.error)
                )
            return
        self._busy_seconds.add(held.task, 1, ended.seconds)
        if ended.outcome in (Outcome.SUCCEEDED, Outcome.RAISED):
            self._prefetch.ended(held.task, ended.seconds)
        if held.forgotten:
            self._news.set()
            return
        if held.log is None and len(ended.data) <= self._settings.inline_bytes_max:
            self._add_finished(finished_report(ended, inline_result(ended)))
            return
        self._ending[held.key] = held
        size_bytes = len(ended.data) + (held.log.waiting_bytes if held.log is not None else 0)
        self._ending_bytes += size_bytes
        if self._ending_bytes > ENDING_BYTES_MAX:
            self._give_back(list(self._held))
        self._spawn(self._store_end(held, ended, size_bytes), f"{self.name} stores a result")

    async def _store_end(self, held: HeldAttempt, ended: JobEnded, size_bytes: int) -> None:
        """Store what is too large for a report, then report."""
        report = await self._packs.store_end(held, ended)
        del self._ending[held.key]
        self._ending_bytes -= size_bytes
        self._add_finished(report)

    def _let_go(self, key: JobKey) -> HeldAttempt | None:
        held = self._held.pop(key, None)
        if held is not None:
            self._payloads.used(held)
        return held

    def _holds(self, held: HeldAttempt) -> bool:
        return self._held.get(held.key) is held

    def _add_finished(self, finished: Finished) -> None:
        """A report is ready. It goes at once if the worker runs dry, else with those that end soon."""
        now = asyncio.get_running_loop().time()
        self._finished.add(finished, now, self._prefetch.gather_seconds if self._held else 0.0)
        self._news.set()

    # --- keeping watch ---

    async def _keep_watch(self) -> str:
        """What has to happen when nothing happens."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            self._give_back_surplus()
            self._upload_output()
            if now >= self._kill_at and (running := self._runner.current) is not None:
                self._runner.kill((running.job_id, running.attempt), Outcome.RELEASED)
            if now >= self._give_up_at or now - self._pace.answered_at >= self._settings.orphan_seconds:
                why = "drained" if now >= self._give_up_at else "orphaned"
                return why + await self._give_up()
            if self._finished.overdue(now, self._settings.outbox_after_seconds):
                self._start_outbox()
            await asyncio.sleep(max(min(LOOK_SECONDS, self._kill_at - now, self._give_up_at - now), 0.05))

    def _give_back_surplus(self) -> None:
        """Jobs that wait here while they could run elsewhere."""
        running = self._runner.current
        if self._leaving is not None or running is None or len(self._held) < 2:
            return
        waiting = [each for each in self._held.values() if each.key != (running.job_id, running.attempt)]
        surplus = self._prefetch.surplus([each.task for each in waiting], self._running_seconds())
        if surplus:
            self._give_back([each.key for each in waiting[-surplus:]])

    def _start_outbox(self) -> None:
        if self._outbox_task is None or self._outbox_task.done():
            self._outbox_task = self._spawn(
                self._finished.write_outbox(self._settings.orphan_seconds), f"{self.name} writes its outbox"
            )

    async def _give_up(self) -> str:
        """Nobody will answer in time: leave everything in the outbox for whoever comes.

        Returns what is to be added to the reason for the end, if that failed as well.
        """
        self._leave("given up")
        running = self._runner.current
        if running is not None:
            held = self._let_go((running.job_id, running.attempt))
            await self._runner.close()
            if held is not None and not held.forgotten:
                now = self._wall()
                started_at = now - (asyncio.get_running_loop().time() - running.started)
                self._add_finished(held.finished(Outcome.RELEASED, started_at, now))
        if self._outbox_task is not None:
            self._outbox_task.cancel()
        patience_seconds = self._settings.outbox_after_seconds
        try:
            async with asyncio.timeout(2 * patience_seconds):
                await self._finished.write_outbox(patience_seconds)
        except TimeoutError:
            pass  # said below
        lost = self._finished.outside_outbox
        return f"; {lost} reports could not be written to the outbox" if lost else ""

    def _spawn(self, work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[None]:
        """A side task. One that fails ends the worker, loudly."""
        task: asyncio.Task[Any] = asyncio.create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._side_task_ended)
        return task

    def _side_task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._defect is not None and not self._defect.done():
            self._defect.set_exception(error)
