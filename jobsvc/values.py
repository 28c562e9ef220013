"""Values that travel as JSON: they arrive equal, or are refused with the place where they do not.

What JSON has arrives as it was: texts, whole numbers of any size, finite numbers, true, false, None, lists,
and dicts whose keys are texts. One exception is documented: a tuple arrives as a list. Everything else
(`nan`, bytes, sets, dates, numbers as keys, …) would arrive as something else, so it is refused, unless an
annotation says what it is (`signatures`).

msgspec encodes many such values without a word, `nan` as null and bytes as text, so its word is not taken.
Small values of JSON's own types are recognized by their types. Of any other, what msgspec wrote is read back
and compared; if that differs, a walk over the value finds the place, or nothing but tuples.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
from typing import Any

import msgspec

from .errors import InvalidRequest

TEXT_SHOWN = 60
NO_BYTES = "JSON has no bytes: they travel alone (enqueue_bytes, a result), or as text"
SMALL_BYTES = 1_000  # of JSON: below it looking at each part is quicker than reading it back
LONG_BITS = 10_000  # a number with so many may have more digits than Python reads or writes

_SURE = frozenset({str, int, bool, type(None)})  # what JSON has, and loses nothing of
_TEXTS = frozenset({str})
_BYTES = (bytes, bytearray, memoryview)
_NUMBERS = (int, float)
_ENCODE_ERRORS = (TypeError, ValueError, OverflowError, RecursionError, UnicodeError, msgspec.MsgspecError)

encode_json = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def encode_value(value: Any, place: str = "") -> bytes:
    """The JSON of a value that arrives equal. Raises InvalidRequest, whose field is the place inside it."""
    try:
        data = encode_json(value)
        if type(value) in _SURE or (len(data) <= SMALL_BYTES and _is_plain(value)):
            return data
        arrived = _decode(data)
    except _ENCODE_ERRORS as error:
        raise _refusal(value, place, error) from error
    if not are_equal(arrived, value):
        try:
            if len(data) <= SMALL_BYTES or not _is_plain(value):
                _walk(value, place)
        except RecursionError as error:
            raise _too_deep(place) from error
    return data


def check_value(value: Any, place: str = "") -> None:
    """Raise InvalidRequest if this would not arrive equal; see `encode_value`."""
    encode_value(value, place)


def _is_plain(value: Any) -> bool:
    """Whether it is made of JSON's own types and of tuples. False may also mean: look closer."""
    kind = type(value)
    if kind is dict:
        if not _TEXTS.issuperset(map(type, value)):
            return False
        members = value.values()
    elif kind is list or kind is tuple:
        members = value
    else:
        return kind in _SURE or (kind is float and value - value == 0.0)
    for each in members:
        kind = type(each)
        if kind not in _SURE and not (each - each == 0.0 if kind is float else _is_plain(each)):
            return False
    return True


def are_equal(arrived: Any, value: Any) -> bool:
    try:
        return bool(arrived == value)
    except Exception:  # somebody's __eq__: the walk looks without it
        return False


def _too_deep(place: str) -> InvalidRequest:
    return _refused("is nested too deeply, or contains itself", place)


def _refusal(value: Any, place: str, error: Exception) -> InvalidRequest:
    """Why this could not be encoded, and where inside."""
    try:
        _walk(value, place)
    except InvalidRequest as found:
        return found
    except RecursionError:
        pass
    if isinstance(error, RecursionError):
        return _too_deep(place)
    return _refused(f"cannot be sent as JSON: {error}", place)


def _walk(value: Any, place: str) -> None:
    """Find what does not arrive equal. Raises InvalidRequest."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                detail = f"the keys of an object are texts in JSON, and {_shown(key)} is {_named(key)}"
                raise _refused(detail, place)
            inside = f"{place}{key_place(key)}"
            _check_text(str.__str__(key), inside)
            _walk(each, inside)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            _walk(each, f"{place}[{number}]")
    elif isinstance(value, str) and not isinstance(value, enum.Enum):
        _check_text(value, place)
    elif type(value) not in _SURE or (type(value) is int and value.bit_length() > LONG_BITS):
        _check_alone(value, place)


def _check_text(text: str, place: str) -> None:
    if type(text) is str and text.isascii():
        return
    try:
        encode_json(text)
    except UnicodeEncodeError as error:
        raise _refused("has half a surrogate pair, which UTF-8 cannot carry", place) from error
    except TypeError as error:
        raise _refused(f"JSON has no word for {_named(text)}", place) from error


def _check_alone(value: Any, place: str) -> None:
    """A value that is no list, object or text."""
    if isinstance(value, _BYTES):
        raise _refused(NO_BYTES, place)
    if isinstance(value, float) and value - value != 0.0:
        raise _refused(f"JSON has no word for {value!r}", place)
    try:
        same = are_equal(_decode(encode_json(value)), value)
    except _ENCODE_ERRORS as error:
        raise _refused(f"JSON has no word for {_named(value)}: {error}", place) from error
    if not same:
        detail = f"JSON has no word for {_named(value)}: it would arrive as something else"
        raise _refused(detail, place)


def _refused(detail: str, place: str) -> InvalidRequest:
    return InvalidRequest(detail, place or None)


def at_place(error: InvalidRequest, place: str) -> InvalidRequest:
    """The same error, of a value that is a part of something."""
    return InvalidRequest(error.detail, f"{place}{error.field or ''}")


def key_place(key: Any) -> str:
    return f"[{json.dumps(key, ensure_ascii=False)}]" if isinstance(key, str) else f"[{key!r}]"


def _named(value: Any) -> str:
    """The type of a value, in words."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a value of type {name}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # somebody's __repr__, or a number of too many digits
        text = _named(value)
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN] + "…"


# --- with an annotation -----------------------------------------------------------------------------


def check_arrival(given: Any, arrived: Any, place: str = "") -> None:
    """Raise InvalidRequest where what an annotation has made of a value is not what was given.

    A text may become what it is the text of (a date, a member of an enum), a dict an object of a class, a
    list a set: whoever annotates wants that. Everything else has to be equal.
    """
    if not (_is_plain(given) and are_equal(arrived, given)):
        _compare(given, arrived, place)


def check_read(sent: Any, arrived: Any, place: str = "") -> None:
    """Raise InvalidRequest where something is lost of JSON that an annotation has made a value of.

    It may become anything, but not another number, and no member of an object may go unread.
    """
    if are_equal(arrived, sent):
        return
    if isinstance(sent, list):
        if isinstance(arrived, list | tuple) and len(arrived) == len(sent):
            for number, (one, other) in enumerate(zip(sent, arrived, strict=True)):
                check_read(one, other, f"{place}[{number}]")
    elif isinstance(sent, dict):
        members = None if isinstance(arrived, dict) else _members(arrived)
        if isinstance(arrived, dict) and len(arrived) == len(sent):
            for (key, one), other in zip(sent.items(), arrived.values(), strict=True):
                check_read(one, other, f"{place}{key_place(key)}")
        elif isinstance(arrived, dict):
            lost = next((key for key in sent if key not in arrived), None)
            detail = "has no such member" if lost is not None else "has keys that become the same"
            raise _refused(f"{_named(arrived)} {detail}", place + ("" if lost is None else key_place(lost)))
        elif members is not None:
            for key, one in sent.items():
                if key not in members:
                    raise _refused(f"{_named(arrived)} has no such member", f"{place}{key_place(key)}")
                if (name := members[key]) is not None:
                    check_read(one, getattr(arrived, name), f"{place}.{key}")
    elif type(sent) is int and type(arrived) is float and sent != arrived:
        raise _refused(f"{sent} has no equal among floats", place)


def _compare(given: Any, arrived: Any, place: str) -> None:
    """Part by part."""
    if isinstance(given, list | tuple):
        if isinstance(arrived, list | tuple) and len(arrived) == len(given):
            for number, (one, other) in enumerate(zip(given, arrived, strict=True)):
                _compare(one, other, f"{place}[{number}]")
            return
        good = isinstance(arrived, set | frozenset)
    elif isinstance(given, dict):
        good = _check_members(given, arrived, place)
    elif isinstance(given, str) and type(given) is str:
        good = type(arrived) is not str and not isinstance(arrived, _BYTES) or given == arrived
    elif (fields := _fields(given)) is not None:
        good = type(arrived) is type(given)
        for name in fields if good else ():
            _compare(getattr(given, name), getattr(arrived, name), f"{place}.{name}")
    else:
        good = _arrived_equal(given, arrived)
    if not good:
        detail = f"{_shown(given)} would arrive as {_shown(arrived)}, {_named(arrived)}"
        raise _refused(detail, place)


def _arrived_equal(given: Any, arrived: Any) -> bool:
    try:
        equal = bool(given == arrived)
    except Exception:  # somebody's __eq__
        return False
    sets = isinstance(given, set | frozenset)
    if isinstance(given, datetime.datetime | datetime.time):
        return equal and given.fold == arrived.fold
    if sets or isinstance(given, _BYTES):
        return equal and isinstance(arrived, (set, frozenset) if sets else _BYTES)
    return equal


def _check_members(given: dict[Any, Any], arrived: Any, place: str) -> bool:
    """A dict that arrived as a dict, or as an object with these members. False if it is neither."""
    if isinstance(arrived, dict):
        if given.keys() != arrived.keys():
            return all(type(key) is str for key in given) and len(given) == len(arrived)
        for key, each in given.items():
            _compare(each, arrived[key], f"{place}{key_place(key)}")
        return True
    members = _members(arrived)
    if members is None:
        return False
    for key, each in given.items():
        if key not in members:
            raise _refused(f"{_named(arrived)} has no such member", f"{place}{key_place(key)}")
        name = members[key]
        if name is not None:
            _compare(each, getattr(arrived, name), f"{place}.{key}")
    return True


def _members(value: Any) -> dict[str, str | None] | None:
    """The names of an object's members in JSON, and in Python; what is its tag has none there."""
    fields = _fields(value)
    if fields is None or not isinstance(value, msgspec.Struct):
        return None if fields is None else {name: name for name in fields}
    tag = value.__struct_config__.tag_field
    members: dict[str, str | None] = dict(zip(value.__struct_encode_fields__, fields, strict=True))
    return members if tag is None else {**members, tag: None}


def _fields(value: Any) -> list[str] | None:
    """The names of the members of an object of a class that msgspec encodes as one."""
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    attributes = getattr(type(value), "__attrs_attrs__", None)
    return None if attributes is None else [each.name for each in attributes]
