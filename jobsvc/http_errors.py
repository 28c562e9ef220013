"""Errors over HTTP: every answer that is not a success is a problem document (RFC 9457).

`code` is the key of `errors.REFUSALS`, for programs; `type` is the same as a URI, `detail` is for people.
`field` names the part of the request to fix, `retryable` says whether the same request may be sent again as
it is.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from .errors import REFUSALS, InvalidRequest, JobsvcError, Refusal, Refused, Unavailable
from .http_mount import mounted
from .object_store import StoreError

PROBLEM_TYPE = "application/problem+json"
TEXT_MAX = 600  # of a detail: it may quote what was sent
FIELD_MAX = 120

_CODES_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_type"}


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Why a request was not done, after RFC 9457."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    retryable: bool
    field: str | None = None
    index: int | None = None  # of the item of a batch, from 0
    state: str | None = None  # of the job, where that is the reason
    error: Any = None  # of the job's last attempt, where that is the reason


def cut(text: str, length: int = TEXT_MAX) -> str:
    """Text that may go into an answer, whatever was sent."""
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"


def request_id(request: Request) -> str:
    return str(getattr(request.state, "request_id", ""))


def path_of(request: Request) -> str:
    """The path alone. `request.url` would read the query too, and fail if that is not UTF-8."""
    return mounted(str(request.scope["path"]))


def problem(
    request: Request, refusal: Refusal, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    """The answer that a refusal gets."""
    meaning = REFUSALS.get(refusal.code, REFUSALS["internal"])
    document = Problem(
        type=f"urn:jobsvc:problem:{refusal.code}",
        title=meaning.title,
        status=meaning.status,
        code=refusal.code,
        detail=cut(refusal.detail),
        instance=cut(path_of(request)),
        request_id=request_id(request),
        retryable=meaning.retryable,
        field=None if refusal.field is None else cut(refusal.field, FIELD_MAX),
        **more,
    )
    sent = dict(headers or {})
    retry_after = refusal.retry_after_seconds
    if retry_after is None and meaning.status == 503:
        retry_after = 1.0
    if retry_after is not None:
        sent["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if meaning.status == 401:
        sent["WWW-Authenticate"] = 'Bearer realm="jobsvc"'
    request.state.refused = refusal.code
    return Response(msgspec.json.encode(document), meaning.status, sent, PROBLEM_TYPE)


def refusal_of(error: JobsvcError) -> Refusal:
    """What a raised error means to the caller."""
    if isinstance(error, Refused):
        return error.refusal
    if isinstance(error, InvalidRequest):
        return Refusal("invalid", str(error), error.field)
    if isinstance(error, Unavailable):
        return Refusal("no_leader", str(error))
    if isinstance(error, StoreError):
        return Refusal("store_silent", str(error))
    raise error


class InvalidItem(InvalidRequest):
    """An item of a batch is wrong; `index` counts from 0."""

    def __init__(self, detail: str, field: str | None, index: int) -> None:
        name = f"jobs[{index}]" if field is None else f"jobs[{index}].{field}"
        super().__init__(detail, name)
        self.index = index


class RefusedItem(Refused):
    """An item of a batch is refused; `index` counts from 0."""

    def __init__(self, refusal: Refusal, index: int) -> None:
        name = f"jobs[{index}]" if refusal.field is None else f"jobs[{index}].{refusal.field}"
        super().__init__(Refusal(refusal.code, f"{name}: {refusal.detail}", name))
        self.index = index


async def on_jobsvc_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, JobsvcError)
    index = error.index if isinstance(error, InvalidItem | RefusedItem) else None
    return problem(request, refusal_of(error), index=index)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router says: no such address, or not by this method."""
    assert isinstance(error, HTTPException)
    code = _CODES_BY_STATUS.get(error.status_code, "invalid" if error.status_code < 500 else "internal")
    detail = f"{request.method} {cut(path_of(request), 200)}: {error.detail}"
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
        if request.method == "OPTIONS":
            return Response(None, 204, headers)
    return problem(request, Refusal(code, detail), headers)


def _methods_of(request: Request) -> list[str]:
    """All methods of an address: the router names those of the first route alone."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found | {"HEAD", "OPTIONS"} if "GET" in found else found | {"OPTIONS"})


async def on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return problem(request, Refusal("invalid", str(first["msg"]), ".".join(map(str, first["loc"][1:]))))
