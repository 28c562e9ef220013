"""The notebooks: what is committed may be read, and each one runs from its first cell to its last."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from jobsvc import service
from tests.cluster.conftest import RunningService

from .runner import CHOSEN_METADATA, USUAL_URL, executed, notebooks, started

SHOWN_TYPES = {"text/plain", "text/html", "image/png"}  # no widgets: they are empty in a saved file
ELSEWHERE = re.compile(r"/tmp/|\.venv|site-packages|\bat 0x[0-9a-f]+|\x1b\[|Traceback \(most recent")
ADDRESS = re.compile(r"https?://(?:127\.0\.0\.1|localhost)(?::\d+)?")


def each_notebook() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """(type, text) of everything that the notebook shows."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.output_type == "stream":
                yield "text/plain", output.text
            elif output.output_type == "error":
                yield "error", output.ename
            else:
                yield from output.data.items()


def test_there_is_a_quickstart_one_for_many_jobs_and_one_for_operators() -> None:
    assert [path.stem for path in notebooks()] == ["01-quickstart", "02-many-jobs", "03-operating"]


@each_notebook()
def test_outputs_are_committed_and_come_of_one_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"
    assert notebook.metadata == CHOSEN_METADATA
    # tables and progress are HTML that is in the file; nothing is an error
    types = [kind for kind, _ in shown(notebook)]
    assert set(types) <= SHOWN_TYPES
    assert types.count("text/html") >= 2


@each_notebook()
def test_saved_outputs_tell_nothing_of_the_machine(path: Path) -> None:
    for kind, text in shown(nbformat.read(path, as_version=4)):
        if kind != "image/png":
            assert not ELSEWHERE.search(text)
            assert set(ADDRESS.findall(text)) <= {USUAL_URL}


def test_progress_stays_at_its_end_and_the_plot_is_there() -> None:
    many, operating = (nbformat.read(path, as_version=4) for path in notebooks()[1:])
    bars = [text for kind, text in shown(many) if kind == "text/html" and "<progress" in text]
    assert len(bars) >= 4
    for bar in bars:
        found = re.search(r'max="(\d+)" value="(\d+)"', bar)
        assert found is not None and found[1] == found[2]
    assert any("retry_failed" in cell.source for cell in code_cells(many))
    assert any("restart" in cell.metadata.get("tags", ()) for cell in code_cells(many))
    assert [kind for kind, _ in shown(operating)].count("image/png") == 1


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all of them, as for a reader who goes from one to the next."""
    here = started(tmp_path_factory.mktemp("service"))
    yield here
    here.client.close()
    service.down(run_dir=here.run_dir, say=lambda _: None)
    assert not here.processes(), "down left processes behind"


@pytest.mark.cluster
@each_notebook()
def test_it_runs_from_its_first_cell_to_its_last(running: RunningService, path: Path, tmp_path: Path) -> None:
    # given a service that allows code, and both managers there
    running.whole_pair()
    # when all cells are run (one that raises raises here)
    notebook = executed(path, running.info, tmp_path)
    # then what it shows is of the same kinds as what is committed
    saved = nbformat.read(path, as_version=4)
    for cell, before in zip(code_cells(notebook), code_cells(saved), strict=True):
        assert kinds_shown(cell) == kinds_shown(before), cell.source


def kinds_shown(cell: NotebookNode) -> list[set[str]]:
    """Of each output in turn. What is printed over a while comes in one piece or in several."""
    kinds = [kinds_of(output) for output in cell.outputs]
    return [
        kind for kind, last in zip(kinds, [set(), *kinds], strict=False) if kind != last or kind != {"stream"}
    ]


def kinds_of(output: NotebookNode) -> set[str]:
    """Of plain text beside HTML only the HTML is saved."""
    kinds = {output.output_type, *output.get("data", ())}
    return kinds - {"text/plain"} if "text/html" in kinds else kinds
