"""What goes wrong while a service is put into Ray is one line; all that Ray said is in a file it names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from jobsvc.deployed import Deployed
from jobsvc.deployment import Deployment, NotDeployed
from jobsvc.discovery import ServiceInfo
from jobsvc.errors import InvalidRequest, Unavailable
from jobsvc.ray_head import START_LOG, RayDidNotStart, last_line, start_head
from jobsvc.service_code import ServiceCode
from jobsvc.settings import Settings

LONG = "print('Ray says much\\n' * 60, file=__import__('sys').stderr)\n"
INFO = ServiceInfo("s", ["http://127.0.0.1:1"], None, "127.0.0.1:1", "data")


def deployed() -> Deployed:
    return Deployed(Settings(data="data", service="s"), ServiceCode({}, []))


def environment(folder: Path, rays_words: str) -> dict[str, str]:
    """One in which Ray says this when it is loaded."""
    (folder / "ray.py").write_text(rays_words)
    here = Path(__file__).parent.parent.parent
    return dict(os.environ) | {"PYTHONPATH": f"{folder}{os.pathsep}{here}"}


def go(folder: Path, rays_words: str, is_guest: bool = False) -> None:
    with Deployment(INFO, environment(folder, rays_words), folder, is_guest=is_guest) as deployment:
        deployment.go(deployed())


@pytest.mark.parametrize(("is_guest", "error"), [(False, NotDeployed), (True, Unavailable)])
def test_pages_of_ray_become_one_line(tmp_path: Path, is_guest: bool, error: type[Unavailable]) -> None:
    # given a Ray that says pages when something goes wrong
    words = LONG + "raise RuntimeError('Deploying application s failed: ' + 'x' * 5000)\n"
    # when it does, then the operator has one line of a length that can be read
    with pytest.raises(error) as raised:
        go(tmp_path, words, is_guest)
    said = str(raised.value)
    assert "\n" not in said and len(said) < 700
    assert "RuntimeError: Deploying application s failed" in said
    # and a file with everything, for its owner alone
    found = re.search(r"all that was said is in (\S+)$", said)
    assert found is not None
    kept = Path(found[1])
    assert kept.read_text().count("Ray says much") == 60 and kept.stat().st_mode & 0o77 == 0


def test_what_is_known_is_the_line_itself(tmp_path: Path) -> None:
    known = "import sys; print('route_prefix: /a is taken', file=sys.stderr); sys.exit(3)\n"
    with pytest.raises(InvalidRequest, match="^route_prefix: /a is taken$"):
        go(tmp_path, known)


def test_an_end_without_a_word_has_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(NotDeployed, match="exit code 7$"):
        go(tmp_path, "import os; os._exit(7)\n")


def test_a_ray_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    # given a `ray start` that ends with a traceback
    words = LONG + "raise ConnectionError('the node timed out during startup')\n"
    info = ServiceInfo("s", [], "http://127.0.0.1:2", "127.0.0.1:1", "data", temp_dir=str(tmp_path))
    with pytest.raises(RayDidNotStart) as raised:
        start_head(info, environment(tmp_path, words))
    said = str(raised.value)
    assert "\n" not in said and "ConnectionError: the node timed out during startup" in said
    assert (tmp_path / START_LOG).read_text().count("Ray says much") == 60


def test_the_last_line_with_anything_on_it() -> None:
    assert last_line("a\nb \n\n  \n") == "b"
    assert last_line("") == ""
    assert len(last_line("x" * 5_000)) == 400
