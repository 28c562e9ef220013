"""EC2 in a box for each test module. A test runs on the operator's machine: see `rig.py`.

Where a rig cannot run (no root, a tool or a kernel part missing) these tests are skipped, and say why.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .rig import Rig, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = missing() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.ec2)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"no EC2 rig here: {reason}"))


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
