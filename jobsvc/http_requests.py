"""Reading requests: bodies within their bounds, query parameters, headers. Errors name the field."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from .commands import AUTOMATIC_KEY_PREFIX, PASSING_KEY_PREFIX
from .errors import InvalidRequest, Refusal, Refused
from .jobs import id_bytes
from .settings import MIB

WAIT_SECONDS_MAX = 60.0
KEY_LENGTH_MAX = 255
BODIES_BYTES_MAX = 512 * MIB  # of all requests that are being read, in one replica
HASH_IN_THREAD_BYTES = MIB
INTEGER_DIGITS_MAX = 18

_integer = re.compile(rf"-?[0-9]{{1,{INTEGER_DIGITS_MAX}}}", re.ASCII).fullmatch
_id_text = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII).fullmatch
_wait_preference = re.compile(r"\s*wait\s*=\s*\"?([0-9]{1,9}(?:\.[0-9]{1,9})?)\"?\s*", re.ASCII).fullmatch
_JSON_TYPE = re.compile(r"application/(json|([a-z0-9.-]+\+)json)", re.ASCII).fullmatch
_NDJSON_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
RAW_TYPE = "application/octet-stream"


class Bodies:
    """Reads bodies, and keeps what is being read within bounds."""

    def __init__(self, request_bytes_max: int) -> None:
        self._bytes_max = request_bytes_max
        self._reading_bytes = 0

    async def read(self, request: Request) -> bytes:
        """The whole body. Raises Refused as soon as it is known to be too large, or cannot be taken."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            detail = f"send the body as it is, without Content-Encoding {encoding!r}"
            raise Refused(Refusal("unsupported_type", detail, "Content-Encoding"))
        declared = self._declared(request)
        pieces: list[bytes] = []
        size = 0
        try:
            more = True
            while more:
                piece, more = await _next_piece(request)
                size += len(piece)
                self._reading_bytes += len(piece)
                self._check(size)
                pieces.append(piece)
        finally:
            self._reading_bytes -= size
        if declared is not None and size != declared:
            raise InvalidRequest(f"{declared} bytes were announced, {size} came", "Content-Length")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _declared(self, request: Request) -> int | None:
        text = request.headers.get("content-length")
        if text is None:
            return None
        if not _integer(text) or text.startswith("-"):
            raise InvalidRequest("is not a number of bytes", "Content-Length")
        self._check_size(int(text))
        return int(text)

    def _check(self, size: int) -> None:
        self._check_size(size)
        if self._reading_bytes > max(BODIES_BYTES_MAX, self._bytes_max):
            raise Refused(Refusal("overloaded", "too many bodies are being read"))

    def _check_size(self, size: int) -> None:
        if size > self._bytes_max:
            raise Refused(Refusal("too_large", f"a body has at most {self._bytes_max} bytes", "body"))


async def _next_piece(request: Request) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there are more. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect()
    return message.get("body", b""), message.get("more_body", False)


def content_kind(request: Request) -> str:
    """`json`, `ndjson` or `raw`, as the Content-Type says; JSON if it says nothing. Raises Refused."""
    full = request.headers.get("content-type", "")
    kind = full.partition(";")[0].strip().lower()
    if not kind or _JSON_TYPE(kind):
        return "json"
    if kind in _NDJSON_TYPES:
        return "ndjson"
    if kind == RAW_TYPE:
        return "raw"
    detail = f"send application/json, not {kind[:60]!r}"
    raise Refused(Refusal("unsupported_type", detail, "Content-Type"))


@lru_cache(maxsize=256)
def _query(query: bytes) -> tuple[tuple[str, str], ...]:
    """The parameters of a query, in order; callers send the same few again and again."""
    return tuple(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


def query_values(request: Request, allowed: Collection[str]) -> dict[str, str]:
    """The query's parameters: each one known, and given once. Raises InvalidRequest."""
    values: dict[str, str] = {}
    for name, value in _query(request.scope["query_string"]):
        if name not in allowed:
            raise InvalidRequest(f"is no parameter here; there are: {', '.join(sorted(allowed))}", name)
        if name in values:
            raise InvalidRequest("is given more than once", name)
        values[name] = value
    return values


def one_value(request: Request, name: str) -> str | None:
    """One parameter, whatever else there is."""
    values = [value for each, value in _query(request.scope["query_string"]) if each == name]
    if len(values) > 1:
        raise InvalidRequest("is given more than once", name)
    return values[0] if values else None


def whole_number(name: str, text: str, low: int, high: int) -> int:
    """A whole number between bounds, in plain digits. Raises InvalidRequest."""
    if not _integer(text) or not low <= int(text) <= high:
        raise InvalidRequest(f"must be a whole number from {low} to {high}", name)
    return int(text)


def seconds_number(name: str, text: str, high: float) -> float:
    """Seconds from 0 on; what is above the bound counts as the bound. Raises InvalidRequest."""
    try:
        seconds = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidRequest("must be a number of seconds", name)
    return min(seconds, high)


def wait_seconds(request: Request, values: Mapping[str, str] | None = None) -> float:
    """How long the caller wants to wait: `Prefer: wait=N`, or `?wait=N`. Bounded."""
    if values is not None and "wait" in values:
        return seconds_number("wait", values["wait"], WAIT_SECONDS_MAX)
    for preferences in request.headers.getlist("prefer"):
        for preference in preferences.split(","):
            match = _wait_preference(preference.partition(";")[0])
            if match:
                return min(float(match.group(1)), WAIT_SECONDS_MAX)
    return 0.0  # a preference that is not understood is not an error (RFC 7240)


def job_id_of(request: Request) -> bytes:
    """The id in the path. Raises Refused: what is not an id names no job."""
    text = request.path_params["id"]
    if not _id_text(text):
        raise Refused(Refusal("unknown_job", "a job id has 36 characters, like those of a UUID", "id"))
    return id_bytes(text)


def idempotency_key(request: Request) -> str | None:
    """The caller's key. Raises InvalidRequest."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0]
    good = len(keys) == 1 and 1 <= len(key) <= KEY_LENGTH_MAX and key.isascii() and key.isprintable()
    if not good:
        raise InvalidRequest(f"must be one key of 1 to {KEY_LENGTH_MAX} printable ASCII characters", _KEY)
    if key.startswith(AUTOMATIC_KEY_PREFIX):
        raise InvalidRequest(f"must not begin with {AUTOMATIC_KEY_PREFIX!r}", _KEY)
    return AUTOMATIC_KEY_PREFIX + key if key.startswith(PASSING_KEY_PREFIX) else key


_KEY = "Idempotency-Key"


async def fingerprint(request: Request, body: bytes = b"") -> bytes:
    """What tells two requests under one key apart: method, address and body."""
    hasher = hashlib.sha256()
    query = request.scope.get("query_string", b"")
    for part in (request.method.encode(), request.scope["path"].encode("utf-8", "replace"), query):
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    if len(body) > HASH_IN_THREAD_BYTES:
        await asyncio.to_thread(hasher.update, body)
    else:
        hasher.update(body)
    return hasher.digest()


async def key_and_fingerprint(request: Request, body: bytes = b"") -> tuple[str | None, bytes]:
    """What makes a command of this request idempotent."""
    key = idempotency_key(request)
    return key, (b"" if key is None else await fingerprint(request, body))
