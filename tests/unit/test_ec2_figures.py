"""The README's table of scenarios, made anew from what tests of a cluster wrote down."""

from __future__ import annotations

from tests.ec2.figures import with_rows
from tests.ec2.scenario import Figures
from tests.s3_server import REPOSITORY

TABLE = """Before

| what happens | jobs accepted | lost | finished twice | longest pause | measured |
|---|---|---|---|---|---|
| a spot notice * | 1 | 0 | 0 | 0.1 s |  |
| `ray down` | 2 | 0 | 0 | – | machines 4 |

After
"""


def test_rows_are_replaced_where_they_are_and_new_ones_come_last() -> None:
    # given a run of one scenario of the table, and of one that is new
    spot = Figures("a spot notice", 1_674, 0, 0, 0.25, {"gone after": 20.4, "machines": 3})
    new = Figures("the head rebooted", 5)
    # when
    text = with_rows(TABLE, {each.scenario: each for each in (new, spot)})
    # then
    assert text.splitlines()[4:7] == [
        "| a spot notice | 1,674 | 0 | 0 | 0.2 s | gone after 20 s, machines 3 |",
        "| `ray down` | 2 | 0 | 0 | – | machines 4 |",
        "| the head rebooted | 5 | 0 | 0 | – |  |",
    ]
    assert text.startswith("Before\n") and text.endswith("\nAfter\n")


def test_the_readme_has_such_a_table() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert with_rows(readme, {}) == readme
