"""Functions that travel with their jobs: what their payload is, and how it is loaded.

A payload of content `pickle` is a line of JSON that says what pickled it, a newline, and cloudpickle's bytes
of (function, arguments, named arguments). Bytecode of another Python does not fail when it is loaded: it
crashes, or computes something else. So the line is read first, and another Python is told so, once. Jobs that
were enqueued by version 0.1 have no such line; a pickle never begins like one.
"""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable
from typing import Any

import msgspec

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
BYTECODE = int.from_bytes(importlib.util.MAGIC_NUMBER[:2], "little")
_LINE_START = b"{"


class PickledBy(msgspec.Struct, omit_defaults=True):
    """What pickled a call."""

    python: str
    bytecode: int | None = None  # the number that this Python marks its bytecode with
    cloudpickle: str | None = None


class CodeNotLoaded(Exception):
    """Code that travelled with its job cannot be loaded here, and no other run will change that."""


def payload_of(by: PickledBy, data: bytes) -> bytes:
    """A pickled call with the line that says where it is from."""
    return msgspec.json.encode(by) + b"\n" + data


def head_bytes(payload: bytes) -> int:
    """How long the line is in front of the pickle."""
    return payload.find(b"\n") + 1 if payload.startswith(_LINE_START) else 0


def says_its_python(payload: bytes) -> bool:
    return head_bytes(payload) > 0


def load_call(payload: bytes) -> tuple[Callable[..., Any], Any, dict[str, Any]]:
    """Function, arguments and named arguments. Raises CodeNotLoaded."""
    by = None
    if head := head_bytes(payload):
        try:
            by = msgspec.json.decode(payload[:head], type=PickledBy)
        except msgspec.MsgspecError as error:
            raise CodeNotLoaded(f"nothing says what pickled the code of this job: {error}") from error
        payload = payload[head:]
        if difference := _difference(by):
            raise CodeNotLoaded(difference)
    try:
        function, args, kwargs = pickle.loads(payload)
    except MemoryError:
        raise  # of this process, and not of the code
    except Exception as error:  # whatever a module or a __setstate__ in it raises
        from_ = f", pickled by cloudpickle {by.cloudpickle}" if by is not None and by.cloudpickle else ""
        if by is None:
            from_ = ", and does not say what Python it is of"
        raise CodeNotLoaded(
            f"the code that came with this job cannot be loaded here{from_}: {type(error).__name__}: {error}"
        ) from error
    return function, args, kwargs


def _difference(by: PickledBy) -> str | None:
    """Why code of that Python must not be loaded by this one."""
    again = "enqueue it again from the same version of Python"
    if by.python != PYTHON:
        return f"the code of this job was pickled by Python {by.python}, and this is {PYTHON}: {again}"
    if by.bytecode not in (None, BYTECODE):
        return f"the code of this job has bytecode {by.bytecode}, and this Python has {BYTECODE}: {again}"
    return None
