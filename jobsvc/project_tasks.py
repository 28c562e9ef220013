"""The tasks that a project names in its pyproject.toml: `[tool.jobsvc] tasks = ["myapp.tasks"]`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from .errors import InvalidRequest


def tasks_of_project(folder: Path | None = None) -> tuple[str, ...]:
    """Modules named in the pyproject.toml of this folder; none if there is no such file."""
    path = (folder or Path.cwd()) / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return ()
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidRequest(f"{path}: {error}", "tasks") from error
    tasks = document.get("tool", {}).get("jobsvc", {}).get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(each, str) for each in tasks):
        raise InvalidRequest(f"{path}: [tool.jobsvc] tasks must be a list of module names", "tasks")
    return tuple(tasks)
