"""No queue at all: W2 by two processes that have half of the arguments each."""

from __future__ import annotations

import multiprocessing
import time

from .. import work
from .peer import Peer, Say

PROCESSES = 2
JOBS = 10_000


class Driver(Peer):
    def extras(self, say: Say, scale: float) -> None:
        """Timed between two barriers, so that the start of processes does not count."""
        count = int(JOBS * scale) // PROCESSES
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(PROCESSES + 1)
        processes = [
            context.Process(target=_hash_all, args=(barrier, range(first, first + count)))
            for first in range(0, count * PROCESSES, count)
        ]
        for process in processes:
            process.start()
        barrier.wait()
        began = time.perf_counter()
        barrier.wait()
        seconds = time.perf_counter() - began
        for process in processes:
            process.join()
        say("w2_end_to_end", count * PROCESSES / seconds, "jobs/s", jobs=count * PROCESSES)


def _hash_all(barrier: multiprocessing.synchronize.Barrier, numbers: range) -> None:
    arguments = [work.argument(number) for number in numbers]
    barrier.wait()
    for each in arguments:
        work.sha_of(each)
    barrier.wait()
