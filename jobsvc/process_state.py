"""What a process has, as it was when its tasks had been loaded; put back after each job.

    read after each job        hooks, filters, lists that all of Python goes through; the umask
    read when it was set       what has a function of Python's to set it (`tripwires`)
    read with all the rest     now and then, for what C code may have set: after a job of some length, after
                               some job time, and when there is nothing to do

What reads differently is put back. What cannot be, as a limit without the right to raise it, is there again
in a new process only: then this one is renewed before its next job.
"""

from __future__ import annotations

import contextvars
import decimal
import faulthandler
import os
import random
import tempfile
from collections.abc import Iterable
from typing import Any

from . import tripwires
from .library_traits import library_traits
from .process_traits import Trait, renew_handlers, rights, system_traits
from .python_traits import hook_traits, hooks, switch_traits

# What hardly any code in C changes. Functions of Python's that do are heard.
_RARE = frozenset(
    """time zone; blocking; users; session; root folder; priority; scheduler; limits; dumpable; keepcaps;
    timer slack; death signal; subreaper; I/O priority; out-of-memory score; timers of C code;
    wake-up descriptor; locale; names of levels; logging.setLoggerClass; logging.setLogRecordFactory;
    garbage collection; frozen objects; gc.set_threshold; gc.set_debug; recursion limit; switch interval;
    length of numbers; sys.setdlopenflags; thread stack; threading.settrace; threading.setprofile;
    generator hooks; origin tracking; socket time-out; fault handler; tracemalloc; decimal.DefaultContext;
    sys.__stdin__; sys.__stdout__; sys.__stderr__; csv.field_size_limit; name of the thread""".replace(
        "\n    ", " "
    ).split("; ")
)


class ProcessState:
    """Made before the tasks are loaded; `settle` when they are."""

    def __init__(self) -> None:
        self.called: set[str] = set()  # what functions of Python's may have changed: see `tripwires`
        self._traits: dict[str, tuple[Trait, Any]] = {}  # and what it reads when it is fresh
        self._hooks: tuple[Any, ...] | None = None
        self._seeds: tuple[Any, ...] | None = None
        self._decimal: decimal.Context | None = None
        tripwires.lay(self.called)

    def settle(self) -> None:
        """As it is now, every job shall find it."""
        try:
            tempfile.gettempdir()  # or the first one to ask would change it
        except FileNotFoundError:
            pass  # there is none; whoever wants one is told so
        self._umask, self._set_umask = os.umask(0o022), os.umask  # a job may replace that of the module
        os.umask(self._umask)
        self._read_hooks = hooks()
        traits = [*system_traits(), *hook_traits(), *switch_traits(), *library_traits(), rights()]
        self._traits = {each.name: (each, _copy(each.read())) for each in traits}
        self._hooks = _copy(self._read_hooks())
        self._hook_names = [each.name for each in hook_traits()]
        hooked = set(self._hook_names)
        self._unhooked = [name for name in self._traits if name not in hooked]
        self._likely = [name for name in self._unhooked if name not in _RARE]
        self._seeds = random.getstate() if tripwires.SEEDS in self.called else None
        self.context = contextvars.copy_context()
        if any(each.name == "decimal_context" for each in self.context):
            self._decimal = decimal.getcontext().copy()
        self.called.clear()

    def put_umask(self) -> None:
        """Before each job: threads of an earlier one may have set it. See `job_frames` on the board."""
        self._set_umask(self._umask)

    def put_back(self) -> list[str]:
        """After each job. Names what cannot be put back."""
        if self._decimal is not None:
            self.context.run(decimal.setcontext, self._decimal.copy())
        if self.called:
            return self._put_called()
        return self._put_hooks()

    def _put_hooks(self) -> list[str]:
        if self._read_hooks() == self._hooks:
            return []
        left = self._put(self._hook_names)
        self._hooks = _copy(self._read_hooks())  # with what may stay
        return left

    def put_all(self, closely: bool = True) -> list[str]:
        """Read everything, and put back what differs. Names what cannot be put back.

        Without `closely` what is rarely changed is left out: it is half of all.
        """
        left = self._put_hooks()
        left += self._put(self._unhooked if closely or self.called else self._likely)
        left += self._put_unread()
        self.called.clear()  # by ourselves, too
        return left

    def _put_called(self) -> list[str]:
        names = dict.fromkeys(self._hook_names)
        if self.called - tripwires.NO_TRAITS:
            every = tripwires.EVERYTHING in self.called
            names.update(dict.fromkeys(name for name in self._traits if every or name in self.called))
        left = self._put(names)
        left += self._put_unread()
        self.called.clear()  # by ourselves, too
        return left

    def _put_unread(self) -> list[str]:
        """What nothing tells but that it was called."""
        called = self.called
        if tripwires.SEEDS in called:
            self._put_seeds()
        if tripwires.FAULTS in called:
            faulthandler.cancel_dump_traceback_later()
        if tripwires.INTERRUPTIONS in called:
            renew_handlers()
        return [tripwires.FOR_GOOD] if tripwires.FOR_GOOD in called else []

    def _put(self, names: Iterable[str]) -> list[str]:
        left = []
        for name in names:
            (_, read, put_back), fresh = self._traits[name]
            try:
                if read() == fresh:
                    continue
                if put_back is not None:
                    put_back(fresh)
                    if read() == fresh:
                        continue
            except Exception:  # no right to it, or a handler of the job's that came in between
                pass
            left.append(name)
        return left

    def _put_seeds(self) -> None:
        if self._seeds is None:
            random.seed()
        else:
            random.setstate(self._seeds)


def _copy(value: Any) -> Any:
    """Containers anew, so that a change in place shows; what is in them as it is."""
    if type(value) is dict:
        return {name: _copy(each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copy, value))
    return value
