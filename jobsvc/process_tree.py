"""The processes that a job started: finding them, weighing them, ending them.

A job's processes are the job process and all its descendants: it is a subreaper, so orphans among them
become its children. Those that outlive it become the worker's, which is one too. There they are known by
their session, or by the token of their job process: whoever that started has it in the environment, whoever
it forked maps the board, whose name ends in the token. A process that did all of it, changed its session,
cleared its environment, ran another program, and outlived a job process that died in between two looks,
cannot be told from one that was never ours.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

TOKEN_VARIABLE = "JOBSVC_JOB_PROCESS"
_PR_SET_CHILD_SUBREAPER = 36
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children instead of init's."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot become a subreaper")


def children_of(pid: int) -> list[int]:
    """Direct children, from /proc where the kernel lists them there."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except FileNotFoundError:
        if os.path.exists("/proc/self/task") and os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return found  # the process is gone
        return _children_by_parent(pid)
    except ProcessLookupError:
        pass
    return found


def _children_by_parent(pid: int) -> list[int]:
    """For kernels that do not list children: of all processes, those with this parent."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1]
        except (OSError, IndexError):
            continue  # it has ended
        if int(parent) == pid:
            found.append(int(name))
    return found


def descendants_of(pid: int) -> list[int]:
    found: list[int] = []
    waiting = children_of(pid)
    while waiting:
        each = waiting.pop()
        found.append(each)
        waiting += children_of(each)
    return found


class ProcessTree:
    """All processes of one job process. `token` is the value of `TOKEN_VARIABLE` that it was given."""

    def __init__(self, pid: int, token: str) -> None:
        self._pid = pid
        self._token = token.encode()

    def members(self) -> list[int]:
        """The job process's descendants and its strays, without the job process itself."""
        found = descendants_of(self._pid)
        for each in self._strays():
            found.append(each)
            found += descendants_of(each)
        return found

    def outgrows(self, bytes_max: int) -> int | None:
        """The bytes of memory that they use together, if that is more than this. Shared pages count once.

        To tell shared pages apart is dear, so that is done only where it decides.
        """
        pids = [self._pid, *self.members()]
        if sum(map(_resident_bytes, pids)) <= bytes_max:
            return None
        used = sum(map(_proportional_bytes, pids))
        return used if used > bytes_max else None

    def signal_all(self, number: signal.Signals) -> None:
        """To the whole group at once, then to each one that may have left it."""
        members = self.members()  # while their parents are there to tell
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            pass  # the group is empty
        for each in {*members, *self.members()}:
            try:
                if os.getpgid(each) != self._pid:
                    os.kill(each, number)
            except ProcessLookupError:
                continue  # it has ended meanwhile

    def living_members(self) -> list[int]:
        """Members that still run. Ended ones that are this process's to bury are buried."""
        living = []
        for each in self.members():
            if _is_zombie(each):
                _bury(each)
            else:
                living.append(each)
        return living

    def _strays(self) -> list[int]:
        return [each for each in children_of(os.getpid()) if each != self._pid and self._is_ours(each)]

    def _is_ours(self, pid: int) -> bool:
        try:
            if os.getsid(pid) == self._pid:
                return True
            if self._token in Path(f"/proc/{pid}/environ").read_bytes():
                return True
            return self._token in Path(f"/proc/{pid}/maps").read_bytes()
        except OSError:
            return False  # it has ended, or it belongs to someone else


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0  # it has ended


def _proportional_bytes(pid: int) -> int:
    """As `_resident_bytes`, but of a page that n processes share it counts the nth part."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, IndexError):
        pass  # it has ended, or this kernel does not tell
    return _resident_bytes(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):
        return True


def _bury(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # not this process's child: its own parent will
