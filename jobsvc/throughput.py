"""Jobs finished per second, by queue, over the last minute. Volatile: a new leader begins to count anew."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 60.0
SLOT_SECONDS = 5.0
QUEUES_MAX = 10_000  # in one slot


class Throughput:
    """Counts in slots of a few seconds; times are the event loop's."""

    def __init__(self, now: float) -> None:
        self._began = now
        self._slots: deque[tuple[float, dict[str, int]]] = deque()

    def add(self, queue: str, now: float, jobs: int = 1) -> None:
        if not self._slots or now - self._slots[-1][0] >= SLOT_SECONDS:
            self._slots.append((now, {}))
        counts = self._slots[-1][1]
        if len(counts) >= QUEUES_MAX and queue not in counts:
            return  # so many queues in so few seconds have one job each: nobody looks at their rates
        counts[queue] = counts.get(queue, 0) + jobs

    def per_second(self, now: float) -> dict[str, float]:
        while self._slots and now - self._slots[0][0] > WINDOW_SECONDS:
            self._slots.popleft()
        seconds = max(1.0, min(WINDOW_SECONDS, now - self._began))
        totals: dict[str, float] = {}
        for _, counts in self._slots:
            for queue, count in counts.items():
                totals[queue] = totals.get(queue, 0.0) + count / seconds
        return totals
