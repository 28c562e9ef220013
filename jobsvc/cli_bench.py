"""`jobsvc bench`: the figures of a service, from where one stands."""

from __future__ import annotations

from typing import Annotated

import typer

from .cli_output import JsonOption, UrlOption, client, errors_as_exit_codes, print_json, print_rows, say

ENQUEUE_SECONDS = 60.0


def bench(
    jobs: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many in batches.")] = 50_000,
    callers: Annotated[int, typer.Option(min=1, max=256, help="Callers of single jobs.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Of latency, and of single jobs.")] = 15.0,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Latency, durable enqueues, end to end, and what S3 would cost. Its jobs go through the real service."""
    from .bench import measure

    with errors_as_exit_codes():
        figures = measure(lambda: client(url, ENQUEUE_SECONDS), jobs, callers, seconds, say)
        if json:
            print_json(figures)
        else:
            rows = ((each.name, f"{each.value:,.4g}", each.unit, each.how) for each in figures)
            print_rows(("figure", "value", "unit", "measured by"), rows)
