"""One annotation, as values are read and written by it.

What msgspec can make of it is what the task gets, and what its result is read as. An annotation that msgspec
cannot hold (a class of one's own, a data frame, a name that is not found) counts as none.
"""

from __future__ import annotations

import datetime
import inspect
import re
import types
import typing
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Raw

from .errors import InvalidRequest
from .values import are_equal, check_arrival, check_read, encode_json, encode_value, key_place

_PLAIN: dict[Any, frozenset[type]] = {  # annotation -> types of values that pass as they are
    str: frozenset({str}),
    int: frozenset({int, bool}),
    float: frozenset({float}),
    bool: frozenset({bool}),
    None: frozenset({type(None)}),
    type(None): frozenset({type(None)}),
    list: frozenset({list}),
    dict: frozenset({dict}),
}
_TIMES = {datetime.datetime, datetime.date, datetime.time, datetime.timedelta}
_LEAVES = frozenset({*_TIMES, Decimal, UUID, bytes})
_ANY_KEY = "[...]"  # how msgspec says where in a dict
_TRIED_BYTES_MAX = 1 << 20  # of JSON that is read again to find one
_STEPS = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_NO_NAMES: dict[str, Any] = {}
_EMPTY = inspect.Parameter.empty
READ_ERRORS = (ValueError, TypeError, RecursionError, OverflowError, ArithmeticError)
_decode = msgspec.json.Decoder().decode


class ValueType:
    """One annotation, as values are read by it. Errors name the place inside the value."""

    __slots__ = ("_decode", "_is_json", "_is_leaf", "annotation", "is_float", "passes")

    def __init__(self, annotation: Any) -> None:
        """Raises TypeError for what msgspec does not know."""
        self.passes = _passes(annotation)
        self.annotation = annotation
        self.is_float = float in self.passes and int not in self.passes
        self._is_json = _is_json(annotation)
        self._is_leaf = isinstance(annotation, type) and annotation in _LEAVES
        self._decode = msgspec.json.Decoder(annotation).decode

    def decode(self, data: bytes | Raw) -> Any:
        """The value of some JSON. Raises InvalidRequest."""
        try:
            value = self._decode(data)
        except READ_ERRORS as error:
            value = decode_any(data)
            if type(value) in self.passes:
                return value
            raise _with_keys(_invalid(error), value, self._decode, len(bytes(data))) from error
        if self.is_float and type(value) is float:
            self._check_whole_number(data, value)
        elif not (self._is_leaf or type(value) in self.passes):
            self._check_nothing_lost(data, value)
        return value

    def take(self, value: Any) -> Any:
        """The same of a value that was read already: from JSON, or the bytes that are all of a body."""
        if type(value) in self.passes:
            return value
        if not isinstance(value, bytes):
            return self.decode(encode_json(value))
        try:
            return msgspec.convert(value, self.annotation)
        except msgspec.ValidationError as error:
            raise _invalid(error) from error

    def encode(self, value: Any) -> bytes:
        """The JSON of a value that arrives as it was given. Raises InvalidRequest."""
        if type(value) in self.passes:
            return encode_value(value)
        try:
            data = encode_json(value)
        except READ_ERRORS:
            data = encode_value(value)  # says where
        try:
            arrived = self.decode(data)
        except InvalidRequest as error:
            raise _better_reason(value, error) from error
        try:
            check_arrival(value, arrived)
        except RecursionError as error:
            raise InvalidRequest("is nested too deeply") from error
        return data

    def encode_result(self, value: Any) -> bytes:
        """The same of what a task returned. An annotation that does not name what it returns says nothing."""
        if self.passes:
            return encode_value(value)
        try:
            data = encode_json(value)
            arrived = self._decode(data) if self._is_json else self.decode(data)
        except (*READ_ERRORS, InvalidRequest):
            return encode_value(value)
        if not (self._is_json and are_equal(arrived, value)):
            check_arrival(value, arrived)
        return data

    def of_result(self, value: Any) -> Any:
        """A result as the annotation names it, if it does; otherwise as it came."""
        try:
            return self.take(value)
        except InvalidRequest:
            return value

    def read_result(self, data: bytes) -> Any:
        """The same of its JSON."""
        try:
            return self.decode(data)
        except InvalidRequest:
            return _decode(data)

    def _check_nothing_lost(self, data: bytes | Raw, value: Any) -> None:
        try:
            check_read(_decode(data), value)
        except RecursionError as error:
            raise InvalidRequest("is nested too deeply") from error

    def _check_whole_number(self, data: bytes | Raw, value: float) -> None:
        """JSON's 9007199254740993 is no float: it would silently become its neighbour."""
        if abs(value) >= 2.0**53:
            exact = _decode(data)
            if type(exact) is int and exact != value:
                raise InvalidRequest(f"{exact} has no equal among floats")


def _passes(annotation: Any) -> frozenset[type]:
    """The types of values that need no look beyond their type; none for what has to be converted."""
    try:
        if annotation in _PLAIN:
            return _PLAIN[annotation]
    except TypeError:
        return frozenset()  # an annotation without a hash
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [_passes(each) for each in typing.get_args(annotation)]
        return frozenset().union(*parts) if all(parts) else frozenset()
    return frozenset()


def _is_json(annotation: Any) -> bool:
    """Whether all that it names are containers and values of JSON's own: they are what they are equal to."""
    if typing.get_origin(annotation) in (list, dict, typing.Union, types.UnionType):
        return all(map(_is_json, typing.get_args(annotation)))
    return annotation is not None and isinstance(annotation, type) and annotation in _PLAIN


def value_type(annotation: Any) -> ValueType | None:
    """How values of this annotation are read; None where it says nothing, or nothing that can be held."""
    if annotation is _EMPTY or annotation in (Any, object):
        return None
    try:
        return None if _has_strangers(msgspec.inspect.type_info(annotation), set()) else ValueType(annotation)
    except Exception:  # whatever an annotation may be, it must not break the task
        return None


def result_type(function: Callable[..., Any]) -> ValueType | None:
    """How results of a function are read, if its annotation says something of it."""
    annotations = getattr(function, "__annotations__", _NO_NAMES)
    return declared_result(annotations.get("return", _EMPTY), names_around(function))


def declared_result(annotation: Any, names: dict[str, Any]) -> ValueType | None:
    """None as well for what JSON has: there is nothing to be made of it."""
    kind = None if annotation is _EMPTY else value_type(resolved(annotation, ..., names))
    return None if kind is None or (kind.passes and float not in kind.passes) else kind


def _has_strangers(found: Any, seen: set[int]) -> bool:
    """Whether there is a type in it that msgspec can only look at."""
    if id(found) in seen:
        return False
    seen.add(id(found))
    if isinstance(found, msgspec.inspect.CustomType | msgspec.inspect.RawType):
        return True
    if isinstance(found, tuple | list):
        return any(_has_strangers(each, seen) for each in found)
    if isinstance(found, msgspec.inspect.Type | msgspec.inspect.Field):
        return any(_has_strangers(getattr(found, name), seen) for name in found.__struct_fields__)
    return False


def _better_reason(value: Any, error: InvalidRequest) -> InvalidRequest:
    """`nan` is told as such, and not as the null that msgspec made of it; unless that is less exact."""
    try:
        encode_value(value)
    except InvalidRequest as other:
        return other if len(other.field or "") >= len(error.field or "") else error
    return error


def decode_any(data: bytes | Raw) -> Any:
    try:
        return _decode(data)
    except READ_ERRORS as error:
        raise InvalidRequest(f"cannot be read: {error}") from error


def _invalid(error: Exception) -> InvalidRequest:
    """`Expected … - at `$.x`` as an error of the place `.x`."""
    message, at, path = str(error).rpartition(" - at ")
    if not at:
        return InvalidRequest(str(error))
    is_key = path.startswith("`key` in ")
    inside = path.removeprefix("`key` in ").strip("`").removeprefix("$")
    return InvalidRequest(message + (", as a key" if is_key else ""), inside or None)


def _with_keys(
    error: InvalidRequest, value: Any, decode: Callable[[bytes], Any], size: int
) -> InvalidRequest:
    """The same error with the keys of dicts in its place: those with which alone it is the same."""
    *before, rest = (error.field or "").split(_ANY_KEY)
    holder: Any = [value]
    root, last, place = holder, 0, ""
    for piece in before:
        try:
            for name, number in _STEPS.findall(piece):
                holder, last = holder[last], int(number) if number else name
            table = holder[last]
        except (LookupError, TypeError):
            return error  # a member that has another name in JSON
        if not isinstance(table, dict) or len(table) * size > _TRIED_BYTES_MAX:
            return error
        for key, each in table.items():
            holder[last] = {key: each}
            if _error_place(root[0], decode) == error.field:
                break
        else:
            return error
        place += piece + key_place(key)
        holder, last = holder[last], key
    return InvalidRequest(error.detail, place + rest) if before else error


def _error_place(value: Any, decode: Callable[[bytes], Any]) -> str | None:
    try:
        decode(encode_json(value))
    except READ_ERRORS as error:
        return _invalid(error).field
    return None


def names_around(function: Callable[..., Any]) -> dict[str, Any]:
    """The names that a function's annotations may use."""
    inner: Any = inspect.unwrap(function)
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    inner = getattr(inner, "__func__", inner)
    if not hasattr(inner, "__globals__"):
        inner = getattr(type(inner), "__call__", inner)  # noqa: B004  an object that can be called
    return getattr(inner, "__globals__", _NO_NAMES)


def resolved(annotation: Any, default: Any, names: dict[str, Any]) -> Any:
    """An annotation without names in quotes; `= None` allows None. Empty if a name cannot be found."""
    if annotation is _EMPTY:
        return annotation
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        found = typing.get_type_hints(holder, names, names, include_extras=True)["it"]
        return typing.Optional[found] if default is None else found  # noqa: UP045  of any kind of type
    except Exception:  # names for type checkers alone, syntax of a later Python: as if nothing were said
        return _EMPTY
