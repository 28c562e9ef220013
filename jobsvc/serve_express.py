"""The express lane's place in Serve: the middleware that Serve puts in front of a replica's HTTP server.

Serve calls `middlewares` in each process that serves HTTP, because a variable of its environment names it
(`serve_proxy`). In a replica the app has been built by then, and its express routes wait here; a proxy has
none.
"""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp

from .http_express import ExpressLane

_express: ASGIApp | None = None


def open_express(express: ASGIApp) -> None:
    """This process is a replica, and these are its express routes."""
    global _express
    _express = express


def middlewares() -> list[Middleware]:
    """For Serve. No middleware where there is no replica."""
    return [] if _express is None else [Middleware(ExpressLane, express=_express)]
