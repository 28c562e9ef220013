"""Jobs whose task is gone: they were right when they were taken, and no module has their task any more.

`up` says so, because it is then that modules change, and somebody looks. It asks the service that has just
come up, for a moment: of a long queue it sees the end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence

from .client import Client
from .errors import JobsvcError

STATES = ("queued", "scheduled")
LOOK_SECONDS = 2.0
PAGE_JOBS = 500
PAGES_MAX = 10


def words_about_gone_tasks(urls: Sequence[str], token: str | None, known: Collection[str]) -> list[str]:
    """A line for each task that jobs wait for and that is not known."""
    try:
        with Client(list(urls), token=token, deadline_seconds=LOOK_SECONDS) as client:
            waiting, all_seen = _tasks_waited_for(client)
    except JobsvcError as error:
        return [f"whether jobs wait for tasks that are gone could not be seen: {error}"]
    least = "" if all_seen else "at least "
    return [
        f"task {task!r} is in no module that was given, and jobs wait for it ({least}{count}): they go"
        f" on waiting; bring it back, or cancel them (jobsvc cancel --task {task} --state queued)"
        for task, count in sorted(waiting.items())
        if task not in known
    ]


def _tasks_waited_for(client: Client) -> tuple[Counter[str], bool]:
    """How many of the jobs seen have which task, and whether all of them were seen."""
    found: Counter[str] = Counter()
    until = time.monotonic() + LOOK_SECONDS
    for state in STATES:
        cursor = None
        for _ in range(PAGES_MAX):
            page = client.get("/v1/jobs", state=state, limit=PAGE_JOBS, cursor=cursor)
            # a function that came with its job is in no module, and needs none
            found.update(job["task"] for job in page["jobs"] if job["content"] != "pickle")
            cursor = page["cursor"]
            if cursor is None:
                break
            if time.monotonic() > until:
                return found, False
        else:
            return found, False
    return found, True
