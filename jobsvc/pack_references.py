"""Shared objects and who needs them.

Payloads, results and output that are stored about together share an object, a pack: stores bill requests, not
bytes. So no job owns a pack. It may go when the last job that refers to it has been retired, and the count of
references tells when that is. The counts are not stored; a snapshot's jobs give them again.
"""

from __future__ import annotations

from collections.abc import Iterator

from .jobs import BlobRef, Job


def packs_of(job: Job) -> Iterator[str]:
    """The keys of the packs that a job needs, once for each reference."""
    if type(job.payload) is BlobRef:
        yield job.payload.key
    details = job.details
    if details is None:
        return
    if details.result is not None and details.result.ref is not None:
        yield details.result.ref.key
    for attempt in details.history:
        if attempt.log is not None:
            yield attempt.log.key


class PackReferences(dict[str, int]):
    """Key -> number of references. A key that nothing refers to is not there."""

    def add(self, ref: BlobRef | None) -> None:
        if ref is not None:
            self[ref.key] = self.get(ref.key, 0) + 1

    def add_all_of(self, job: Job) -> None:
        for key in packs_of(job):
            self[key] = self.get(key, 0) + 1

    def drop(self, ref: BlobRef | None) -> None:
        if ref is not None:
            self._drop(ref.key)

    def drop_all_of(self, job: Job) -> None:
        for key in packs_of(job):
            self._drop(key)

    def _drop(self, key: str) -> None:
        self[key] -= 1
        if self[key] == 0:
            del self[key]
