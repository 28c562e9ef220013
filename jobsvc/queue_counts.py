"""How many jobs each queue has in each state, and all of them together.

A queue is known while it has a job or is paused. The last job that is retired takes its queue along, so the
names that callers make up are bounded by the jobs that are held.
"""

from __future__ import annotations

from .jobs import TERMINAL, State

_NONE = dict.fromkeys(State, 0)
_LIVE = tuple(state for state in State if state not in TERMINAL)
_ENDED = tuple(state for state in State if state in TERMINAL)

Counts = dict[State, int]


class QueueCounts(dict[str, Counts]):
    """Queue -> state -> jobs. Of a queue that is not known there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.totals = dict(_NONE)  # of all queues

    def __missing__(self, queue: str) -> Counts:
        return dict(_NONE)

    def know(self, queue: str) -> None:
        """From now on there is a queue of this name."""
        if queue not in self:
            self[queue] = dict(_NONE)

    def add(self, queue: str, state: State, jobs: int) -> None:
        """So many jobs more, or fewer, of a queue that is known."""
        self[queue][state] += jobs
        self.totals[state] += jobs

    def move(self, queue: str, before: State, after: State, jobs: int) -> None:
        """So many jobs of a queue are in another state."""
        counts, totals = self[queue], self.totals
        counts[before] -= jobs
        counts[after] += jobs
        totals[before] -= jobs
        totals[after] += jobs

    def is_empty(self, queue: str) -> bool:
        return not any(self[queue].values())

    @property
    def ended(self) -> int:
        """Jobs that have ended, and are still held."""
        return sum(self.totals[state] for state in _ENDED)

    def has_ended(self, queue: str) -> bool:
        """Whether nothing keeps this queue but jobs that have ended."""
        counts = self[queue]
        return any(counts[state] for state in _ENDED) and not any(counts[state] for state in _LIVE)
