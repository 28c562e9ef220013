"""Measure a fresh service: `python -m benchmarks [--store directory|s3] [--only NAME…] [--json FILE]`.

Each figure is a JSON line on stdout and a row of the table at the end, with what it ran on. Services are
started on free ports in folders of their own and ended afterwards.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from jobsvc import service
from jobsvc.settings import PoolSettings, Settings

from . import figures
from .figures import Bench, Figure
from .machine import cpu


def machine() -> str:
    return f"{cpu()}, Python {platform.python_version()}"


def start(folder: Path, data: str, endpoint: str | None, **limits: Any) -> Bench:
    settings = Settings(
        data=data,
        s3_endpoint_url=endpoint,
        tasks=("benchmarks.bench_tasks",),
        pools={"default": PoolSettings(min_workers=2, max_workers=2)},
        **limits,
    )
    run_dir = folder / "run"
    info = service.up(settings, run_dir=run_dir, say=lambda _: None)
    return Bench(settings, run_dir, info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=["directory", "s3"], default="directory")
    parser.add_argument("--only", nargs="*", choices=sorted(figures.ALL), default=sorted(figures.ALL))
    parser.add_argument("--sustained-seconds", type=float, default=figures.SUSTAINED_SECONDS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[Figure] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobsvc-bench-")))
        data, endpoint = str(folder / "data"), None
        if options.store == "s3":
            from tests.s3_server import running_s3

            server = stack.enter_context(running_s3())
            data, endpoint = server.settings("bench").data, server.endpoint_url
        bench: Bench | None = None
        for name in figures.ALL:
            if name not in options.only:
                continue
            if bench is None or name == "sustained":  # which has limits, and so a service, of its own
                if bench is not None:
                    service.down(run_dir=bench.run_dir, say=lambda _: None)
                own = folder / name
                own.mkdir()
                limits = figures.SMALL_LIMITS if name == "sustained" else {}
                bench = start(own, f"{data}-{name}", endpoint, **limits)
                bench.sustained_seconds = options.sustained_seconds
                run_dir = bench.run_dir
                stack.callback(lambda run_dir=run_dir: service.down(run_dir=run_dir, say=lambda _: None))
            for figure in figures.ALL[name](bench):
                figure.store, figure.machine = options.store, machine()
                found.append(figure)
                line = msgspec.json.encode(figure).decode()
                print(line, flush=True)
                if options.json:
                    with options.json.open("a") as lines:
                        lines.write(line + "\n")
    table = Table("figure", "value", "unit", "notes", title=f"{options.store} store; {machine()}")
    for figure in found:
        table.add_row(figure.name, f"{figure.value:,.2f}", figure.unit, figure.notes)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
