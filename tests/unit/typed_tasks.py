"""Tasks whose annotations say what they get, for `test_signatures` and `test_job_runner`."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec

from jobsvc import task

if TYPE_CHECKING:
    from somewhere_else import Unknown  # type: ignore[import-not-found]


@dataclass
class Point:
    x: int
    y: int = 0


@dataclass
class Shape:
    name: str
    points: list[Point]
    tags: set[str] = field(default_factory=set)


class Move(msgspec.Struct):
    by: Point
    at: datetime.datetime


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Pair(NamedTuple):
    left: int
    right: bytes


class Named(TypedDict):
    name: str
    when: datetime.date


class Strange:
    """Nothing that msgspec could make."""


@task
def kinds(when: datetime.datetime, point: Point, ids: set[int] = frozenset()) -> str:  # type: ignore[assignment]
    return f"{type(when).__name__} {type(point).__name__} {type(ids).__name__}"


@task
def everything(
    shape: Shape,
    move: Move,
    color: Color,
    level: Level,
    pair: Pair,
    named: Named,
    amount: decimal.Decimal,
    key: uuid.UUID,
    span: datetime.timedelta,
    data: bytes,
    by_day: dict[datetime.date, list[float]],
) -> list[str]:
    given = (shape, move, color, level, pair, named, amount, key, span, data, by_day)
    return [repr(each) for each in given]


@task
def shapes(first: Point, /, second: Point, *rest: Point, third: Point | None = None, **more: Point) -> str:
    return repr((first, second, rest, third, more))


@task
def bounded(count: Annotated[int, msgspec.Meta(ge=1)], mode: Literal["a", "b"] = "a") -> int:
    return count


@task
def tables(shares: dict[str, list[float]], shapes: dict[str, Shape] = {}) -> int:  # noqa: B006
    return len(shares) + len(shapes)


@task
def plain(text: str, number: int = 1, share: float = 0.5, choice: bool | None = None) -> str:
    return repr((text, number, share, choice))


@task
def half_known(width: int = None, where: Unknown = None, other: Strange = None) -> str:  # type: ignore[assignment]
    return repr((width, where, other))


@task
def odd(
    call: Callable[[int], int],
    numbers: Iterable[int],
    either: bytes | str,
    items: Sequence[int],
    table: Mapping[str, int],
    nested: dict[str, Strange],
) -> str:
    return repr((call, numbers, either, items, table, nested))


def gives_a_handle(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function("handle", *args, **kwargs)

    return called


def passes_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return called


@task
@gives_a_handle
def with_a_handle(handle: str, number: int) -> str:
    return repr((handle, number))


@task
@passes_on
def wrapped(when: datetime.date) -> str:
    return repr(when)


@task
def returned(what: str) -> dict[str, Any]:
    """An annotation that says too little of what comes back."""
    return {"nothing": {}, "bytes": {"a": b"a"}, "date": {"a": datetime.date(2026, 1, 1)}}[what]


@task
def measured(loss: float) -> Named:
    return {"name": str(loss), "when": datetime.date(2026, 1, 2)}


@task
def turned(shape: Shape) -> Shape:
    return Shape(shape.name, [Point(each.y, each.x) for each in shape.points], shape.tags)


@task
def wrongly_annotated(what: str) -> int:
    return what  # type: ignore[return-value]


@task
def text_for_bytes() -> dict[str, bytes]:
    return {"a": "abcd"}  # type: ignore[dict-item]


@task
def raises_a_type_error(number: int) -> int:
    return number + "1"  # type: ignore[operator,no-any-return]
