"""Values arrive as they were sent, or are refused with their place: JSON's own types, at every depth."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobsvc.errors import InvalidRequest
from jobsvc.job_calls import NoSecondRun, call_of_task, write_result
from jobsvc.tasks import TaskDefinition
from jobsvc.value_types import value_type
from jobsvc.values import encode_value

from .typed_tasks import Color, Level, Pair, Point, Shape, Strange


def arrived(value: Any) -> Any:
    return msgspec.json.decode(encode_value(value, "args[0]"))


class Whole(int):
    pass


class Share(float):
    pass


class Text(str):
    __slots__ = ()


class Word(enum.StrEnum):
    A = "a"


GOOD = [
    None, True, False, 0, -1, 2**63, 2**64, -(2**70), 10**400, 0.0, -0.0, 1.5, 5e-324, 1.7976931348623157e308,
    1e22,    "", "é", "\x00", "\U0001f600", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    [], {}, [[[]]], {"": {"": []}}, {"a": [1, {"b": None}]}, [True, 1, 1.0], {"1": 1},
    collections.OrderedDict(a=1), collections.Counter("ab"), collections.defaultdict(list, a=[1]),
    Level.HIGH, [Level.LOW], Word.A, {Word.A: 1},
]  # fmt: skip


@pytest.mark.parametrize("value", GOOD, ids=lambda value: type(value).__name__)
def test_what_json_has_arrives_equal(value: Any) -> None:
    assert arrived(value) == value
    assert type(value) not in (int, float, str, bool) or repr(arrived(value)) == repr(value)


def test_a_tuple_arrives_as_a_list_and_that_is_all() -> None:
    assert arrived((1, ("a", [2.5]), {"b": (None,)})) == [1, ["a", [2.5]], {"b": [None]}]
    assert arrived([Pair(1, "x")]) == [[1, "x"]]  # type: ignore[arg-type]


BAD = [
    math.nan, math.inf, -math.inf, b"", b"a", bytearray(b"a"), memoryview(b"a"), set(), {1}, frozenset("a"),
    1j, range(3), object(), Strange(), ..., "\ud800", 10**5000, Share(1.5), Whole(1), Text("a"),
    np.float64(1.5), np.float32(1.5), np.int64(1), np.bool_(True), np.str_("a"), np.array([1]),
    datetime.datetime.now(), datetime.date.today(), datetime.time(1), datetime.timedelta(1),
    decimal.Decimal("1.5"), decimal.Decimal("nan"), uuid.UUID(int=1), Color.RED, Point(1),
    collections.deque([1]), msgspec.Raw(b"1"), msgspec.Raw(b"[1"), msgspec.UNSET, print, Point,
    (each for each in ()),
]  # fmt: skip
AROUND = [
    (lambda value: value, ""),
    (lambda value: [1, value], "[1]"),
    (lambda value: (value,), "[0]"),
    (lambda value: {"image": value}, '["image"]'),
    (lambda value: {"a": [{"b": (0, value)}]}, '["a"][0]["b"][1]'),
    (lambda value: collections.OrderedDict(a=[value]), '["a"][0]'),
    (lambda value: ["", {"two words": value, "x": "\ud800"}], '[1]["two words"]'),
]


@pytest.mark.parametrize("around", range(len(AROUND)))
@pytest.mark.parametrize("value", BAD, ids=lambda value: type(value).__name__)
def test_what_it_has_not_is_refused_with_its_place(value: Any, around: int) -> None:
    wrap, place = AROUND[around]
    with pytest.raises(InvalidRequest) as refused:
        encode_value(wrap(value), "args[0]")
    assert refused.value.field == f"args[0]{place}"


@pytest.mark.parametrize(
    "key", [1, 1.5, None, True, b"a", (1, 2), Color.RED, Level.LOW, datetime.date.today()]
)
def test_keys_of_objects_are_texts(key: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        encode_value([{"a": {key: 1}}], "kwargs.table")
    assert refused.value.field == 'kwargs.table[0]["a"]'


def test_what_contains_itself_or_is_nested_too_deeply_is_refused() -> None:
    circle: list[Any] = []
    circle.append([circle])
    deep: Any = 1
    for _ in range(5_000):
        deep = [deep]
    for value in (circle, deep, (deep,), {"a": circle}):
        with pytest.raises(InvalidRequest, match=r"^args\[0\]"):
            encode_value(value, "args[0]")


def test_what_cannot_be_compared_is_refused() -> None:
    @dataclasses.dataclass(eq=False)
    class Angry:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("do not compare me")

        __hash__ = None  # type: ignore[assignment]

    for value in (Angry(), [Angry()], {"a": Angry()}):
        with pytest.raises(InvalidRequest):
            encode_value(value, "args[0]")


# --- any value ------------------------------------------------------------------------------------------

simple = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.floats(),
    st.text(st.characters()),
    st.text(st.characters(categories=["Cs"]), max_size=2),
    st.binary(max_size=5),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.complex_numbers(),
    st.fractions(),
    st.sampled_from(
        [Color.RED, Level.LOW, Word.A, Point(1), Pair(1, b""), ..., range(2), np.float64(1), Share(1)]
    ),
)
keys = st.one_of(
    st.text(max_size=3), st.integers(), st.none(), st.booleans(), st.floats(), st.sampled_from(Word)
)
anything = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(keys, inner, max_size=2),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(collections.OrderedDict),
        st.frozensets(st.integers() | st.text(max_size=2), max_size=3),
    ),
    max_leaves=12,
)


def equal(given: Any, got: Any) -> bool:
    """The same value; a tuple may have become a list."""
    if isinstance(given, list | tuple):
        return isinstance(got, list) and len(got) == len(given) and all(map(equal, given, got))
    if isinstance(given, dict):
        return (
            type(got) is dict and given.keys() == got.keys() and all(equal(given[k], got[k]) for k in given)
        )
    if isinstance(given, bool | float) or given is None:
        return type(got) is type(given) and repr(got) == repr(given)
    return bool(given == got) and not isinstance(given, bytes | frozenset)


def take(*values: Any, **named: Any) -> Any: ...


ECHO = TaskDefinition(function=take, name="take")


@settings(max_examples=600, deadline=None)
@given(value=anything)
def test_any_argument_arrives_equal_or_is_refused(value: Any) -> None:
    try:
        data = encode_value(value, "args[0]")
    except InvalidRequest as error:
        assert error.field is not None and error.field.startswith("args[0]")
        return
    payload = b'{"args":[' + data + b'],"kwargs":{"a":' + data + b"}}"
    _, args, kwargs, _ = call_of_task(ECHO, "json", payload)
    assert equal(value, args[0]) and equal(value, kwargs["a"])


@settings(max_examples=600, deadline=None)
@given(value=anything)
def test_any_result_comes_back_equal_or_is_refused(value: Any) -> None:
    try:
        content, data = write_result(value, 10**9)
    except NoSecondRun as error:
        assert error.kind == "ResultNotStorable" and "(result" in str(error)
        return
    if content == "raw":
        assert data == value
    else:
        assert equal(value, msgspec.json.decode(data))


# --- any value of an annotated type -----------------------------------------------------------------------

moments = st.datetimes(timezones=st.none() | st.timezones())
points = st.builds(Point, st.integers() | st.booleans(), st.integers())
shapes = st.builds(Shape, st.text(), st.lists(points, max_size=3), st.sets(st.text(max_size=2), max_size=3))
ANNOTATED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats() | st.integers()),
    (float | None, st.floats() | st.none()),
    (str, st.text(st.characters())),
    (bytes, st.binary() | st.text(max_size=8)),
    (dict[str, bytes], st.dictionaries(st.text(max_size=2), st.binary() | st.text(max_size=4), max_size=3)),
    (datetime.datetime, moments),
    (list[datetime.datetime | None], st.lists(moments | st.none(), max_size=3)),
    (datetime.date, st.dates()),
    (datetime.time, st.times(timezones=st.none() | st.just(datetime.UTC))),
    (datetime.timedelta, st.timedeltas()),
    (decimal.Decimal, st.decimals() | st.integers()),
    (uuid.UUID, st.uuids()),
    (Color, st.sampled_from(Color)),
    (Level, st.sampled_from(Level)),
    (Pair, st.builds(Pair, st.integers(), st.binary())),
    (Point, points),
    (Shape, shapes),
    (dict[int, Shape], st.dictionaries(st.integers(), shapes, max_size=2)),
    (dict[datetime.date, list[float]], st.dictionaries(st.dates(), st.lists(st.floats()), max_size=3)),
    (set[int], st.sets(st.integers())),
    (frozenset[str], st.frozensets(st.text())),
    (tuple[int, str], st.tuples(st.integers(), st.text())),
    (list[tuple[int, ...]], st.lists(st.lists(st.integers()).map(tuple), max_size=3)),
    (list, anything),
    (dict, anything),
    (dict[str, Any], st.dictionaries(st.text(max_size=3), anything, max_size=3)),
    (list[Any], st.lists(anything, max_size=3)),
]


def test_every_annotation_is_one_that_is_held() -> None:
    for annotation, _ in ANNOTATED:
        assert value_type(annotation) is not None, annotation


@settings(max_examples=1_500, deadline=None)
@given(data=st.data(), number=st.integers(0, len(ANNOTATED) - 1))
def test_any_annotated_value_arrives_equal_or_is_refused(data: st.DataObject, number: int) -> None:
    annotation, strategy = ANNOTATED[number]
    value = data.draw(strategy)

    def takes(given: Any, *, named: Any) -> Any: ...

    takes.__annotations__ = {"given": annotation, "named": annotation, "return": annotation}
    task = TaskDefinition(function=takes, name="takes")
    try:
        args, kwargs = task.signature.encode_call([value], {"named": value})
    except InvalidRequest as error:
        assert error.field is not None and error.field.startswith("args[0]")
        return
    payload = msgspec.json.encode({"args": args, "kwargs": kwargs})
    _, [got], named, returns = call_of_task(task, "json", payload)
    assert arrived_as_annotated(value, got) and arrived_as_annotated(value, named["named"])
    # and what goes there comes back
    content, stored = write_result(value, 10**9, returns)
    if content == "json" and returns is not None:
        assert arrived_as_annotated(value, returns.read_result(stored))


def arrived_as_annotated(given: Any, got: Any) -> bool:
    if equal(given, got):
        return True
    if isinstance(given, list | tuple) and isinstance(got, list | tuple):
        return len(given) == len(got) and all(map(arrived_as_annotated, given, got))
    if isinstance(given, dict) and isinstance(got, dict):
        return given.keys() == got.keys() and all(arrived_as_annotated(given[k], got[k]) for k in given)
    return bool(given == got)
