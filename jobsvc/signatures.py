"""What a task's annotations say of its arguments and its result, and arguments read by them.

    @task
    def report(when: datetime, where: Point, ids: set[int] = frozenset()) -> dict[str, Decimal]: ...

What an annotation names is what the task gets: msgspec makes it of the JSON that came. The same reading is
done at the door, where a wrong argument is refused, and in the job's process. What has no annotation, or one
that msgspec cannot make (a class of one's own, a data frame, a name that is not found), comes as JSON has it.

Reading is quick where little is said: types like `str` and `int | None` are compared, not converted, and a
signature without any leaves the arguments as they are. Each signature is taken apart once.

A function behind a decorator with `*args, **kwargs` may get other arguments than it was called with. Its
annotations hold as far as they fit the call, and nothing is refused because of them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw

from .errors import InvalidRequest
from .value_types import (
    READ_ERRORS,
    ValueType,
    declared_result,
    decode_any,
    names_around,
    resolved,
    value_type,
)
from .values import at_place, encode_value, key_place

_NO_NAMED = b'"kwargs":{}}'  # the end of a call without named arguments, as the way in writes it
Values = TypeVar("Values")
_Kind = inspect.Parameter


class _Arguments(msgspec.Struct):
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class _RawArguments(msgspec.Struct):
    args: list[Raw] = []
    kwargs: dict[str, Raw] = {}


class _Placed(msgspec.Struct, Generic[Values], gc=False):
    args: Values  # all of them by place, and checked as they are decoded


_decode = msgspec.json.Decoder().decode
_decode_arguments = msgspec.json.Decoder(_Arguments).decode
_decode_raw_arguments = msgspec.json.Decoder(_RawArguments).decode
_decode_named = msgspec.json.Decoder(dict[str, Any]).decode
_decode_raw_named = msgspec.json.Decoder(dict[str, Raw]).decode


class TaskSignature:
    """The parameters and the result of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.returns: ValueType | None = None
        self.loose = True  # what it takes is not known, or a decorator may change it
        self._positional: list[str] = []
        self._by_place: list[ValueType | None] = []
        self._by_name: dict[str, ValueType | None] = {}
        self._places: dict[str, int] = {}  # of those that may be given by place or by name
        self._positional_only = 0
        self._required: list[tuple[str, int]] = []  # and the place; a large number if it has none
        self._rest: ValueType | None = None  # *args
        self._other: ValueType | None = None  # **kwargs
        self._takes_rest = self._takes_other = True
        self._text = "the task"
        self._take_apart(function)
        kinds = {*self._by_place, *self._by_name.values(), self._rest, self._other} - {None}
        self._converts = any(kind is not None and not kind.passes for kind in kinds)
        self._compares = bool(kinds)
        self._read = _read_raw if self._converts else _read_plain
        # how many arguments by place, and none by name, fit without a closer look
        self._least = max([place + 1 for _, place in self._required], default=0)
        self._most = sys.maxsize if self._takes_rest else len(self._positional)
        self._decode_placed = self._placed_decoder()

    # --- taking apart ---

    def _take_apart(self, function: Callable[..., Any]) -> None:
        try:
            signature = inspect.signature(function, follow_wrapped=False)
            kinds = {each.kind for each in signature.parameters.values()}
            hidden = hasattr(function, "__wrapped__") and {_Kind.VAR_POSITIONAL, _Kind.VAR_KEYWORD} <= kinds
            if hidden:
                signature = inspect.signature(function)
        except Exception:  # a callable that does not tell; annotations that raise when they are looked at
            return
        self.loose, self._takes_rest, self._takes_other = hidden, False, False
        self._text = f"{getattr(function, '__name__', 'the task')}{_without_types(signature)}"
        names = names_around(function)
        for parameter in signature.parameters.values():
            self._add(parameter, value_type(resolved(parameter.annotation, parameter.default, names)))
        self.returns = declared_result(signature.return_annotation, names)

    def _add(self, parameter: inspect.Parameter, kind: ValueType | None) -> None:
        name = parameter.name
        if parameter.kind is _Kind.VAR_POSITIONAL:
            self._rest, self._takes_rest = kind, True
            return
        if parameter.kind is _Kind.VAR_KEYWORD:
            self._other, self._takes_other = kind, True
            return
        place = sys.maxsize - 1
        if parameter.kind is not _Kind.KEYWORD_ONLY:
            place = len(self._positional)
            self._positional.append(name)
            self._by_place.append(kind)
        if parameter.kind is _Kind.POSITIONAL_ONLY:
            self._positional_only += 1
        else:
            self._by_name[name] = kind
            self._places[name] = place
        if parameter.default is _Kind.empty:
            self._required.append((name, place))

    def _placed_decoder(self) -> Callable[[bytes], _Placed[tuple[Any, ...]]] | None:
        """For what is always called with as many arguments by place, and gets them as they came."""
        kinds = self._by_place
        changed = any(kind is not None and (kind.is_float or not kind.passes) for kind in kinds)
        if changed or not kinds or self._least != self._most:
            return None
        annotations = tuple(Any if kind is None else kind.annotation for kind in kinds)
        return msgspec.json.Decoder(_Placed[tuple[annotations]]).decode  # type: ignore[valid-type]

    def by_place(self, number: int) -> ValueType | None:
        return self._by_place[number] if number < len(self._by_place) else self._rest

    def by_name(self, name: str) -> ValueType | None:
        return self._by_name.get(name, self._other)

    # --- writing ---

    def encode_call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], place: str = ""
    ) -> tuple[list[Raw], dict[str, Raw]]:
        """The arguments of a call as they are sent. Raises InvalidRequest with the place."""
        self.check_call(len(args), kwargs)
        return self.encode_all(args, kwargs, place)

    def encode_all(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], place: str = ""
    ) -> tuple[list[Raw], dict[str, Raw]]:
        """The same of a part of a call."""
        try:
            return self._encode_call(args, kwargs, place)
        except InvalidRequest:
            if not self.loose:
                raise
            return encode_call(args, kwargs, place)

    def _encode_call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], place: str
    ) -> tuple[list[Raw], dict[str, Raw]]:
        sent = [
            Raw(encode_argument(value, self.by_place(number), f"{place}args[{number}]"))
            for number, value in enumerate(args)
        ]
        named = {
            name: Raw(encode_argument(value, self.by_name(name), f"{place}{named_place(name)}"))
            for name, value in kwargs.items()
        }
        return sent, named

    # --- reading ---

    def read(self, content: str, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        """Positional and named arguments of a payload. Raises InvalidRequest with the place."""
        if self._decode_placed is not None and content == "json" and payload.endswith(_NO_NAMED):
            try:
                return list(self._decode_placed(payload).args), {}
            except READ_ERRORS:
                pass  # what is wrong, and where, is found below
        try:
            args, kwargs = self._read(content, payload)
            count, places = len(args), self._places
            fits = self._least <= count <= self._most  # without a closer look
            for name in kwargs:
                fits = fits and places.get(name, -1) >= count
            if not fits:
                self.check_call(count, kwargs)
            if self._compares:
                self._convert(args, kwargs)
        except InvalidRequest:
            if not self.loose:
                raise
            args, kwargs = _read_plain(content, payload)
        return args, kwargs

    def _convert(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Make of each what its annotation says, in place."""
        kinds, known = self._by_place, len(self._by_place)
        for number, value in enumerate(args):
            kind = kinds[number] if number < known else self._rest
            if type(value) is Raw or (kind is not None and type(value) not in kind.passes):
                try:
                    args[number] = _converted(kind, value)
                except InvalidRequest as error:
                    raise at_place(error, f"args[{number}]") from error
        for name, value in kwargs.items():
            kind = self._by_name.get(name, self._other)
            if type(value) is Raw or (kind is not None and type(value) not in kind.passes):
                try:
                    kwargs[name] = _converted(kind, value)
                except InvalidRequest as error:
                    raise at_place(error, named_place(name)) from error

    def check_call(self, count: int, names: Collection[str]) -> None:
        """Raise InvalidRequest if so many arguments and these names do not fit the function."""
        if self.loose:
            return
        if count > self._most:
            raise InvalidRequest(
                f"is too much: {self._text} takes {self._most} by place", f"args[{self._most}]"
            )
        for name in names:
            if name not in self._by_name:
                if not self._takes_other:
                    raise InvalidRequest(f"is no parameter of {self._text}", named_place(name))
            elif self._places[name] < count:
                detail = f"is given twice: args[{self._places[name]}] is the same one of {self._text}"
                raise InvalidRequest(detail, named_place(name))
        for name, place in self._required:
            if place < count or (name in names and place >= self._positional_only):
                continue
            field = f"args[{place}]" if place < self._positional_only else named_place(name)
            raise InvalidRequest(f"is missing: {self._text} needs {name!r}", field)


def named_place(name: str) -> str:
    """Where an argument by name is."""
    return f"kwargs.{name}" if name.isidentifier() else f"kwargs{key_place(name)}"


def encode_argument(value: Any, kind: ValueType | None, place: str) -> bytes:
    """The JSON of an argument that arrives as it was given. Raises InvalidRequest with the place."""
    try:
        return encode_value(value) if kind is None else kind.encode(value)
    except InvalidRequest as error:
        raise at_place(error, place) from error


def encode_call(
    args: Sequence[Any], kwargs: Mapping[str, Any], place: str = ""
) -> tuple[list[Raw], dict[str, Raw]]:
    """The same for a task that is known by its name alone: what is sent must arrive as it is."""
    sent = [Raw(encode_value(value, f"{place}args[{number}]")) for number, value in enumerate(args)]
    return sent, {
        name: Raw(encode_value(value, f"{place}{named_place(name)}")) for name, value in kwargs.items()
    }


def _converted(kind: ValueType | None, value: Any) -> Any:
    if type(value) is Raw:
        return decode_any(value) if kind is None else kind.decode(value)
    return value if kind is None else kind.take(value)


def _read_plain(content: str, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    try:
        if content == "json":
            arguments = _decode_arguments(payload or b"{}")
            return arguments.args, arguments.kwargs
        line, body = _raw_parts(content, payload)
        return [body], _decode_named(line)
    except READ_ERRORS as error:
        raise _unreadable(error) from error


def _read_raw(content: str, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    try:
        if content == "json":
            arguments = _decode_raw_arguments(payload or b"{}")
            return arguments.args, arguments.kwargs
        line, body = _raw_parts(content, payload)
        return [body], _decode_raw_named(line)
    except READ_ERRORS as error:
        raise _unreadable(error) from error


def _raw_parts(content: str, payload: bytes) -> tuple[bytes, bytes]:
    """The named arguments as JSON, and the one that is bytes."""
    if content != "raw":
        raise ValueError(f"payloads of content {content!r} are not known here")
    line, _, body = payload.partition(b"\n")
    return line.strip() or b"{}", body


def _unreadable(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"cannot be read: {error}", "args")


def _without_types(signature: inspect.Signature) -> str:
    """`(image, width=100)`: what is to be given, without its types."""
    bare = [each.replace(annotation=_Kind.empty) for each in signature.parameters.values()]
    return str(inspect.Signature(bare))
