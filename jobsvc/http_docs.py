"""OpenAPI, made of the table of routes and of the documents that they take and give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import Response

from .errors import REFUSALS
from .http_errors import PROBLEM_TYPE, Problem
from .http_jobs import JSON_TYPE
from .http_operations import OPERATIONS, REQUEST_ID_HEADER, Operation, Schema
from .settings import Settings

Handler = Callable[[Request], Awaitable[Response]]

_EXAMPLE_ID = "01938f6a-7c1e-7d2a-b3f4-5e6d7c8b9a00"
_HEADER_TEXTS = {
    "Location": "Where the job is.",
    "Retry-After": "Seconds after which to ask again.",
    "Preference-Applied": "How long the answer waited at most.",
}


def _documents() -> list[Any]:
    found: list[Any] = [Problem]
    for operation in OPERATIONS:
        contents = [answer.content for answer in operation.answers] + [operation.body or {}]
        found += [each for content in contents for each in content.values() if not isinstance(each, dict)]
    return found


def _schemas() -> tuple[list[Any], dict[str, Schema], dict[str, Schema]]:
    documents = _documents()
    schemas, components = msgspec.json.schema_components(
        documents, ref_template="#/components/schemas/{name}"
    )
    return documents, {str(each): schema for each, schema in zip(documents, schemas, strict=True)}, components


_, _SCHEMA_OF, COMPONENTS = _schemas()


def _content(content: dict[str, type | Schema], example: Any = None) -> Schema:
    found: Schema = {}
    for kind, document in content.items():
        schema = document if isinstance(document, dict) else _SCHEMA_OF[str(document)]
        found[kind] = {"schema": schema}
        if example is not None and kind == JSON_TYPE:
            found[kind]["example"] = example
    return found


def _header(name: str) -> Schema:
    return {"description": _HEADER_TEXTS[name], "schema": {"type": "string"}}


def _responses(operation: Operation, codes: tuple[str, ...]) -> dict[int | str, Schema]:
    responses: dict[int | str, Schema] = {}
    for answer in operation.answers:
        responses[answer.status] = {
            "description": answer.description,
            "content": _content(answer.content),
            "headers": {name: _header(name) for name in answer.headers},
        }
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(REFUSALS[code].status, []).append(code)
    for status, its_codes in sorted(by_status.items()):
        responses[status] = _problem_response(operation, status, its_codes)
    return responses


def _problem_response(operation: Operation, status: int, codes: list[str]) -> Schema:
    examples = {
        code: {
            "value": {
                "type": f"urn:jobsvc:problem:{code}",
                "title": REFUSALS[code].title,
                "status": status,
                "code": code,
                "detail": "what was wrong, in words",
                "instance": operation.path.replace("{id}", _EXAMPLE_ID),
                "request_id": _EXAMPLE_ID,
                "retryable": REFUSALS[code].retryable,
            }
        }
        for code in codes
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    response: Schema = {
        "description": " · ".join(f"`{code}`: {REFUSALS[code].title}." for code in codes),
        "content": {PROBLEM_TYPE: {"schema": schema, "examples": examples}},
    }
    if status == 503:
        response["headers"] = {"Retry-After": _header("Retry-After")}
    return response


def add_operation(app: FastAPI, operation: Operation, handler: Handler) -> None:
    """Route an operation, with its documentation."""
    is_open = operation.path in ("/healthz", "/readyz")
    codes = operation.problems if is_open else (*operation.problems, "unauthorized", "not_allowed")
    extra: Schema = {"parameters": [*operation.parameters, REQUEST_ID_HEADER]}
    if is_open:
        extra["security"] = []
    if operation.body is not None:
        extra["requestBody"] = {"required": True, "content": _content(operation.body, operation.example)}
    app.add_api_route(
        operation.path,
        handler,
        methods=[operation.method],
        operation_id=operation.handler,
        tags=[operation.tag],
        summary=operation.summary,
        description=operation.description,
        status_code=operation.answers[0].status,
        response_model=None,
        response_class=Response,
        responses=_responses(operation, (*codes, "internal")),
        openapi_extra=extra,
    )


def install_openapi(app: FastAPI, settings: Settings, *, has_token: bool) -> None:
    """Make `app.openapi()` complete: schemas of all documents, and how to show the token."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            document = get_openapi(
                title="jobsvc",
                version=app.version,
                summary="A durable job service.",
                description=(
                    "Accepted is durable: a job that was answered with an id is in the journal. Every "
                    f"write takes an `Idempotency-Key`. A body has at most {settings.request_bytes_max} "
                    f"bytes, a batch at most {settings.batch_jobs_max} jobs. Errors are problem documents "
                    "(RFC 9457)."
                ),
                routes=app.routes,
                servers=[{"url": settings.route_prefix or "/"}],
            )
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(COMPONENTS)
            if has_token:
                components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"token": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
