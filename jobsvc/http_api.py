"""The HTTP API: one table of routes over one gateway.

Handlers read the raw request and answer raw bytes: bodies of any type must come through unchanged, and a
batch of ten thousand jobs must not become ten thousand model objects. So FastAPI routes, and `http_docs`
says in OpenAPI what each route takes and gives; a test compares the two.

    http_access       who may come in, request ids, the last catch for defects
    http_requests     bodies, parameters, headers      http_job_requests   job documents
    http_jobs         routes of jobs                   http_streams        completion feed, logs
    http_service      queues, workers, status, health  http_views          documents that are answered
    http_errors       problem documents                http_operations     the table of routes
    http_docs         OpenAPI                          http_docs_page      the same for people
    http_bulk         many jobs at once, failures      http_live           summaries, history
    http_page         the page at `/`                  http_express       single enqueues, the short way
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .errors import JobsvcError
from .gateway import Gateway
from .http_access import Access, OuterRim
from .http_bulk import BulkRoutes
from .http_docs import Handler, add_operation, install_openapi
from .http_docs_page import install_page
from .http_errors import on_http_exception, on_jobsvc_error, on_validation_error
from .http_express import EXPRESS_ROUTES, ExpressRoutes
from .http_job_requests import JobReader
from .http_jobs import JobRoutes
from .http_live import LiveRoutes
from .http_operations import OPERATIONS
from .http_page import install_web_page
from .http_requests import Bodies
from .http_service import ServiceRoutes
from .http_streams import StreamRoutes
from .jobs import id_text
from .metrics import ReplicaFigures, version
from .settings import Settings
from .tasks import Registry


def build_app(
    gateway: Gateway,
    settings: Settings,
    token: str | None,
    registry: Registry,
    *,
    server_echoes_request_id: bool = False,
    ray_dashboard_url: str | None = None,
    code_problem: Callable[[], str | None] = lambda: None,
) -> FastAPI:
    """The ASGI app of one replica. Without a token it answers to loopback names only.

    Ray Serve gives every request an id and puts it into the answer itself: then it must not be there twice.
    """
    app = FastAPI(title="jobsvc", version=version(), docs_url=None, redoc_url=None, redirect_slashes=False)
    figures = ReplicaFigures(str(os.getpid()), gateway.enqueue_commit_seconds)
    bodies = Bodies(settings.request_bytes_max)
    reader = JobReader(registry, settings, gateway.new_id, gateway.wall)
    jobs = JobRoutes(gateway, bodies, reader, ray_dashboard_url)
    bulk = BulkRoutes(gateway, bodies)
    streams = StreamRoutes(gateway)
    live = LiveRoutes(gateway, settings, streams, ray_dashboard_url)
    express = _express(jobs)

    def own_figures() -> ReplicaFigures:
        figures.gauges = {"event_streams": streams.open, "http_waiting": gateway.waiting}
        figures.counters = {
            "flights": gateway.flights.sent,
            "flight_requests": gateway.flights.requests_sent,
            "payload_packs": gateway.packs.written,
            "http_express": express.taken,
        }
        return figures

    app.state.own_figures = own_figures
    service = ServiceRoutes(gateway, bodies, settings, registry, own_figures, ray_dashboard_url, code_problem)
    for operation in OPERATIONS:
        add_operation(app, operation, _handler(operation.handler, jobs, bulk, streams, live, service))
    app.add_exception_handler(JobsvcError, on_jobsvc_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    rim = partial(
        OuterRim,
        access=Access(token),
        observe=figures.observe,
        new_request_id=lambda: id_text(gateway.new_id()),
        server_echoes_request_id=server_echoes_request_id,
    )
    app.add_middleware(rim)
    app.state.express = rim(express)
    install_openapi(app, settings, has_token=token is not None)
    install_page(app)
    install_web_page(app)
    return app


def _express(jobs: JobRoutes) -> ExpressRoutes:
    """The handlers of the express routes; each is the one that the table of routes names."""
    return ExpressRoutes(
        {
            (each.method, each.path): getattr(jobs, each.handler)
            for each in OPERATIONS
            if (each.method, each.path) in EXPRESS_ROUTES
        }
    )


def _handler(name: str, *owners: object) -> Handler:
    """The method of this name; exactly one of the owners has it."""
    (handler,) = [getattr(owner, name) for owner in owners if hasattr(owner, name)]
    found: Handler = handler
    return found
