"""The pages in docs/: their blocks are of kinds that a test runs, their links lead somewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.doc_blocks import DOCS, PAGES, Block, blocks, run_python, run_shell

LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_run(page: str) -> None:
    found = list(blocks(page))
    assert found, page
    for block in found:
        assert block.kind in ("python", "bash", "toml"), f"{page}.md:{block.line}"
        if block.kind == "python":
            ast.parse(block.code)
        elif block.kind == "toml":
            tomllib.loads(block.code)
    skipped = [block for block in found if block.why]
    assert len(skipped) <= 2 and all(block.kind == "bash" for block in skipped)
    # a fence that is not understood would hide its block from the tests
    text = (DOCS / f"{page}.md").read_text()
    assert text.count("```") == 2 * len(found)


@pytest.mark.parametrize(
    "path", [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"], ids=lambda p: p.stem
)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        assert not anchor or anchor in headings(there), target


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_a_wrong_page_would_be_seen(tmp_path: Path) -> None:
    session: dict[str, Any] = {"__name__": "__main__"}
    run_python(Block(1, "python", "a = 1\na + 1  # → 2\n", None), session, "page")
    with pytest.raises(AssertionError, match=r"page.md:2 gives 2"):
        run_python(Block(1, "python", "a + 1  # → 3\n", None), session, "page")
    with pytest.raises(AssertionError, match="gives nothing"):
        run_python(Block(1, "python", "b = 1  # → 1\n", None), session, "page")
    assert (
        run_shell(Block(1, "bash", "echo 1 | cat", None), tmp_path, {"PATH": "/usr/bin:/bin"}, "page")
        == "1\n"
    )
    with pytest.raises(AssertionError, match="exit code 1"):
        run_shell(Block(1, "bash", "false | cat\necho ok", None), tmp_path, {"PATH": "/usr/bin:/bin"}, "page")
