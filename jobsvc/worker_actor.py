"""A worker as a detached Ray actor.

It must survive the death of the manager that made it, so it is detached; it must never come back as an empty
shell, so Ray does not restart it: the leader sees that it is gone and starts another. It ends its own process
when its life ends: retired, drained, or orphaned.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time

import psutil
import ray
import uuid_utils

from .actor_titles import keep_title
from .drain_notice import node_dir, when_drained
from .job_runner import ProcessRunner
from .leader_links import RayLeaderLink
from .logs import log_as_json
from .ray_links import page_link
from .s3_store import open_store
from .settings import decode_settings
from .worker import Worker

_log = logging.getLogger("jobsvc.worker")


class WorkerActor:
    """Runs one `worker.Worker` from beginning to end."""

    def __init__(self, name: str, pool: str, settings_text: str, environment: str = "") -> None:
        settings = decode_settings(settings_text)
        self._name = name
        log_as_json(settings.log_level, worker=name)
        self._worker = Worker(
            name=name,
            session=str(uuid_utils.uuid7()),
            pool=pool,
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            actor=ray.get_runtime_context().get_actor_id() or "",
            environment=environment,
            settings=settings,
            store=open_store(settings),
            leader=RayLeaderLink(settings.service),
            runner=ProcessRunner(settings, pool),
            wall=time.time,
            random=random.Random(),
        )
        page = page_link(settings.host, settings.port)
        _log.info("this worker begins; what it runs is shown at %s#/workers", page)
        self._tasks = [
            asyncio.ensure_future(self._live()),
            asyncio.ensure_future(keep_title(self, lambda: f"{name}: {self._worker.describe()}")),
            asyncio.ensure_future(self._leave_in_time()),
        ]

    def __repr__(self) -> str:
        # Ray asks once, when the actor begins, and shows that for ever; the process's title tells the job.
        return self._name

    async def _live(self) -> None:
        code = 1
        try:
            why = await self._worker.run()
            _log.info("this worker ends: %s", why)
            code = 0
        except BaseException:
            _log.exception("this worker ends by a defect")
        os._exit(code)

    async def _leave_in_time(self) -> None:
        """The node's watchdog writes down when the machine will go away."""
        try:
            await when_drained(
                self._worker.drain, node_dir(os.environ), booted_at=psutil.boot_time(), wall=time.time
            )
        except OSError:
            _log.exception("drain notices cannot be read: this worker will end with its machine")

    async def drain(self, deadline_seconds: float) -> None:
        """The machine will go away: give back what has not started, finish or give back what runs."""
        self._worker.drain(deadline_seconds)

    async def sentinel(self) -> None:
        """Pending for as long as this process lives."""
        await asyncio.Event().wait()
