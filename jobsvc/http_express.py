"""The express lane: single enqueues on the shortest way through a replica.

A single `PUT` costs the leader next to nothing, because what arrives together travels together; what it costs
is HTTP. Two of the layers that a request goes through do nothing for an enqueue: FastAPI's routing and
dependency solving, and the bookkeeping that Serve does for each request (a task that watches for the
client's leaving, another for the call, its own counters, the route found a second time). Measured on a
2-core machine they were two thirds of a replica's time for a `PUT`.

So Serve is given a middleware (`serve_express`, by the variable that Serve has for it) that hands a request
of the routes below straight to their handlers, through the same outer rim (access, request ids, our counters,
the last catch) and with the same problem documents. Everything else, and everything where Serve does not
call the middleware, goes the long way; the answers are the same, and a test holds both ways to that.

What such a request loses: Serve does not see it. It is not in Serve's own request counters (it is in ours),
and Serve does not count it when it waits for a replica's open requests before it stops it; but it first
takes the replica out of the proxy and then waits for seconds, while an enqueue takes milliseconds. A caller
who hangs up does not end it; his job is taken all the same, as he would have to expect anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import JobsvcError
from .http_docs import Handler
from .http_errors import on_jobsvc_error

EXPRESS_ROUTES = frozenset({("PUT", "/enqueue"), ("POST", "/v1/jobs")})  # a batch is long, and its way is not


class _Route(NamedTuple):
    """What the outer rim reads of a route, for its counters."""

    path: str


class ExpressRoutes:
    """ASGI: the handlers of the express routes, found by method and path alone."""

    def __init__(self, handlers: Mapping[tuple[str, str], Handler]) -> None:
        self._routes = {key: (handler, _Route(key[1])) for key, handler in handlers.items()}
        self.taken = 0  # requests that came this way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.taken += 1
        handler, scope["route"] = self._routes[scope["method"], scope["path"]]
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except JobsvcError as error:
            response = await on_jobsvc_error(request, error)
        await response(scope, receive, send)


class ExpressLane:
    """ASGI: express requests go to `express`, all others to `app`."""

    def __init__(self, app: ASGIApp, express: ASGIApp) -> None:
        self._app = app
        self._express = express

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_express = scope["type"] == "http" and (scope["method"], scope["path"]) in EXPRESS_ROUTES
        await (self._express if is_express else self._app)(scope, receive, send)
