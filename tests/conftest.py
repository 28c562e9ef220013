"""Which lives a simulation plays: other ones in each run, and ten times as many in a long run.

A test that plays lives is marked `lives(count, at_once)` and takes `seeds`, the numbers of some of them. The
first number of a run is drawn; a test's name carries its own, so that a red one can be played again:
`pytest TEST --first-seed NUMBER`.
"""

from __future__ import annotations

import secrets
from typing import Any

import pytest

LONG = 10  # how many times as many lives a long run plays
FIRST_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--first-seed", type=int, default=None, help="the first life of the simulations")
    parser.addoption("--long", action="store_true", help=f"play {LONG} times as many lives")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lives(count, at_once): plays `count` lives, `at_once` in one test")
    given = getattr(config, "workerinput", {}).get("first_seed", config.getoption("--first-seed"))
    config.stash[FIRST_SEED] = secrets.randbelow(10**9) if given is None else given


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """All processes of a run play the lives of that run."""
    node.workerinput["first_seed"] = node.config.stash[FIRST_SEED]


def pytest_report_header(config: pytest.Config) -> str:
    return f"simulations: --first-seed {config.stash[FIRST_SEED]}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("lives")
    if mark is None:
        return
    count, at_once = mark.args
    first = metafunc.config.stash[FIRST_SEED]
    until = first + count * (LONG if metafunc.config.getoption("--long") else 1)
    seeds = [range(start, min(start + at_once, until)) for start in range(first, until, at_once)]
    metafunc.parametrize("seeds", seeds, ids=[str(each.start) for each in seeds])
