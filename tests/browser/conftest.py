"""Debian's Chromium, driven by Playwright, looking at a service. Skipped where there is no Chromium.

Every page that a test opens is watched: an error in its script, a request that leaves its origin or a breach
of the content policy fails the test, whatever else it looked at.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PICTURES = Path(__file__).parent.parent.parent / "docs" / "pictures"
AXE = Path(__file__).parent / "axe.min.js.gz"
DEADLINE_MS = 20_000
# What the browser itself says of answers that the page handles, and tests provoke.
EXPECTED = ("Failed to load resource",)

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """Ended with each module: while it lives, this thread has a running event loop."""
    if shutil.which("chromium") is None:
        pytest.skip(f"needs {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as started:
        yield started


class Watched:
    """What went wrong in a page."""

    def __init__(self, page: Any, url: str) -> None:
        self.problems: list[str] = []
        self.origin = url
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(EXPECTED):
            self.problems.append(f"{message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.problems.append(f"left its origin: {request.url}")


@pytest.fixture
def look(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Open a service's page in a browser of its own: `look(url, "#/jobs", dark=True)`."""
    contexts: list[Any] = []
    watches: list[Watched] = []

    def open_page(
        url: str, route: str = "", *, dark: bool = False, width: int = 1360, height: int = 900
    ) -> Any:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("chromium")),
            executable_path=CHROMIUM,
            args=ARGUMENTS,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        page = context.pages[0]
        page.set_default_timeout(DEADLINE_MS)
        watches.append(Watched(page, url))
        page.goto(f"{url}/{route}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [problem for watch in watches for problem in watch.problems] == []


def axe_violations(page: Any) -> list[str]:
    """What axe-core finds wrong. The test puts its code in; the page's policy lets it load none."""
    page.evaluate(gzip.decompress(AXE.read_bytes()).decode() + "\n;0")
    found = page.evaluate("async () => (await axe.run(document, {resultTypes: ['violations']})).violations")
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']}" for each in found for node in each["nodes"]
    ]
