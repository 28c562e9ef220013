"""The tasks that a project names in its pyproject.toml: `[tool.jobsvc] tasks = ["myapp.tasks"]`."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from .errors import InvalidRequest


def tasks_of_project(folder: Path | None = None) -> tuple[str, ...]:
    """Modules named in the pyproject.toml of this folder; none if there is no such file."""
    path = (folder or Path.cwd()) / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:  # ValueError: no TOML, or no text
        raise InvalidRequest(f"{path}: {error}", "tasks") from error
    ours: Any = document
    for name in ("tool", "jobsvc"):
        ours = ours.get(name, {})
        if not isinstance(ours, dict):
            raise InvalidRequest(f"{path}: [tool.jobsvc] must be a table", "tasks")
    unknown = sorted(ours.keys() - {"tasks"})
    if unknown:
        raise InvalidRequest(f"{path}: [tool.jobsvc] has no {unknown[0]!r}; it has `tasks`", "tasks")
    tasks = ours.get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(each, str) for each in tasks):
        raise InvalidRequest(f"{path}: [tool.jobsvc] tasks must be a list of module names", "tasks")
    return tuple(tasks)
