"""The outer rim of the HTTP side: who may come in, and what every answer carries. Plain ASGI.

Access (P10). With a token, every request must present it, but for the two health checks and the files of the
page, which hold no data. Without one, the service is bound to loopback, and the danger is the user's own
browser: a page from elsewhere may send requests to localhost, and with DNS rebinding its own name may point
there. So without a token

- `Host` must be a name of this machine's loopback: a rebound name is not;
- a request that a browser marks as coming from another site or origin is refused, unless it only reads, which
  the browser keeps from the page by itself, as no CORS header is ever sent.

Programs send no `Origin` and are not concerned. With a token no browser can be misused: it does not have it.

`HEAD` is answered wherever `GET` is, as a `GET` whose body is left out, and one slash at the end of an
address means nothing. `OPTIONS` says what an address takes; there are no CORS headers.

Every answer carries `X-Request-Id`, the caller's if it is a decent one. A defect becomes a 500 problem
document and a line in the log with that id; its details stay inside.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import is_loopback, token_matches
from .errors import Refusal
from .http_errors import problem
from .http_mount import redirect_to_page, unmounted
from .http_page import is_page

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_log = logging.getLogger("jobsvc.http")
_decent_request_id = re.compile(r"[A-Za-z0-9._:-]{1,128}").fullmatch

Observe = Callable[[str, str, int, str | None, float], None]  # route, method, status, refusal code, seconds


class Access:
    """Decides from a request's head alone."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def refusal(self, path: str, method: str, headers: Headers) -> Refusal | None:
        """Why this request may not come in, or None."""
        if path in OPEN_PATHS:
            return None
        if self._token is not None:
            return None if is_page(path) and method in SAFE_METHODS else self._refusal_by_token(headers)
        return _refusal_by_browser(method, headers)

    def _refusal_by_token(self, headers: Headers) -> Refusal | None:
        assert self._token is not None
        given = headers.getlist("authorization")
        if len(given) != 1:
            return Refusal(
                "unauthorized", "send the token as 'Authorization: Bearer …', once", "Authorization"
            )
        scheme, _, presented = given[0].partition(" ")
        if scheme.lower() != "bearer" or not token_matches(self._token, presented.strip()):
            return Refusal("unauthorized", "the token is not the right one", "Authorization")
        return None


def _refusal_by_browser(method: str, headers: Headers) -> Refusal | None:
    for host in headers.getlist("host"):
        if not _is_loopback_host(host):
            detail = (
                "without a token this service answers to localhost only; set JOBSVC_TOKEN for other names"
            )
            return Refusal("not_allowed", detail, "Host")
    if method in SAFE_METHODS:
        return None
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return Refusal("not_allowed", "pages of other sites may not write here", "Sec-Fetch-Site")
    for origin in headers.getlist("origin"):
        if origin.partition("://")[2].lower() != headers.get("host", "").lower():
            return Refusal("not_allowed", "pages of other origins may not write here", "Origin")
    return None


@lru_cache(maxsize=64)
def _is_loopback_host(host: str) -> bool:
    """True for `localhost`, `127.0.0.1`, `[::1]`, with or without a port."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return False
    return parts.hostname is not None and "@" not in host and is_loopback(parts.hostname)


class _HeadSent(ClientDisconnect):
    """All of an answer to HEAD has been sent."""


class OuterRim:
    """The first and last to see a request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        observe: Observe,
        new_request_id: Callable[[], str],
        server_echoes_request_id: bool,
    ) -> None:
        self._app = app
        self._access = access
        self._observe = observe
        self._new_request_id = new_request_id
        self._server_echoes_request_id = server_echoes_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope.get("root_path"):
            scope = unmounted(scope)
        headers = Headers(scope=scope)
        method = scope["method"]
        scope = _as_routed(scope)
        given = headers.get("x-request-id", "")
        request_id = given if _decent_request_id(given) else self._new_request_id()
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def send_with_marks(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marked = MutableHeaders(scope=message)
                if not (self._server_echoes_request_id and request_id == given):
                    marked["X-Request-Id"] = request_id
                marked["X-Content-Type-Options"] = "nosniff"
                marked.setdefault("Cache-Control", "no-store")
            await send(message)

        send_marked: Send = send_with_marks
        if method == "HEAD":
            send_marked, receive = _without_body(send_marked, receive)
        began = time.monotonic()
        try:
            refusal = self._access.refusal(scope["path"] or "/", method, headers)
            if not scope["path"] and method in SAFE_METHODS:
                await redirect_to_page()(scope, receive, send_marked)
            elif refusal is None:
                await self._app(scope, receive, send_marked)
            else:
                await problem(Request(scope), refusal)(scope, receive, send_marked)
        except _HeadSent:
            pass
        except ClientDisconnect:
            state["refused"] = "disconnected"  # nobody is there to be answered; nothing was taken
        except Exception:
            state["refused"] = "internal"
            _log.exception("a request failed", extra={"request_id": request_id})
            if status:
                raise  # the answer has begun: only breaking it off tells the truth
            refusal = Refusal("internal", "the service failed; its log has the request id")
            await problem(Request(scope), refusal)(scope, receive, send_marked)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            seconds = time.monotonic() - began
            self._observe(route, method, status, state.get("refused"), seconds)


def _as_routed(scope: Scope) -> Scope:
    """The request as the routes know it."""
    path = scope["path"]
    has_slash = path.endswith("/") and len(path.removeprefix(scope.get("root_path", ""))) > 1
    if scope["method"] != "HEAD" and not has_slash:
        return scope
    scope = {**scope, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
    if has_slash:
        scope["path"] = path[:-1]
        scope["raw_path"] = (scope.get("raw_path") or b"").removesuffix(b"/")
    return scope


def _without_body(send: Send, receive: Receive) -> tuple[Send, Receive]:
    """For HEAD: the head of the answer goes out, and then nobody listens any more."""
    sent = False

    async def send_head(message: Message) -> None:
        nonlocal sent
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            sent = True
        elif message.get("more_body"):
            raise _HeadSent  # a stream ends, as when its reader leaves

    async def nothing_more() -> Message:
        return {"type": "http.disconnect"} if sent else await receive()

    return send_head, nothing_more
