"""How often objects are put: shares of one budget.

S3 bills the PUT, so the PUTs of a service on S3 are `record_interval_seconds` apart on average, or more,
however many jobs there are. The leader pays for everybody: each PUT that a replica or a worker made since it
last spoke delays the next record by one interval. So that records keep coming, the others have limits of
their own: all replicas together make a fifth of the PUTs, all workers together another fifth, and the journal
uses whatever these leave. What waits for its turn travels together, so a limit on PUTs is none on jobs.

A pace is a token bucket: a few PUTs may follow at once on a quiet time, so that a rare one never waits.
"""

from __future__ import annotations

SHARE = 0.2  # of the replicas together, and of the workers together
BURST = 3
WORKER_INTERVAL_SECONDS_MAX = 5.0  # with so many workers that this is not enough, the budget is exceeded


class PutPace:
    """When the next PUT may be made. Times are of one monotonic clock."""

    def __init__(self, interval_seconds: float = 0.0) -> None:
        self.interval_seconds = interval_seconds
        self._paid_until = float("-inf")
        self._made = 0

    def wait_seconds(self, now: float) -> float:
        """How long the next PUT has to wait; 0 if it may be made now."""
        return max(0.0, self._paid_until - now)

    def note_put(self, now: float) -> None:
        """One is made now."""
        self._made += 1
        earliest = now - BURST * self.interval_seconds
        self._paid_until = max(self._paid_until, earliest) + self.interval_seconds

    def take_made(self) -> int:
        """PUTs since this was last asked."""
        made, self._made = self._made, 0
        return made

    def put_back(self, made: int) -> None:
        """Whoever was to be told has not heard of these."""
        self._made += made


def replica_interval_seconds(put_interval_seconds: float, replicas: int) -> float:
    """For one of the replicas, where the service's PUTs are to be so far apart; 0: no limit."""
    return put_interval_seconds * max(replicas, 1) / SHARE


def worker_interval_seconds(put_interval_seconds: float, workers: int) -> float:
    """For one of so many workers."""
    return min(put_interval_seconds * max(workers, 1) / SHARE, WORKER_INTERVAL_SECONDS_MAX)
