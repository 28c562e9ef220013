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

import ray
import uuid_utils
from setproctitle import setproctitle

from .job_runner import ProcessRunner
from .leader_links import RayLeaderLink
from .logs import log_as_json
from .s3_store import open_store
from .settings import decode_settings
from .worker import Worker

TITLE_SECONDS = 1.0

_log = logging.getLogger("jobsvc.worker")


@ray.remote
class WorkerActor:
    """Runs one `worker.Worker` from beginning to end."""

    def __init__(self, name: str, pool: str, settings_text: str) -> None:
        settings = decode_settings(settings_text)
        self._name = name
        setproctitle(f"jobsvc {name} starting")
        log_as_json(worker=name)
        self._worker = Worker(
            name=name,
            session=str(uuid_utils.uuid7()),
            pool=pool,
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            settings=settings,
            store=open_store(settings),
            leader=RayLeaderLink(settings.service),
            runner=ProcessRunner(settings, pool),
            wall=time.time,
            random=random.Random(),
        )
        self._tasks = [asyncio.ensure_future(self._live()), asyncio.ensure_future(self._keep_title())]

    def __repr__(self) -> str:
        return f"{self._name}: {self._worker.describe()}"

    async def _live(self) -> None:
        code = 1
        try:
            why = await self._worker.run()
            _log.info("this worker ends: %s", why, extra={"worker": self._name})
            code = 0
        except BaseException:
            _log.exception("this worker ends by a defect", extra={"worker": self._name})
        os._exit(code)

    async def _keep_title(self) -> None:
        """`ps` tells which job this worker runs."""
        shown = ""
        while True:
            title = f"jobsvc {self._name} {self._worker.describe()}"
            if title != shown:
                setproctitle(title)
                shown = title
            await asyncio.sleep(TITLE_SECONDS)

    async def drain(self, deadline_seconds: float) -> None:
        """The machine will go away: give back what has not started, finish or give back what runs."""
        self._worker.drain(deadline_seconds)

    async def sentinel(self) -> None:
        """Pending for as long as this process lives."""
        await asyncio.Event().wait()
