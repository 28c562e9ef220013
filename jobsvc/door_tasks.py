"""The tasks as a way in knows them, and whether the files here still say what the service runs.

A way in that is started anew loads the files as they are now, which may be in the middle of an edit. What it
takes must be what the workers run: so where its code is not the service's, or cannot be loaded at all, it
goes by the names of the service's tasks, and leaves arguments to the processes that run them. A reload
starts it anew, with the code that is then the service's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .project_code import digest_of, files_of
from .service_code import ServiceCode
from .tasks import Registry, TaskDefinition, TasksNotLoaded, builtin_registry, load_tasks

LOOK_SECONDS = 2.0  # between two looks at the files


class DoorTasks:
    """What one process at the door has loaded. `code` is None where nobody has said what the service's is."""

    def __init__(
        self,
        modules: Sequence[str],
        allow_shell: bool,
        code: ServiceCode | None,
        monotonic: Callable[[], float],
    ) -> None:
        before = frozenset(sys.modules)
        self._code = code
        self._not_loaded: str | None = None
        try:
            loaded = load_tasks(modules, allow_shell)
        except TasksNotLoaded as error:
            if code is None:
                raise
            loaded = builtin_registry(allow_shell)
            self._not_loaded = f"{error.detail}; `jobsvc reload` brings it in when it is mended"
        self._files = _FilesNow(files_of(before), monotonic)
        problem = self._not_loaded
        if problem is None and code is not None:
            problem = code.problem_of(self._files.digests(), loaded.names())
        self.registry = loaded if problem is None or code is None else _by_name(code, loaded, allow_shell)

    def problem(self) -> str | None:
        """What keeps the files here from being the service's code, in words; None if nothing does."""
        if self._code is None or self._not_loaded is not None:
            return self._not_loaded
        differing = self._code.problem_of(self._files.digests(), self._code.tasks)
        return None if differing is None else f"of the files here the {differing}"


class _FilesNow:
    """Digests of files as they are. A file is read again only if it has changed."""

    def __init__(self, files: Mapping[str, Path], monotonic: Callable[[], float]) -> None:
        self._files = files
        self._monotonic = monotonic
        self._looked_at = float("-inf")
        self._seen: dict[str, tuple[object, str]] = {}

    def digests(self) -> dict[str, str]:
        now = self._monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            for name, path in self._files.items():
                mark = _mark(path)
                if name not in self._seen or self._seen[name][0] != mark:
                    self._seen[name] = mark, digest_of(path)
        return {name: digest for name, (_, digest) in self._seen.items()}


def _mark(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _by_name(code: ServiceCode, loaded: Registry, allow_shell: bool) -> Registry:
    """The service's tasks with what the files say of their options, and nothing of their arguments."""
    registry = builtin_registry(allow_shell)
    for name in code.tasks:
        if name not in registry:
            known = loaded.get(name)
            registry.add(
                msgspec.structs.replace(known, function=_anything)
                if known is not None
                else TaskDefinition(function=_anything, name=name)
            )
    return registry


def _anything(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError  # stands for a function that this process has not loaded
