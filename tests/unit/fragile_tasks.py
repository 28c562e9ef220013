"""Tasks of a module that can be imported or not, as a file says whose path is in FRAGILE."""

from __future__ import annotations

import os
import time
from pathlib import Path

from jobsvc import task

_how = Path(os.environ["FRAGILE"])
if _how.exists():
    if _how.read_text() == "slow":
        while _how.exists():
            time.sleep(0.02)
    elif _how.read_text() == "exit":
        os._exit(7)
    else:
        raise ConnectionError("no database")


@task
def work(value: object = None) -> object:
    return value


@task
def leave(code: int) -> None:
    os._exit(code)
