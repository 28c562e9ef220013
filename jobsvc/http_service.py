"""Routes of the service itself: queues, workers, tasks, status, health, metrics."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from . import commands as c
from . import metrics
from .errors import InvalidRequest, Refusal, Refused
from .gateway import Gateway, expect
from .http_errors import cut
from .http_job_requests import check_queue_name
from .http_jobs import json_response
from .http_requests import Bodies, content_kind, key_and_fingerprint, query_values
from .http_views import (
    HealthDocument,
    QueueDocument,
    QueuePatch,
    TaskDocument,
    TasksDocument,
    queues_document,
    status_document,
    workers_document,
)
from .jobs import State
from .manager_status import commit_problem, leader_of
from .settings import Settings
from .tallies import QUEUES_MAX
from .tasks import Registry, TaskDefinition

LEADER_SECONDS = 2.0  # for the leader's part of a status
COMMIT_AGE_MAX_SECONDS = 10.0

T = TypeVar("T")

_patch = msgspec.json.Decoder(QueuePatch)


class ServiceRoutes:
    """The handlers, over one gateway."""

    def __init__(
        self,
        gateway: Gateway,
        bodies: Bodies,
        settings: Settings,
        registry: Registry,
        own: Callable[[], metrics.ReplicaFigures],
        ray: str | None,
        code_problem: Callable[[], str | None],
    ) -> None:
        self._gateway = gateway
        self._bodies = bodies
        self._settings = settings
        self._registry = registry
        self._own = own
        self._ray = ray
        self._code_problem = code_problem
        self._commit_age_max = max(COMMIT_AGE_MAX_SECONDS, 2.5 * settings.idle_record_seconds)

    # --- queues, workers, tasks ---

    async def queues(self, request: Request) -> Response:
        """The queues that have a job or are paused; of very many those with the most jobs."""
        query_values(request, ())
        return json_response(queues_document(await self._gateway.get(c.GetQueues(), c.Queues)))

    async def patch_queue(self, request: Request) -> Response:
        """Pause or resume a queue."""
        query_values(request, ())
        queue = request.path_params["name"]
        check_queue_name(queue)
        if content_kind(request) != "json":
            raise Refused(Refusal("unsupported_type", "send application/json", "Content-Type"))
        body = await self._bodies.read(request)
        patch = _decoded_patch(body)
        key, fingerprint = await key_and_fingerprint(request, body)
        patched, queues = await self._gateway.ask(
            c.PatchQueue(queue, patch.paused, key, fingerprint), c.GetQueues(queue=queue)
        )
        expect(patched, c.QueuePatched)
        document = queues_document(expect(queues, c.Queues))
        found = next((each for each in document.queues if each.name == queue), None)
        return json_response(found or self._empty_queue(queue, patch.paused))

    def _empty_queue(self, queue: str, paused: bool) -> QueueDocument:
        counts = dict.fromkeys((state.value for state in State), 0)
        return QueueDocument(queue, self._settings.pool_of(queue), paused, counts, None, None, 0.0)

    async def workers(self, request: Request) -> Response:
        """Workers and pools, as the leader sees them."""
        query_values(request, ())
        workers = await self._gateway.get(c.GetWorkers(), c.Workers)
        return json_response(workers_document(workers, self._ray))

    async def tasks(self, request: Request) -> Response:
        """The tasks that this service knows."""
        query_values(request, ())
        found = [self._registry.get(name) for name in self._registry.names()]
        return json_response(TasksDocument([self._task(each) for each in found if each is not None]))

    def _task(self, definition: TaskDefinition) -> TaskDocument:
        return TaskDocument(
            name=definition.name,
            description=(inspect.getdoc(definition.function) or "").partition("\n")[0],
            parameters=_parameters(definition),
            queue=definition.queue,
            pool=self._settings.pool_of(definition.queue),
            priority=definition.priority,
            max_attempts=definition.max_attempts,
            max_crashes=definition.max_crashes,
            timeout_seconds=definition.timeout_seconds,
            refused=definition.refused,
        )

    # --- status, health ---

    async def status(self, request: Request) -> Response:
        """Who leads, how far the standby is, what workers do. Answers also while nobody leads."""
        query_values(request, ())
        statuses = await self._gateway.statuses()
        workers = await self._of_leader(statuses, c.GetWorkers(), c.Workers)
        now = self._gateway.wall()
        name, problem = self._settings.service, self._code_problem()
        return json_response(
            status_document(name, now, statuses, workers, self._commit_age_max, self._ray, problem)
        )

    async def _of_leader(self, statuses: list[c.ManagerStatus], query: c.Query, kind: type[T]) -> T | None:
        """The leader's answer if it comes soon; None otherwise: a status must not wait for a failover."""
        if leader_of(statuses) is None:
            return None
        try:
            async with asyncio.timeout(LEADER_SECONDS):
                return await self._gateway.get(query, kind)
        except (TimeoutError, Refused):
            return None

    async def healthz(self, request: Request) -> Response:
        """This replica answers."""
        return json_response(HealthDocument("ok"))

    async def readyz(self, request: Request) -> Response:
        """A leader can commit. Its idle records prove it every few seconds, so asking costs no write."""
        problem = commit_problem(await self._gateway.statuses(), self._commit_age_max)
        if problem is not None:
            raise Refused(Refusal("no_leader", problem, retry_after_seconds=1.0))
        return json_response(HealthDocument("ready"))

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        statuses = await self._gateway.statuses()
        queues = await self._of_leader(statuses, c.GetQueues(QUEUES_MAX), c.Queues)
        workers = await self._of_leader(statuses, c.GetWorkers(), c.Workers)
        now = self._gateway.wall()
        text = metrics.render(statuses, queues, workers, self._own(), now)
        return Response(text, 200, media_type=metrics.CONTENT_TYPE)


def _decoded_patch(body: bytes) -> QueuePatch:
    try:
        return _patch.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(cut(str(error)), "paused") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(cut(f"is not valid JSON: {error}"), "body") from error


def _parameters(definition: TaskDefinition) -> str:
    try:
        return str(inspect.signature(definition.function))
    except (ValueError, TypeError):
        return "(...)"  # a callable that does not tell
