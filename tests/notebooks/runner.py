"""Executes the notebooks against a service; `python -m tests.notebooks.runner` writes their outputs anew.

Saved outputs name the service as it is on a machine where nothing else runs, so that a run elsewhere changes
no more than it must. A cell with the tag `restart` is run by a kernel that has just been started: what came
before is forgotten, as after a restart by hand.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from jobsvc import service
from jobsvc.discovery import ServiceInfo
from tests.cluster.conftest import RunningService, start

NOTEBOOKS = Path(__file__).parent.parent.parent / "notebooks"
USUAL_URL = "http://127.0.0.1:8000"
CELL_SECONDS = 120
CHOSEN_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class _Notebook(NotebookClient):
    """A notebook whose kernel is restarted before cells that ask for it."""

    async def async_execute_cell(self, cell: NotebookNode, cell_index: int, **options: Any) -> NotebookNode:
        if "restart" in cell.metadata.get("tags", ()):
            assert self.km is not None and self.kc is not None
            await self.km.restart_kernel(now=True)
            await self.kc.wait_for_ready(timeout=CELL_SECONDS)
        return await super().async_execute_cell(cell, cell_index, **options)


def notebooks() -> list[Path]:
    return sorted(NOTEBOOKS.glob("*.ipynb"))


def started(folder: Path) -> RunningService:
    """A service as the notebooks want it: two workers, and code is allowed."""
    running = start(folder, allow_code=True, tasks=())
    running.whole_pair()
    return running


def executed(path: Path, info: ServiceInfo, folder: Path) -> NotebookNode:
    """The notebook with the outputs of a run from its first cell to its last. Raises what a cell raised."""
    notebook = nbformat.read(path, as_version=4)
    client = _Notebook(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    environment = {"JOBSVC_URL": info.urls[0], "MPLCONFIGDIR": str(folder / "matplotlib")}
    with mock.patch.dict(os.environ, environment):
        client.execute()
    return notebook


def saved_text(notebook: NotebookNode, url: str) -> str:
    """What is committed of it."""
    notebook.metadata = nbformat.from_dict(CHOSEN_METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", ()):
                output.data.pop("text/plain", None)  # long, and nobody's view of a saved notebook
    nbformat.validate(notebook)
    return nbformat.writes(notebook).replace(url, USUAL_URL) + "\n"


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="jobsvc-notebooks-") as name:
        folder = Path(name)
        running = started(folder)
        try:
            for path in notebooks():
                if not names or path.name in names:
                    print(path.name)
                    path.write_text(saved_text(executed(path, running.info, folder), running.url))
        finally:
            running.client.close()
            service.down(run_dir=running.run_dir, say=lambda _: None)


if __name__ == "__main__":
    main(sys.argv[1:])
