"""Failed jobs, grouped by what went wrong. Pure; kept up to date as jobs fail, are revived, are retired.

Two failures are alike if the same task failed with the same type of error at the same place: the last frame
of its traceback, without the line's number. Where there is no traceback (a timeout, a lost worker) the
message counts instead, without its numbers, so that "killed after 3.1 s" and "killed after 2.9 s" are one.

Every failed job is in exactly one group, so the groups' sizes add up to the count of failed jobs. Groups are
bounded: what fails in yet another way when there are `GROUPS_MAX` of them goes to the group `other`.
"""

from __future__ import annotations

import hashlib
import heapq
import re

from .jobs import ErrorInfo, Job, Outcome, State

GROUPS_MAX = 1_000
OTHER = "other"

_numbers = re.compile(r"0x[0-9a-fA-F]+|[0-9a-fA-F-]{32,36}|[0-9]+(\.[0-9]+)?")
_TELLS = {Outcome.LOST: "the worker, or its machine, is gone"}
_line = re.compile(r", line \d+")


class FailureGroups:
    """fingerprint -> the failed jobs of that kind, in the order in which they failed."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[bytes, Job]] = {}

    def add(self, job: Job) -> None:
        """A job has failed."""
        fingerprint = fingerprint_of(job)
        if fingerprint not in self._groups and len(self._groups) >= GROUPS_MAX:
            fingerprint = OTHER
        self._groups.setdefault(fingerprint, {})[job.id] = job

    def drop(self, job: Job) -> None:
        """A failed job is revived or retired. Called before its state changes; others are ignored."""
        if job.state is not State.FAILED:
            return
        for fingerprint in (fingerprint_of(job), OTHER):
            group = self._groups.get(fingerprint)
            if group is not None and group.pop(job.id, None) is not None:
                if not group:
                    del self._groups[fingerprint]
                return

    def of(self, fingerprint: str) -> dict[bytes, Job]:
        return self._groups.get(fingerprint, {})

    def all(self) -> list[dict[bytes, Job]]:
        return list(self._groups.values())

    def largest(self, count: int) -> list[tuple[str, dict[bytes, Job]]]:
        return heapq.nlargest(count, self._groups.items(), key=lambda item: len(item[1]))

    def __len__(self) -> int:
        return len(self._groups)


def error_of(job: Job) -> ErrorInfo:
    """Why a job failed: its last attempt's error, or how that attempt ended if it left none."""
    history = job.details.history if job.details is not None else []
    if not history:
        return ErrorInfo("unknown", "")
    last = history[-1]
    return last.error or ErrorInfo(last.outcome.value, _TELLS.get(last.outcome, ""))


def place_of(error: ErrorInfo) -> str:
    """The last frame of a traceback: file and function, without the line's number."""
    start = error.traceback.rfind('File "')
    if start < 0:
        return ""
    return _line.sub("", error.traceback[start : error.traceback.find("\n", start)].strip())


def fingerprint_of(job: Job) -> str:
    error = error_of(job)
    where = place_of(error) or _numbers.sub("#", error.message[:500])
    text = "\0".join((job.options.task, error.type, where))
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=6).hexdigest()
