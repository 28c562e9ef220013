"""What the interpreter keeps for everybody, and a job may change: hooks, filters, loggers, locale, loops.

Values of modules are nobody's business but their own, except for lists and hooks that all of Python goes
through. `library_traits` has those of the standard library.
"""

from __future__ import annotations

import builtins
import decimal
import faulthandler
import gc
import locale
import logging
import socket
import sys
import tempfile
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from operator import attrgetter, itemgetter
from types import ModuleType
from typing import Any

from .process_traits import Trait

_SYS_HOOKS = ["excepthook", "unraisablehook", "displayhook", "breakpointhook", "dont_write_bytecode"]
_SYS_HOOKS += ["tracebacklimit"]
_IMPORTERS = ("meta_path", "path_hooks")
_BUILTINS = ("print", "open", "input", "__import__")
_DECIMAL = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
_of_sys = itemgetter(*_SYS_HOOKS, "path", "argv", *_IMPORTERS)
_of_warnings = itemgetter("filters", "showwarning", "formatwarning", "defaultaction")
_of_builtins = itemgetter(*_BUILTINS)
_of_root = itemgetter("level", "handlers", "filters")
_GONE = object()  # in place of an attribute that was deleted
_NEW_LOGGER: tuple[Any, ...] = (logging.NOTSET, True, False, [], [])
_of_logger = attrgetter("level", "propagate", "disabled", "handlers", "filters")


def hooks() -> Callable[[], tuple[Any, ...] | None]:
    """Reads all values of `hook_traits` at once, for after each job; None if one is gone. Lists are the
    living ones."""
    of_sys, of_warnings, of_builtins, of_root = vars(sys), vars(warnings), vars(builtins), vars(logging.root)
    gettrace, getprofile, manager = sys.gettrace, sys.getprofile, vars(logging.root.manager)
    of_sys.setdefault("tracebacklimit")  # None says the same as none, and can be read like the others

    def read() -> tuple[Any, ...] | None:
        try:
            return (
                _of_sys(of_sys),
                _of_warnings(of_warnings),
                _of_builtins(of_builtins),
                _of_root(of_root),
                manager["_disable"],
                threading.excepthook,
                tempfile.tempdir,
                gettrace(),
                getprofile(),
            )
        except (KeyError, AttributeError):
            return None

    return read


def hook_traits() -> list[Trait]:
    """What nobody is asked for: any code sets them, by an assignment or in place."""
    return [
        *(_attribute(sys, name) for name in _SYS_HOOKS),
        _listing(sys, "path"),
        _listing(sys, "argv"),
        *(_importers(name) for name in _IMPORTERS),
        _warning_filters(),
        _attribute(warnings, "showwarning"),
        _attribute(warnings, "formatwarning"),
        _attribute(warnings, "defaultaction"),
        *(_attribute(builtins, name) for name in _BUILTINS),
        Trait("root logger", _read_root, _put_root),
        _attribute(threading, "excepthook"),
        _attribute(tempfile, "tempdir"),
        Trait("sys.settrace", sys.gettrace, sys.settrace),
        Trait("sys.setprofile", sys.getprofile, sys.setprofile),
    ]


def switch_traits() -> list[Trait]:
    """What has a function to set it."""
    return [
        Trait("locale", lambda: locale.setlocale(locale.LC_ALL, None), _put_locale),
        _loggers(),
        _attribute(logging, "raiseExceptions"),
        _attribute(logging, "lastResort"),
        _attribute(logging, "_warnings_showwarning"),
        _level_names(),
        Trait("logging.setLoggerClass", logging.getLoggerClass, logging.setLoggerClass),
        Trait("logging.setLogRecordFactory", logging.getLogRecordFactory, logging.setLogRecordFactory),
        Trait("garbage collection", gc.isenabled, lambda fresh: gc.enable() if fresh else gc.disable()),
        Trait("frozen objects", lambda: gc.get_freeze_count() > 0, _put_frozen),
        Trait("gc.set_threshold", gc.get_threshold, lambda fresh: gc.set_threshold(*fresh)),
        Trait("gc.set_debug", gc.get_debug, gc.set_debug),
        _listing(gc, "callbacks"),
        Trait("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        Trait("switch interval", sys.getswitchinterval, sys.setswitchinterval),
        Trait("length of numbers", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
        Trait("sys.setdlopenflags", sys.getdlopenflags, sys.setdlopenflags),
        Trait("thread stack", threading.stack_size, _put_stack_size),
        Trait("threading.settrace", threading.gettrace, threading.settrace),
        Trait("threading.setprofile", threading.getprofile, threading.setprofile),
        Trait("generator hooks", sys.get_asyncgen_hooks, lambda fresh: sys.set_asyncgen_hooks(*fresh)),
        Trait("origin tracking", sys.get_coroutine_origin_tracking_depth, _put_origin_tracking),
        Trait("socket time-out", socket.getdefaulttimeout, socket.setdefaulttimeout),
        Trait("fault handler", faulthandler.is_enabled, _put_faulthandler),
        Trait("tracemalloc", tracemalloc.is_tracing, _put_tracing),
        Trait("decimal.DefaultContext", _read_decimal, _put_decimal),
        *(_attribute(sys, f"__{name}__") for name in ("stdin", "stdout", "stderr")),
    ]


def _attribute(owner: ModuleType, name: str) -> Trait:
    return Trait(
        f"{owner.__name__}.{name}",
        lambda: getattr(owner, name, _GONE),
        lambda fresh: setattr(owner, name, fresh),
    )


def _listing(owner: ModuleType, name: str) -> Trait:
    """A list that is put back in place: others may hold it."""
    original = getattr(owner, name)

    def put_back(fresh: list[Any]) -> None:
        original[:] = fresh
        setattr(owner, name, original)

    return Trait(f"{owner.__name__}.{name}", lambda: getattr(owner, name, _GONE), put_back)


def _importers(name: str) -> Trait:
    """Finders that a module has added which a job has imported stay: it needs them, and is there for good."""
    listing = _listing(sys, name)
    known = set(sys.modules)
    fresh = list(getattr(sys, name))

    def read() -> Any:
        now = listing.read()
        return [each for each in now if each in fresh or _home(each) in known] if type(now) is list else now

    def put_back(_: Any) -> None:
        now = listing.read()
        added = [each for each in now if each not in fresh and _home(each) not in known]
        assert listing.put_back is not None
        listing.put_back(fresh + added)

    return listing._replace(read=read, put_back=put_back)


def _home(importer: Any) -> Any:
    """The name of the module that it is from."""
    return getattr(importer, "__module__", None)


def _warning_filters() -> Trait:
    filters = _listing(warnings, "filters")

    def put_back(fresh: list[Any]) -> None:
        assert filters.put_back is not None
        filters.put_back(fresh)
        with warnings.catch_warnings():
            pass  # leaving it has modules forget what they know of filters

    return filters._replace(put_back=put_back)


def _put_frozen(fresh: bool) -> None:
    if fresh:
        gc.freeze()
    else:
        gc.unfreeze()


def _put_stack_size(fresh: int) -> None:
    threading.stack_size(fresh)


def _put_faulthandler(fresh: bool) -> None:
    if fresh:
        faulthandler.enable()
    else:
        faulthandler.disable()


def _put_origin_tracking(fresh: int) -> None:
    sys.set_coroutine_origin_tracking_depth(fresh)


def _put_locale(fresh: str) -> None:
    locale.setlocale(locale.LC_ALL, fresh)


def _put_tracing(fresh: bool) -> None:
    if fresh:
        tracemalloc.start()
    else:
        tracemalloc.stop()


# --- logging --------------------------------------------------------------------------------------


def _read_root() -> tuple[Any, ...]:
    return *_of_root(vars(logging.root)), logging.root.manager.disable


def _put_root(fresh: tuple[Any, ...]) -> None:
    level, handlers, filters, disable = fresh
    root = logging.root
    root.handlers[:], root.filters[:] = handlers, filters
    root.manager.disable = disable
    root.setLevel(level)  # has all loggers forget what they know of levels


def _loggers() -> Trait:
    """A logger that is new is as if it were not, unless its name begins as that of a loaded module."""
    known = {name: each for name, each in _named_loggers() if isinstance(each, logging.Logger)}
    handlers = {each for logger in (logging.root, *known.values()) for each in logger.handlers}

    def read() -> tuple[list[Any], list[Any], list[str]]:
        states = [_of_logger(each) for each in known.values()]
        return states, [_of_handler(each) for each in handlers], [each.name for each in new()]

    def new() -> list[logging.Logger]:
        if len(logging.root.manager.loggerDict) == count:
            return []
        return [
            each
            for name, each in _named_loggers()
            if isinstance(each, logging.Logger)
            and name not in known
            and name.partition(".")[0] not in sys.modules
            and _of_logger(each) != _NEW_LOGGER
        ]

    def put_back(fresh: tuple[list[Any], list[Any], list[str]]) -> None:
        states = dict(zip(known.values(), fresh[0], strict=True))
        for each in (*known.values(), *new()):
            level, each.propagate, each.disabled, listening, filters = states.get(each, _NEW_LOGGER)
            each.handlers[:], each.filters[:] = listening, filters
            each.setLevel(level)
        for handler, state in zip(handlers, fresh[1], strict=True):
            if _of_handler(handler) != state:
                handler.level, handler.formatter, handler.filters[:], stream = state
                if stream is not None:
                    vars(handler)["stream"] = stream

    count = len(logging.root.manager.loggerDict)
    return Trait("loggers", read, put_back)


def _level_names() -> Trait:
    """New ones stay: they are those of modules that a job has imported."""
    tables: tuple[dict[Any, Any], ...] = logging._levelToName, logging._nameToLevel
    known = [dict(each) for each in tables]

    def read() -> list[dict[Any, Any]]:
        return [{name: table.get(name) for name in fresh} for table, fresh in zip(tables, known, strict=True)]

    def put_back(fresh: list[dict[Any, Any]]) -> None:
        for table, values in zip(tables, fresh, strict=True):
            table.update(values)

    return Trait("names of levels", read, put_back)


def _of_handler(handler: logging.Handler) -> tuple[Any, ...]:
    """What it writes to only where that is all it does: files are opened and changed by their handlers."""
    stream = handler.stream if type(handler) is logging.StreamHandler else None
    level, formatter = getattr(handler, "level", None), getattr(handler, "formatter", None)
    return level, formatter, getattr(handler, "filters", None), stream


def _named_loggers() -> list[tuple[str, Any]]:
    return list(logging.root.manager.loggerDict.items())


# --- decimal --------------------------------------------------------------------------------------


def _read_decimal() -> list[Any]:
    context = decimal.DefaultContext
    return [dict(context.traps), *(getattr(context, name) for name in _DECIMAL)]


def _put_decimal(fresh: list[Any]) -> None:
    traps, *values = fresh
    decimal.DefaultContext.traps.update(traps)
    for name, value in zip(_DECIMAL, values, strict=True):
        setattr(decimal.DefaultContext, name, value)
