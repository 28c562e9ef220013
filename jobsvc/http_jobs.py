"""Routes of jobs: enqueue, look, wait, result, payload, cancel, retry, list; and the old system's two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from . import commands as c
from .code_calls import head_bytes
from .errors import InvalidRequest, Refusal, Refused
from .gateway import Gateway, expect
from .http_errors import problem
from .http_job_requests import (
    ITERATIONS_MAX,
    NAME_LENGTH_MAX,
    RAW_OPTIONS,
    TASK_LENGTH_MAX,
    JobReader,
    NewJobs,
)
from .http_mount import mounted
from .http_requests import (
    Bodies,
    content_kind,
    job_id_of,
    key_and_fingerprint,
    one_value,
    query_values,
    wait_seconds,
    whole_number,
)
from .http_views import (
    AcceptedId,
    BatchDocument,
    JobPageDocument,
    PulledDocument,
    content_type,
    encode_json,
    error_document,
    job_document,
)
from .jobs import HASH_TASK, TERMINAL, BlobRef, Result, State, id_text

JSON_TYPE = "application/json"
PAGE_DEFAULT = 50
PAGE_MAX = 500
LIST_CALLS_MAX = 10  # the leader looks at a bounded number of jobs in each
PULL_MAX = 1_000
SEQ_MAX = 10**18
SAFE_BYTES = {"Content-Disposition": "attachment", "Content-Security-Policy": "sandbox"}
_LIST_PARAMETERS = frozenset({"state", "queue", "task", "batch", "failure", "cursor", "limit"})


def _named_arguments(payload: bytes) -> int:
    return payload.find(b"\n") + 1


# how much of a payload is ours, and not the caller's, by its content
_LINES: dict[str, Callable[[bytes], int]] = {"raw": _named_arguments, "pickle": head_bytes}


def json_response(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode_json(document), status, headers, JSON_TYPE)


class JobRoutes:
    """The handlers, over one gateway."""

    def __init__(self, gateway: Gateway, bodies: Bodies, reader: JobReader, ray: str | None) -> None:
        self._gateway = gateway
        self._bodies = bodies
        self._reader = reader
        self._ray = ray

    # --- enqueue ---

    async def old_enqueue(self, request: Request) -> Response:
        """The old system's endpoint: the body, whatever its type, is hashed `iterations` times."""
        text = one_value(request, "iterations")
        if text is None:
            raise InvalidRequest(f"is missing: a whole number from 1 to {ITERATIONS_MAX}", "iterations")
        iterations = whole_number("iterations", text, 1, ITERATIONS_MAX)
        body = await self._bodies.read(request)
        command = await self._command(request, self._reader.hash_job(iterations, body), body)
        accepted = await self._gateway.get(command, c.Accepted)
        job_id = id_text(accepted.ids[0])
        return json_response(AcceptedId(job_id), 200, {"Location": mounted(f"/v1/jobs/{job_id}")})

    async def enqueue(self, request: Request) -> Response:
        """One job: a JSON document, or raw bytes with the options in the query."""
        kind = content_kind(request)
        if kind == "ndjson":
            raise Refused(Refusal("unsupported_type", "lines of jobs go to /v1/jobs:batch", "Content-Type"))
        values = query_values(request, RAW_OPTIONS if kind == "raw" else ())
        body = await self._bodies.read(request)
        new = self._reader.raw(values, body) if kind == "raw" else self._reader.one(body)
        command = await self._command(request, new, body)
        reply, found = await self._gateway.ask(command, c.GetJobs([new.jobs[0].id]))
        accepted = expect(reply, c.Accepted)
        if accepted.ids[0] == new.jobs[0].id:
            view = expect(expect(found, c.Found).items[0], c.JobView)
        else:
            view = await self._gateway.job(accepted.ids[0])
        document = job_document(view, self._ray, created=accepted.created)
        return json_response(document, 202, {"Location": document.links.self})

    async def enqueue_batch(self, request: Request) -> Response:
        """Many jobs, all or none: a JSON array, or one document a line."""
        kind = content_kind(request)
        if kind == "raw":
            raise Refused(Refusal("unsupported_type", "send JSON or lines of JSON", "Content-Type"))
        query_values(request, ())
        body = await self._bodies.read(request)
        is_lines = kind == "ndjson" or not body[:64].lstrip().startswith(b"[")
        command = await self._command(request, self._reader.many(body, is_lines), body)
        accepted = await self._gateway.get(command, c.Accepted)
        ids = [id_text(job_id) for job_id in accepted.ids]
        return json_response(BatchDocument(ids, len(ids), accepted.created), 202)

    async def _command(self, request: Request, new: NewJobs, body: bytes) -> c.Enqueue:
        key, fingerprint = await key_and_fingerprint(request, body)
        return c.Enqueue(new.options, new.jobs, key, fingerprint, new.delays)

    # --- look ---

    async def get_job(self, request: Request) -> Response:
        """One job; waits for its end if the caller prefers to."""
        values = query_values(request, ("wait",))
        job_id = job_id_of(request)
        seconds = wait_seconds(request, values)
        view = await self._gateway.wait_for_job(job_id, seconds)
        return json_response(job_document(view, self._ray), 200, _waited(seconds, view))

    async def result(self, request: Request) -> Response:
        """What the job returned, as it is."""
        values = query_values(request, ("wait",))
        job_id = job_id_of(request)
        seconds = wait_seconds(request, values)
        view = await self._gateway.wait_for_job(job_id, seconds)
        headers = _waited(seconds, view)
        if view.state not in TERMINAL:
            return json_response(job_document(view, self._ray), 202, {**headers, "Retry-After": "1"})
        if view.state is not State.SUCCEEDED:
            return _no_result(request, view)
        result = view.result or Result("json", b"null")
        headers["Content-Type"] = content_type(result.content)
        if result.content != "json":
            headers |= SAFE_BYTES
        if result.ref is None:
            return Response(result.data or b"", 200, headers)
        return await self._stream(result.ref, headers)

    async def payload(self, request: Request) -> Response:
        """What the job was given: its arguments as JSON, or its bytes as they came."""
        query_values(request, ())
        found = await self._gateway.get(c.GetPayload(job_id_of(request)), c.Payload)
        payload = found.payload
        headers = {"Content-Type": content_type(found.content)}
        if found.content != "json":
            headers |= SAFE_BYTES
        line_of = _LINES.get(found.content)
        if isinstance(payload, bytes):
            return Response(payload[0 if line_of is None else line_of(payload) :], 200, headers)
        return await self._stream(payload, headers, line_of)

    async def _stream(
        self, ref: BlobRef, headers: dict[str, str], line_of: Callable[[bytes], int] | None = None
    ) -> Response:
        """An object's bytes. Begins when the first ones are at hand, so that a missing object is an error."""
        pieces = self._gateway.stream_blob(ref)
        first = await anext(pieces, b"")
        skipped = 0 if line_of is None else line_of(first)

        async def rest() -> AsyncIterator[bytes]:
            async with aclosing(pieces):
                yield first[skipped:]
                async for piece in pieces:
                    yield piece

        return StreamingResponse(rest(), 200, {**headers, "Content-Length": str(ref.length - skipped)})

    async def list_jobs(self, request: Request) -> Response:
        """A page of jobs, newest first."""
        values = query_values(request, _LIST_PARAMETERS)
        limit = whole_number("limit", values.get("limit", str(PAGE_DEFAULT)), 1, PAGE_MAX)
        cursor = values.get("cursor")
        query = c.ListJobs(
            state=_state(values.get("state")),
            queue=_name(values, "queue", NAME_LENGTH_MAX),
            task=_name(values, "task", TASK_LENGTH_MAX),
            batch=_name(values, "batch", NAME_LENGTH_MAX),
            before=None if cursor is None else whole_number("cursor", cursor, 0, SEQ_MAX),
            limit=limit,
            failure=_name(values, "failure", NAME_LENGTH_MAX),
        )
        found: list[c.JobView] = []
        top = 0
        for _ in range(LIST_CALLS_MAX):
            page = await self._gateway.get(query, c.JobPage)
            found += page.jobs
            top = top or page.top
            query.before, query.limit = page.before, limit - len(found)
            if query.before is None or query.limit == 0:
                break
        documents = [job_document(view, self._ray, short=True) for view in found]
        before = None if query.before is None else str(query.before)
        return json_response(JobPageDocument(documents, before, str(top)))

    # --- change ---

    async def cancel(self, request: Request) -> Response:
        """Ask for the end of a job: 200 if it has ended, 202 if it runs and its worker must confirm."""
        return await self._change(request, c.Cancel)

    async def retry(self, request: Request) -> Response:
        """Put a failed or cancelled job back."""
        return await self._change(request, c.Retry)

    async def _change(self, request: Request, kind: type[c.Cancel] | type[c.Retry]) -> Response:
        query_values(request, ())
        job_id = job_id_of(request)
        key, fingerprint = await key_and_fingerprint(request, await self._bodies.read(request))
        changed, found = await self._gateway.ask(kind([job_id], key, fingerprint), c.GetJobs([job_id]))
        item = expect(changed, c.Changed).items[0]
        if isinstance(item, Refusal):
            raise Refused(item)
        view = expect(expect(found, c.Found).items[0], c.JobView)
        return json_response(job_document(view, self._ray), 200 if item is State.CANCELLED else 202)

    async def old_pull(self, request: Request) -> Response:
        """The old system's endpoint: results of hash jobs that nobody has pulled yet, latest first."""
        text = one_value(request, "top")
        top = 1 if text is None else whole_number("top", text, 1, PULL_MAX)
        body = await self._bodies.read(request)
        key, fingerprint = await key_and_fingerprint(request, body)
        pulled = await self._gateway.get(c.Pull(HASH_TASK, top, key, fingerprint), c.Pulled)
        return json_response([await self._pulled(job) for job in pulled.jobs])

    async def _pulled(self, job: c.PulledJob) -> PulledDocument:
        data = await self._gateway.read_result(job.result)
        return PulledDocument(id_text(job.id), data.decode().strip('"'))


def _waited(seconds: float, view: c.JobView) -> dict[str, str]:
    if seconds <= 0:
        return {}
    headers = {"Preference-Applied": f"wait={seconds:g}"}
    return headers if view.state in TERMINAL else {**headers, "Retry-After": "1"}


def _no_result(request: Request, view: c.JobView) -> Response:
    """Why a job that has ended has no result."""
    error = view.history[-1].error if view.history else None
    detail = f"the job has {view.state.value}"
    if error is not None and view.state is State.FAILED:
        detail += f": {error.type}: {error.message}"
    refusal = Refusal("job_failed", detail)
    return problem(request, refusal, state=view.state.value, error=error_document(error, short=False))


def _state(text: str | None) -> State | None:
    if text is None:
        return None
    try:
        return State(text)
    except ValueError as error:
        names = ", ".join(state.value for state in State)
        raise InvalidRequest(f"must be one of {names}", "state") from error


def _name(values: dict[str, str], field: str, length_max: int) -> str | None:
    text = values.get(field)
    if text is not None and not 1 <= len(text) <= length_max:
        raise InvalidRequest(f"must have 1 to {length_max} characters", field)
    return text
