"""Virtual time in which the talks of the client's core are driven, and a service that is a function."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from jobsvc.client_core import Answer, Heard, Pause, Route, Send, Step, Talk, Talks, Together


class World:
    """Time, and a service that answers as `serve` says: an answer and when, or None for silence."""

    def __init__(self, serve: Callable[[World, Send], tuple[float, Answer | None]], **more: Any) -> None:
        self.now = 0.0
        self.serve = serve
        self.sent: list[tuple[float, Send]] = []
        more.setdefault("deadline_seconds", 60.0)
        self.talks = Talks(Route(more.pop("urls", ["http://a"])), random=Random(1), **more)

    def run(self, talk: Talk[Any]) -> Any:
        try:
            step = next(talk)
            while True:
                step = talk.send(self._do(step))
        except StopIteration as end:
            return end.value

    def _do(self, step: Step) -> Heard:
        if isinstance(step, Together):
            return Heard(results=[self.run(talk_of(self.now)) for talk_of in step.talks], at=self.now)
        if isinstance(step, Pause):
            self.now += step.seconds
            return Heard(self.now)
        self.sent.append((self.now, step))
        seconds, answer = self.serve(self, step)
        if answer is None or seconds > step.timeout_seconds:
            self.now += min(seconds, step.timeout_seconds)
            return Heard(self.now, failure="silence")
        self.now += seconds
        return Heard(self.now, answer)


def json(document: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, headers, msgspec.json.encode(document))


BUSY = json({"code": "no_leader", "detail": "nobody leads", "retryable": True}, 503, **{"Retry-After": "1"})
