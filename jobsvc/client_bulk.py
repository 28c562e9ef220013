"""One action on all jobs that match: slice after slice, each under a key of its own, until none is left.

The service does as much as it can in a second and says where it stopped. So whoever asks can show how far it
is, or stop; what was done stays done, and the same call again goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec


class _Service(Protocol):
    def request(self, method: str, path: str, *, content: bytes, headers: Mapping[str, str]) -> Any: ...


def change_matching(
    service: _Service,
    action: str,
    where: Mapping[str, str | None],
    *,
    dry_run: bool = False,
    below: str | None = None,
    on_count: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """`cancel` or `retry`; returns how many were changed, or would be, and the ids of the first few.

    `below` is the `top` of an earlier dry run: what came after it is left alone. Raises InvalidRequest if the
    filters say nothing.
    """
    asked: dict[str, Any] = {name: value for name, value in where.items() if value is not None}
    asked["dry_run"] = dry_run
    done: dict[str, Any] = {"action": action, "dry_run": dry_run, "count": 0, "ids": [], "top": below}
    cursor = below
    while True:
        body = msgspec.json.encode(asked if cursor is None else {**asked, "cursor": cursor})
        answer = service.request(
            "POST", f"/v1/jobs:{action}", content=body, headers={"Content-Type": "application/json"}
        )
        part: dict[str, Any] = msgspec.json.decode(answer.content)
        done["count"] += part["count"]
        done["ids"] = done["ids"] or part["ids"]
        done["top"] = done["top"] or part["top"]
        on_count(done["count"])
        cursor = part["cursor"]
        if cursor is None:
            return done
