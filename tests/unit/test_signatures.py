"""What a task's annotations name is what it gets; what does not fit is refused with its place."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from jobsvc.errors import InvalidRequest
from jobsvc.signatures import TaskSignature, encode_argument

from . import typed_tasks as t
from .typed_tasks import Color, Level, Move, Pair, Point, Shape


def named(value: Any) -> str:
    """A parameter in a test's name."""
    return (
        str(value)
        if isinstance(value, list | dict | str)
        else getattr(value, "__name__", type(value).__name__)
    )


def read(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    payload = msgspec.json.encode({"args": args, "kwargs": kwargs})
    return TaskSignature(function).read("json", payload)


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As it goes from a caller who has the function, over JSON, into the function."""
    signature = TaskSignature(function)
    sent, named = signature.encode_call(args, kwargs)
    read_args, read_kwargs = signature.read("json", msgspec.json.encode({"args": sent, "kwargs": named}))
    return function(*read_args, **read_kwargs)


def test_each_argument_becomes_what_its_annotation_names() -> None:
    # given JSON as any client would send it
    args, kwargs = read(t.kinds, "2026-01-02T03:04:05Z", {"x": 1}, ids=[3, 1, 3])
    # then the task gets the types that it names
    assert args == [datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), Point(1, 0)]
    assert kwargs == {"ids": {1, 3}}
    assert t.kinds(*args, **kwargs) == "datetime Point set"


def test_values_of_all_supported_types_arrive_equal() -> None:
    given = (
        Shape("s", [Point(1, 2)], {"a"}),
        Move(Point(3), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)),
        Color.BLUE,
        Level.HIGH,
        Pair(1, b"\x00\xff"),
        {"name": "n", "when": datetime.date(2026, 1, 2)},
        decimal.Decimal("1.50"),
        uuid.UUID(int=7),
        datetime.timedelta(days=2, microseconds=5),
        b"\x00\xff",
        {datetime.date(2026, 1, 2): [1.5, -0.0]},
    )
    assert call(t.everything, *given) == [repr(each) for each in given]


def test_every_kind_of_parameter_is_known() -> None:
    points = [Point(n) for n in range(6)]
    expected = t.shapes(*points[:4], third=points[4], other=points[5])
    assert call(t.shapes, *points[:4], third=points[4], other=points[5]) == expected
    assert call(t.shapes, points[0], second=points[1]) == t.shapes(points[0], points[1])


def test_decimals_keep_the_digits_that_came() -> None:
    def pay(amount: decimal.Decimal) -> None: ...

    args, _ = TaskSignature(pay).read("json", b'{"args":[1.10000000000000000000001]}')
    assert args == [decimal.Decimal("1.10000000000000000000001")]


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "place"),
    [
        (t.kinds, ["2026-01-02", {"x": 1}], {}, "args[0]"),
        (t.kinds, ["2026-01-02T03:04:05", {"x": "1"}], {}, "args[1].x"),
        (t.kinds, ["2026-01-02T03:04:05"], {"point": {"y": 1}}, "kwargs.point"),
        (t.kinds, ["2026-01-02T03:04:05", {"x": 1}], {"ids": [1, "2"]}, "kwargs.ids[1]"),
        (t.kinds, [], {"point": {"x": 1}}, "kwargs.when"),
        (t.kinds, ["2026-01-02T03:04:05", {"x": 1}, [], 4], {}, "args[3]"),
        (t.kinds, ["2026-01-02T03:04:05"], {"when": 1, "point": {"x": 1}}, "kwargs.when"),
        (t.kinds, ["2026-01-02T03:04:05", {"x": 1}], {"idz": []}, "kwargs.idz"),
        (t.kinds, ["2026-01-02T03:04:05", {"x": 1}], {"two words": []}, 'kwargs["two words"]'),
        (t.shapes, [], {"second": {"x": 1}}, "args[0]"),
        (t.shapes, [{"x": 1}, {"x": 1}, {"x": "a"}], {}, "args[2].x"),
        (t.shapes, [{"x": 1}, {"x": 1}], {"other": {"x": "a"}}, "kwargs.other.x"),
        (t.bounded, [0], {}, "args[0]"),
        (t.bounded, [1, "c"], {}, "args[1]"),
        (t.plain, [1], {}, "args[0]"),
        (t.plain, ["a", "1"], {}, "args[1]"),
        (t.plain, ["a", 1.5], {}, "args[1]"),
        (t.plain, ["a", 1, "1"], {}, "args[2]"),
        (t.plain, ["a", 1, 2**53 + 1], {}, "args[2]"),
        (t.plain, ["a"], {"choice": 1}, "kwargs.choice"),
        (t.plain, [None], {}, "args[0]"),
        (t.half_known, ["1"], {}, "args[0]"),
        (t.half_known, [], {"height": 1}, "kwargs.height"),
        (t.half_known, [1], {"where": 1, "width": 1}, "kwargs.width"),
        (t.half_known, [1, 2, 3, 4], {"where": 1}, "args[3]"),
    ],
    ids=named,
)
def test_what_does_not_fit_is_refused_and_named(
    function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], place: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(function, *args, **kwargs)
    assert refused.value.field == place


def test_simple_types_pass_as_they_are() -> None:
    assert read(t.plain, "a", 2**70, 1, True) == (["a", 2**70, 1.0, True], {})
    assert read(t.plain, "a", True, share=-0.0, choice=None) == (
        ["a", True],
        {"share": -0.0, "choice": None},
    )
    # a default of None allows None, as people write it
    assert read(t.half_known, None) == ([None], {})


@pytest.mark.parametrize("value", [["a", 1], ["a", True], ["a", 2**70], ["a", 1.0], [1, 1], ["a"], "ab"])
def test_however_a_call_is_written_it_reads_the_same(value: list[Any]) -> None:
    def pair(text: str, number: int) -> None: ...

    def outcome(payload: bytes) -> object:
        try:
            return repr(TaskSignature(pair).read("json", payload))
        except InvalidRequest as error:
            return error.field, error.detail

    args = msgspec.json.encode(value)
    as_sent = outcome(b'{"args":%b,"kwargs":{}}' % args)
    assert as_sent == outcome(b'{"kwargs": {}, "args": %b}' % args)
    assert outcome(b'{"kwargs":{"number":1},"args":["a"],"x":{"kwargs":{}}}') == repr((["a"], {"number": 1}))


def test_what_cannot_be_known_is_as_if_it_were_not_annotated() -> None:
    assert read(t.half_known, 1, {"any": 1}, other=[1]) == ([1, {"any": 1}], {"other": [1]})
    args = ["f", [1, "x"], "text", [1], {"a": 1}, {"n": 1}]
    assert read(t.odd, *args) == (args, {})
    with pytest.raises(InvalidRequest, match=r"args\[3\]\[0\]"):
        read(t.odd, "f", [], "", ["1"], {}, {})


def test_a_function_behind_a_decorator() -> None:
    # a decorator that hands something in does not break the call
    assert call(t.with_a_handle, 5) == "('handle', 5)"
    with pytest.raises(InvalidRequest, match=r"^args\[0\]"):
        call(t.with_a_handle, datetime.date(2026, 1, 2))
    # and one that only passes on does not hide what is annotated
    assert call(t.wrapped, datetime.date(2026, 1, 2)) == "datetime.date(2026, 1, 2)"


@pytest.mark.parametrize("function", [print, max, int, str.upper, len, lambda: None, object()], ids=named)
def test_whatever_can_be_called_has_a_signature(function: Any) -> None:
    signature = TaskSignature(function)
    assert signature.returns is None


def test_raw_bodies_are_bytes() -> None:
    def hashed(body: bytes, times: int = 1) -> None: ...
    def told(body: str) -> None: ...

    assert TaskSignature(hashed).read("raw", b'{"times":2}\n\x00\xff') == ([b"\x00\xff"], {"times": 2})
    assert TaskSignature(hashed).read("raw", b"\n\x00\xff") == ([b"\x00\xff"], {})
    with pytest.raises(InvalidRequest, match=r"args\[0\]"):
        TaskSignature(told).read("raw", b"{}\nabc")


ODD_ZONE = datetime.timezone(datetime.timedelta(seconds=90))

# --- a caller who has the function ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "place"),
    [
        (t.kinds, [datetime.date(2026, 1, 2)], "args[0]"),  # a date is no datetime
        (t.kinds, [datetime.datetime(2026, 10, 25, 2, 30, fold=1)], "args[0]"),  # the hour would be another
        (t.kinds, [datetime.datetime(2026, 1, 2, tzinfo=ODD_ZONE)], "args[0]"),  # whole minutes alone
        (t.kinds, ["2026-01-02T03:04:05", {"x": 1, "z": 2}], 'args[1]["z"]'),  # would be left out
        (t.kinds, ["2026-01-02T03:04:05", Point("1")], "args[1].x"),  # type: ignore[arg-type]
        (t.everything, [Shape("s", [Point(1), Point(True)])], "args[0].points[1].x"),
        (t.odd, [None, {1}], "args[1]"),
        (t.odd, [None, [], b"a"], "args[2]"),
        (t.odd, [None, [], "", {1}], "args[3]"),  # a set would arrive as a list
        (t.text_for_bytes, [], None),
    ],
    ids=named,
)  # fmt: skip
def test_a_value_that_would_arrive_as_another_is_refused(
    function: Callable[..., Any], args: list[Any], place: str | None
) -> None:
    signature = TaskSignature(function)
    found = None
    for number, value in enumerate(args):
        try:
            encode_argument(value, signature.by_place(number), f"args[{number}]")
        except InvalidRequest as error:
            found = error.field
    assert found == place


def test_text_is_not_taken_for_the_base64_of_bytes() -> None:
    def keep(data: bytes, many: dict[str, bytes]) -> None: ...

    signature = TaskSignature(keep)
    for value, number in (("abcd", 0), ({"a": "abcd"}, 1)):
        with pytest.raises(InvalidRequest):
            encode_argument(value, signature.by_place(number), "args[0]")
    assert encode_argument(b"i\xb7\x1d", signature.by_place(0), "args[0]") == b'"abcd"'


# --- results ----------------------------------------------------------------------------------------------


def test_results_by_the_annotation() -> None:
    def stored(function: Callable[..., Any], *args: Any) -> Any:
        returns = TaskSignature(function).returns
        value = function(*args)
        assert returns is not None
        return returns.of_result(msgspec.json.decode(returns.encode_result(value))), value

    shape = Shape("s", [Point(1, 2)], {"a", "b"})
    assert stored(t.turned, shape) == (Shape("s", [Point(2, 1)], {"a", "b"}),) * 2
    assert stored(t.measured, 1.5) == ({"name": "1.5", "when": datetime.date(2026, 1, 2)},) * 2
    assert stored(t.returned, "nothing") == ({}, {})
    for what, place in (("bytes", '["a"]'), ("date", '["a"]')):
        with pytest.raises(InvalidRequest) as refused:
            stored(t.returned, what)
        assert refused.value.field == place
    with pytest.raises(InvalidRequest):
        stored(t.text_for_bytes)  # the caller would get other bytes
    # an annotation that is wrong changes nothing
    assert TaskSignature(t.wrongly_annotated).returns is None
