"""A manager as a detached Ray actor, and its views of the other manager and of the workers.

Ray restarts the actor when its process dies (`max_restarts=-1`); it does not retry its calls
(`max_task_retries=0`), because callers do, under the same command ids, at whoever leads. A fatal error ends
the process with a line in the log; nothing is answered after it.

Death is noticed by a call that never returns: while a process lives, its `sentinel` is pending; when
the process dies, Ray fails the call within milliseconds.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import ray
import uuid_utils
from ray._private import worker as ray_worker
from ray.exceptions import ActorDiedError, ActorUnschedulableError, RayError, RuntimeEnvSetupError
from ray.util import list_named_actors

from .actor_titles import keep_title, set_title
from .autoscaler_view import AutoscalerView
from .commands import ManagerStatus
from .errors import DataMissing, EventNotApplied, Fatal, StoreUnfit, Unavailable
from .jobs import encode
from .leader_links import MANAGER_NAMES, actor_handle
from .logs import log_as_json
from .manager import Manager
from .metrics import feed_ray
from .pool_environments import packages, pin, worker_options
from .ray_code import get_code
from .ray_links import page_link
from .raylet_log import words_about_the_dead
from .s3_store import open_store
from .scaling import Machines
from .service_code import ServiceCode
from .settings import decode_settings

PUSH_SECONDS = 2.0
STATUS_SECONDS = 1.0
REWATCH_SECONDS = 0.3
RESTART_PAUSE_SECONDS = 0.3
DEFECT_PAUSE_SECONDS = 3.0
UNFIT_PAUSE_SECONDS = 20.0
NEVER_LIVES = (ActorDiedError, ActorUnschedulableError, RuntimeEnvSetupError, Unavailable)
MANAGER_RESOURCE = "jobsvc_manager"
WORKER_PREFIX = "worker-"
GC_THRESHOLDS = (25_000, 8, 12_500)  # a million jobs are no garbage: full ones rare, middle ones short
GC_FREEZE_EVERY_SECONDS = 60.0
PIN_EVERY_SECONDS = 86_400.0
TROUBLE_EVERY_SECONDS = 5.0

_log = logging.getLogger("jobsvc.manager")
_status = msgspec.msgpack.Decoder(ManagerStatus)
_code = msgspec.msgpack.Decoder(ServiceCode)


class PeerActor:
    """The other manager."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name = name
        self._namespace = namespace
        self._handle: Any = None

    async def _its_handle(self) -> Any:
        if self._handle is None:
            self._handle = await actor_handle(self.name, self._namespace)
        return self._handle

    def _forget_dead(self, error: Exception) -> None:
        """An actor that Ray will not restart is never coming back under this handle; its name may."""
        if isinstance(error, ActorDiedError):
            self._handle = None

    async def push(self, records: list[bytes]) -> int:
        try:
            async with asyncio.timeout(PUSH_SECONDS):
                handle = await self._its_handle()
                applied: int = await handle.follow.remote(records)
                return applied
        except (RayError, TimeoutError) as error:
            self._forget_dead(error)
            raise Unavailable(f"{self.name} does not take records: {type(error).__name__}") from error

    async def status(self) -> ManagerStatus | None:
        try:
            async with asyncio.timeout(STATUS_SECONDS):
                handle = await self._its_handle()
                return _status.decode(await handle.status.remote())
        except Unavailable:
            return None
        except ActorDiedError as error:
            self._forget_dead(error)
            return None
        except (RayError, TimeoutError) as error:
            raise Unavailable(f"{self.name} does not say what it is") from error

    async def watch(self, on_death: Callable[[], None]) -> None:
        """Call `on_death` each time its process dies."""
        while True:
            try:
                handle = await self._its_handle()
                await handle.sentinel.remote()
            except Unavailable:
                await asyncio.sleep(REWATCH_SECONDS)  # not made yet
            except RayError as error:
                self._forget_dead(error)
                on_death()
                await asyncio.sleep(REWATCH_SECONDS)


class WorkerFleet:
    """The worker actors of this service."""

    def __init__(self, settings_text: str, on_death: Callable[[str, str], None]) -> None:
        self._settings_text = settings_text
        self._settings = decode_settings(settings_text)
        self._namespace = self._settings.service
        self._on_death = on_death
        self._code: ServiceCode | None = None
        self._autoscaler = AutoscalerView()
        self._trouble: str | None = None
        self._trouble_at = float("-inf")
        self._watched: dict[str, asyncio.Task[None]] = {}

    def use_code(self, code: ServiceCode) -> None:
        """Workers that are started from now on have what pools pack now."""
        self._code = code

    async def start(self, pool: str, name: str, not_on: frozenset[str]) -> None:
        from .worker_actor import WorkerActor

        actor: Any = ray.remote(WorkerActor)
        settings, code = self._settings.pools[pool], self._code
        if code is not None and pool in code.environments:
            settings = msgspec.structs.replace(settings, runtime_env=code.environments[pool])
        options = worker_options(settings, name, self._namespace, not_on)
        environment = code.environment_id(pool) if code is not None else ""
        words = (name, pool, self._settings_text, environment)
        await asyncio.to_thread(actor.options(**options).remote, *words)
        self._watch(name)
        _log.info("a worker is started", extra={"worker": name})

    async def end(self, name: str) -> None:
        try:
            handle = await actor_handle(name, self._namespace)
        except Unavailable:
            return  # it has ended
        await asyncio.to_thread(ray.kill, handle, no_restart=True)

    async def names(self) -> dict[str, str]:
        try:
            actors = await asyncio.to_thread(list_named_actors, all_namespaces=True)
        except RayError as error:
            raise Unavailable(f"Ray does not list its actors: {error}") from error
        found = {
            actor["name"]: pool_of_worker(actor["name"])
            for actor in actors
            if actor["namespace"] == self._namespace and actor["name"].startswith(WORKER_PREFIX)
        }
        for name in found:
            self._watch(name)
        return found

    async def machines(self) -> Machines | None:
        return await self._autoscaler.machines()

    async def trouble(self) -> str | None:
        """Of this machine alone; looked for now and then, while there is a reason to."""
        now = time.monotonic()
        if now - self._trouble_at > TROUBLE_EVERY_SECONDS:
            self._trouble_at = now
            node: Any = ray_worker.global_worker.node
            logs = Path(node.get_logs_dir_path())
            self._trouble = await asyncio.to_thread(words_about_the_dead, logs, psutil.pid_exists)
        return self._trouble

    def _watch(self, name: str) -> None:
        if name not in self._watched:
            task = asyncio.create_task(self._until_dead(name), name=f"watch {name}")
            self._watched[name] = task
            task.add_done_callback(lambda _: self._watched.pop(name, None))

    async def _until_dead(self, name: str) -> None:
        """A call that breaks while the actor is only out of reach is made again: its lease decides then."""
        while True:
            try:
                handle = await actor_handle(name, self._namespace)
                await handle.sentinel.remote()
            except NEVER_LIVES as error:
                self._on_death(name, reason_of(error))
                return
            except RayError:
                await asyncio.sleep(REWATCH_SECONDS)


def reason_of(error: Exception) -> str:
    """Why a worker died, if Ray knows more than that it did."""
    if isinstance(error, Unavailable):
        return ""
    text = " ".join(str(error).split())
    return text.partition("error_message=")[2] or text


def pool_of_worker(name: str) -> str:
    """`worker-<pool>-<epoch>.<number>` belongs to that pool."""
    return name.removeprefix(WORKER_PREFIX).rsplit("-", 1)[0]


class ManagerActor:
    """One of the pair. See `manager.Manager` for what each method promises.

    Made an actor where it is started, not by a decorator: a decorated class is not found by its name
    any more, and Ray would ship its code and the globals of this module by value.
    """

    def __init__(self, name: str, settings_text: str) -> None:
        settings = decode_settings(settings_text)
        self._name = name
        self._settings = settings
        self._problem: str | None = None
        log_as_json(settings.log_level, manager=name)
        gc.set_threshold(*GC_THRESHOLDS)
        other = MANAGER_NAMES[1 - MANAGER_NAMES.index(name)]
        self._peer = PeerActor(other, settings.service)
        self._fleet = WorkerFleet(settings_text, self._worker_died)
        self._manager = Manager(
            name=name,
            settings=settings,
            store=open_store(settings),
            peer=self._peer,
            fleet=self._fleet,
            wall=time.time,
            random=random.Random(),
            nonce=uuid_utils.uuid7().bytes,
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            actor=ray.get_runtime_context().get_actor_id() or "",
        )
        self._code = get_code(settings.service)
        if self._code is not None:
            self._use(self._code)
        page = page_link(settings.host, settings.port)
        _log.info("this manager begins; what the service does is shown at %s", page)
        self._tasks = [
            asyncio.ensure_future(each)
            for each in (
                self._live(),
                self._peer.watch(self._peer_died),
                self._keep_gc(),
                self._feed_metrics(),
                self._keep_packages(),
                keep_title(self, self._title),
            )
        ]

    def __repr__(self) -> str:
        return self._name

    def _title(self) -> str:
        return f"{self._name} {self._manager.role}"

    def _worker_died(self, name: str, why: str) -> None:
        self._manager.worker_gone(name, why)

    def _peer_died(self) -> None:
        self._manager.suspect_leader()

    async def _live(self) -> None:
        pause = RESTART_PAUSE_SECONDS
        try:
            await self._manager.run()
        except (StoreUnfit, DataMissing, EventNotApplied) as error:
            # Starting again does not help: an operator must look. The status says why for a while.
            _log.error("this manager cannot work: %s", error)
            self._problem = str(error)
            await asyncio.sleep(UNFIT_PAUSE_SECONDS)
        except Fatal as error:
            _log.error("this manager ends: %s", error)
        except BaseException:
            _log.exception("this manager ends by a defect")
            pause = DEFECT_PAUSE_SECONDS
        # Nothing may be answered any more, so the loop stands still: that holds back a storm of restarts.
        time.sleep(pause)  # noqa: ASYNC251
        os._exit(1)

    async def _keep_gc(self) -> None:
        """What has survived for a while is taken out of the collector's sight."""
        while True:
            await asyncio.sleep(GC_FREEZE_EVERY_SECONDS)
            if len(self._manager.state.jobs) > 10_000:
                gc.freeze()

    async def _keep_packages(self) -> None:
        """Ray must not forget what a pool's workers will need, while the pool has none."""
        while True:
            environments = self._code.environments if self._code is not None else {}
            for environment in environments.values():
                with self._manager.bulkheads.alone("packages of pools"):
                    if packages(environment):
                        await asyncio.to_thread(pin, environment)
            await asyncio.sleep(PIN_EVERY_SECONDS)

    async def _feed_metrics(self) -> None:
        """Ray's own metrics tell the same as /metrics."""
        await feed_ray(lambda ray_metrics: ray_metrics.update(*self._manager.figures(), time.time()))

    async def handle_flight(self, data: bytes) -> bytes:
        return await self._manager.handle_flight(data)

    async def report_and_ask(self, data: bytes) -> bytes:
        set_title(self, self._title())  # this call may last, and Ray shows its name
        return await self._manager.report_and_ask(data)

    async def wait_feed(self, query: bytes, wait_seconds: float) -> bytes:
        set_title(self, self._title())
        return await self._manager.wait_feed(query, wait_seconds)

    async def follow(self, records: list[bytes]) -> int:
        return await self._manager.follow(records)

    async def use_code(self, data: bytes) -> None:
        """The service's code from now on."""
        self._use(_code.decode(data))

    def _use(self, code: ServiceCode) -> None:
        self._code = code
        self._fleet.use_code(code)
        self._manager.use_code(code)

    async def status(self) -> bytes:
        status = self._manager.status()
        if self._problem is None:
            return status
        told = _status.decode(status)
        told.healthy, told.problem = False, self._problem
        return encode(told)

    async def sentinel(self) -> None:
        """Pending for as long as this process lives."""
        await asyncio.Event().wait()


def start_managers(settings_text: str) -> None:
    """Make the pair, if it is not there. Each on a machine of its own where there are two for managers."""
    settings = decode_settings(settings_text)
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    actor: Any = ray.remote(ManagerActor)
    for name in MANAGER_NAMES:
        options: dict[str, Any] = {
            "name": name,
            "namespace": settings.service,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": 10_000,
            "num_cpus": 0,
            "enable_task_events": False,
        }
        # A manager that must have a machine of its own waits for it; the other one leads meanwhile.
        if settings.spread or resources.get(MANAGER_RESOURCE, 0) >= len(MANAGER_NAMES):
            options["resources"] = {MANAGER_RESOURCE: 1}
        actor.options(**options).remote(name, settings_text)
