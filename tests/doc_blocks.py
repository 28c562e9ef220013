"""The code blocks of the pages in docs/, and how a reader would run them.

Every block is run in the page's order, but for those under `<!-- not run: why -->`. A Python block that
begins with a comment that is a file's name is that file. The Python of a page is one session, as in a
notebook; a comment tells what a line gives: `1 + 1 # → 2`. A shell block is run by bash, and must succeed.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["write-a-task", "calling", "retries-and-idempotency", "operate", "migrate"]
BLOCK_SECONDS = 120

_fence = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
_file_name = re.compile(r"# (?P<name>[\w/]+\.py)\n")
_gives = re.compile(r"#\s→ (?P<value>.+)$")


class Block(NamedTuple):
    """One block. `why` says why it is not run."""

    line: int
    kind: str
    code: str
    why: str | None

    @property
    def file_name(self) -> str | None:
        found = _file_name.match(self.code) if self.kind == "python" else None
        return found["name"] if found else None


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / f"{page}.md").read_text()
    for found in _fence.finditer(text):
        yield Block(text[: found.start("code")].count("\n"), found["kind"], found["code"], found["why"])


def write_files(page: str, folder: Path) -> list[Path]:
    """The files that a page has its reader write."""
    written = []
    for block in blocks(page):
        if block.file_name:
            path = folder / block.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
            written.append(path)
    return written


def run_python(block: Block, session: dict[str, Any], page: str) -> None:
    """Each statement; what it gives must be what the page says."""
    padded = "\n" * block.line + block.code  # so that a traceback names the page's line
    lines = padded.splitlines()
    for statement in ast.parse(padded, f"{page}.md").body:
        said = _gives.search(lines[(statement.end_lineno or 0) - 1])
        if isinstance(statement, ast.Expr):
            value = eval(compile(ast.Expression(statement.value), f"{page}.md", "eval"), session)
            assert said is None or repr(value) == said["value"], (
                f"{page}.md:{statement.lineno} gives {value!r}"
            )
        else:
            assert said is None, f"{page}.md:{statement.lineno} gives nothing"
            exec(compile(ast.Module([statement], []), f"{page}.md", "exec"), session)


def run_shell(block: Block, folder: Path, environment: Mapping[str, str], page: str) -> str:
    """What a shell block prints. It must succeed, all of it."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=BLOCK_SECONDS,
        check=False,
    )
    said = f"{page}.md:{block.line}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    return done.stdout
