"""The pages in docs/, read by somebody who types everything: each block is run against a real service."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobsvc import service
from jobsvc.ports import free_ports
from tests.doc_blocks import PAGES, blocks, run_python, run_shell, write_files

NEEDED = ("bash", "curl", "jq")


class Reader:
    """Somebody with a folder, a shell and a service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "JOBSVC_RUN_DIR": str(self.run_dir),
            "JOBSVC_DATA": str(folder / "data"),
            "JOBSVC_PORT": str(free_ports(1)[0]),
        }
        for page in PAGES:
            write_files(page, folder)
        up = [sys.executable, "-m", "jobsvc", "up", "--tasks", "myapp.tasks", "--allow-code"]
        started = subprocess.run(
            up, cwd=folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stderr
        info = service.find_service(run_dir=self.run_dir)
        assert info is not None
        self.environment["JOBSVC_URL"] = info.urls[0]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"the pages use {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("reader")
    try:
        yield Reader(folder)
    finally:
        service.down(run_dir=folder / "run", say=lambda _: None)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_works(page: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBSVC_URL", reader.environment["JOBSVC_URL"])
    monkeypatch.chdir(reader.folder)
    monkeypatch.syspath_prepend(str(reader.folder))
    session: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.kind == "python" and block.file_name is None:
            run_python(block, session, page)
        elif block.kind == "bash" and block.why is None:
            run_shell(block, reader.folder, reader.environment, page)
