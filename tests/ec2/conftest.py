"""EC2 in a box for each test module. A test runs on the operator's machine: see `rig.py`.

Where a rig cannot run (no root, a tool or a kernel part missing) these tests are skipped, and say why.
Rigs do not see each other, so modules may run side by side.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .rig import Rig, missing

FAILED = pytest.StashKey[str]()  # of a module: its first test that failed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = missing() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.ec2)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"no EC2 rig here: {reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (module := item.getparent(pytest.Module)) is not None:
        module.stash.setdefault(FAILED, item.name)
    return report


@pytest.fixture(autouse=True)
def whole_story(request: pytest.FixtureRequest) -> None:
    """The tests of a module with a cluster are one story: after a failure, what follows would only wait."""
    failed = request.node.getparent(pytest.Module).stash.get(FAILED, None)
    if failed is not None and "cluster" in request.fixturenames:
        pytest.fail(f"not run: the cluster may not be whole, {failed} failed", pytrace=False)


@pytest.fixture(scope="module")
def running_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("rig")) as rig:
        yield rig


@pytest.fixture
def rig(running_rig: Rig) -> Iterator[Rig]:
    """The module's rig, in a good mood; the test is on the operator's machine."""
    running_rig.refuse_capacity(False)
    running_rig.fail_api(0)
    with running_rig.inside():
        yield running_rig
