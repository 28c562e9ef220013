"""What the standard library keeps for everybody, and a job may change: settings, and its own code.

Settings are put back, also those of modules that a job was the first to import. A process in which
functions or classes were replaced is renewed: nobody knows who holds which. What other modules keep is their
own affair.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, itemgetter
from types import FunctionType, ModuleType
from typing import Any

from .dict_versions import DictVersions
from .process_traits import Trait

# those that a job is likely to replace something of, as far as they are there when the tasks are loaded
_MODULES = "asyncio builtins copy datetime functools http.client io json logging os pickle posixpath random"
_MODULES += " re select shutil signal socket ssl string subprocess tempfile threading time traceback"
_MODULES += " urllib.request"
_MODULES_OF_CLASSES = "http.client json.encoder json.decoder logging random socket ssl subprocess threading"
_KINDS = (FunctionType, classmethod, staticmethod, property, int, float, str, type(None))
# module, what it is an attribute of, its name, and what it is when the module is imported
_SETTINGS: list[tuple[str, str, str, Callable[[Any], Any]]] = [
    ("ssl", "", "_create_default_https_context", attrgetter("create_default_context")),
    ("urllib.request", "", "_opener", lambda _: None),
    ("multiprocessing.context", "_default_context", "_actual_context", lambda _: None),
]

Owner = tuple[str, Any, list[str]]  # its name, itself, and the names of what it has


def library_traits() -> list[Trait]:
    """What functions and classes are is read last: settings are put back before."""
    return [
        _loaded_modules(),
        *(_setting(*each) for each in _SETTINGS),
        _longest_field(),
        Trait("name of the thread", lambda: threading.main_thread().name, _put_name),
        Trait("the standard library", _replaced([*_functions(), *_methods()])),
    ]


def _setting(module: str, owner: str, name: str, default: Callable[[Any], Any]) -> Trait:
    """Reads whether it is as it was."""
    known: list[Any] = []

    def owner_of(found: Any) -> Any:
        return getattr(found, owner) if owner else found

    def read() -> bool:
        found = sys.modules.get(module)
        if found is None:
            return True
        value = getattr(owner_of(found), name, None)
        return value is (known[0] if known else default(found))

    def put_back(_: bool) -> None:
        found = sys.modules[module]
        setattr(owner_of(found), name, known[0] if known else default(found))

    if (loaded := sys.modules.get(module)) is not None:
        known.append(getattr(owner_of(loaded), name, None))
    return Trait(f"{module}.{name}", read, put_back)


def _longest_field() -> Trait:
    """Of CSV. It has one function for both."""

    def read() -> int:
        found: Any = sys.modules.get("csv")
        return default if found is None else found.field_size_limit()

    def put_back(fresh: int) -> None:
        found: Any = sys.modules["csv"]
        found.field_size_limit(fresh)

    default = 131_072
    return Trait("csv.field_size_limit", read, put_back)


def _put_name(fresh: str) -> None:
    threading.main_thread().name = fresh


def _loaded_modules() -> Trait:
    """One of the standard library that a job has put another in place of."""
    fresh = {name: each for name, each in sys.modules.items() if _root(name) in sys.stdlib_module_names}
    values_of, values = itemgetter(*fresh), tuple(fresh.values())
    versions = DictVersions([sys.modules])

    def read() -> bool:
        try:
            if versions.are_seen():
                return True
            same = bool(values_of(sys.modules) == values)
        except KeyError:
            return False
        if same:
            versions.see()
        return same

    return Trait("sys.modules", read, lambda _: sys.modules.update(fresh))


def _root(name: str) -> str:
    return name.partition(".")[0]


def _functions() -> Iterator[Owner]:
    """The modules, and their functions and classes."""
    for module in _found(_MODULES):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        yield module.__name__, module, names


def _methods() -> Iterator[Owner]:
    """The classes, and what they are made of."""
    for module in _found(_MODULES_OF_CLASSES):
        for name, owner in vars(module).items():
            if isinstance(owner, type) and owner.__module__ == module.__name__:
                parts = [each for each, value in vars(owner).items() if _is_part(each, value)]
                yield f"{module.__name__}.{name}", owner, parts


def _found(names: str) -> Iterator[ModuleType]:
    return filter(None, map(sys.modules.get, names.split()))


def _replaced(owners: Iterable[Owner]) -> Callable[[], list[str]]:
    """Reads the names of all that is not what it was."""
    fresh = []
    for text, owner, names in owners:
        if len(names) > 1:  # of one, it would not be a tuple that is got
            values_of = itemgetter(*names)
            fresh.append((text, owner, names, values_of, values_of(vars(owner))))
    versions = DictVersions(vars(owner) for _, owner, *_ in fresh)

    def read() -> list[str]:
        replaced: list[str] = []
        if versions.are_seen():
            return replaced
        for text, owner, names, values_of, values in fresh:
            now = vars(owner)
            try:
                if values_of(now) == values:
                    continue
            except KeyError:
                pass  # one was deleted
            pairs = zip(names, values, strict=True)
            replaced += [f"{text}.{name}" for name, value in pairs if now.get(name) is not value]
        if not replaced:
            versions.see()
        return replaced

    return read


def _is_part(name: str, value: Any) -> bool:
    """Of a class in Python, and nothing that it counts or caches."""
    is_public = not name.startswith("_") or (name.endswith("__") and name != "__doc__")
    return is_public and isinstance(value, _KINDS)
