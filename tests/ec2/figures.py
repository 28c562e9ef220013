"""The README's table of scenarios, made of what the tests wrote down.

    JOBSVC_EC2_FIGURES=FILE make test-ec2
    python -m tests.ec2.figures FILE            # prints the README with its table made anew
    python -m tests.ec2.figures FILE --write    # into the README

Of a scenario that was run twice, the later run counts. A row of a scenario that FILE does not have stays.
A ` *` behind a scenario, which the README explains, goes with the row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.s3_server import REPOSITORY

from .scenario import Figures, describe_measured

HEAD = "| what happens | jobs accepted | lost |"


def row(figures: Figures) -> str:
    pause = f"{figures.longest_pause_seconds:.1f} s" if figures.longest_pause_seconds else "–"
    cells = (
        figures.scenario,
        f"{figures.accepted:,}",
        figures.lost,
        figures.finished_twice,
        pause,
        describe_measured(figures.measured),
    )
    return f"| {' | '.join(map(str, cells))} |"


def with_rows(text: str, made: dict[str, Figures]) -> str:
    """The text with its table's rows in their order; scenarios that it does not have come last."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(HEAD)) + 2
    last = next(number for number in range(first, len(lines)) if not lines[number].startswith("|"))
    left = dict(made)
    rows = []
    for line in lines[first:last]:
        figures = left.pop(line.split(" | ")[0].removeprefix("| ").removesuffix(" *"), None)
        rows.append(line if figures is None else row(figures))
    rows += map(row, left.values())
    return "\n".join([*lines[:first], *rows, *lines[last:], ""])


def read(path: Path) -> dict[str, Figures]:
    found: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return {each["scenario"]: Figures(**each) for each in found}


def main() -> None:
    parser = argparse.ArgumentParser(description="The README's table of scenarios.")
    parser.add_argument("file", type=Path, help="as written by the tests: JOBSVC_EC2_FIGURES")
    parser.add_argument("--write", action="store_true", help="into the README")
    options = parser.parse_args()
    readme = REPOSITORY / "README.md"
    text = with_rows(readme.read_text(), read(options.file))
    if options.write:
        readme.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
