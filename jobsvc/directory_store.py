"""The store in a local directory: same rules as S3, with the file system's own tools.

    ROOT/objects/<key>              one file per object, complete and durable from the moment it is visible
    ROOT/temporary/<session>/<n>    what a living process is writing

A put writes a temporary file, fsyncs it, and *links* it to its name. A hard link fails if the name
exists, whoever made it, so it is the exclusive create; a rename would overwrite. Then the folder is
fsynced, because a name that is not on disk is not there after a power cut.

Three places where this could go wrong quietly, and what is done:

- EXISTS must mean durable too, since the caller compares bytes and then believes. The other writer may
  stand between its link and its fsync, so the folder is fsynced before EXISTS is answered.
- The folder's own name must be durable. Folders are opened once, their parents fsynced, and the open
  descriptor is kept. Links are made relative to the descriptor: if another process has removed the empty
  folder meanwhile, the link fails, and a folder of the same name is opened anew. A descriptor that can
  still be linked into is therefore one whose path is on disk.
- After a failed fsync of a folder the kernel may forget what it could not write, and the next fsync would
  say "fine". So the first failure ends all puts of this process: UNKNOWN, until it is started again.
  A failed fsync of a temporary file is harmless: the retry writes a new one.

Two processes may share a directory. Each locks its own session folder (flock: the kernel lets go when
the process dies), and a start removes only sessions that nobody locks.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import shutil
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from .errors import InvalidRequest, StoreUnfit
from .object_store import (
    Keys,
    PutOutcome,
    StoreError,
    Warnings,
    check_key,
    check_prefix,
    check_range,
    new_request_counts,
    prove_exclusive_create,
)

T = TypeVar("T")

THREADS = 4
DELETES_IN_A_ROW_MAX = 1_000  # for so long a thread is taken from puts
OPEN_FOLDERS_MAX = 64
LINK_TRIES = 20  # each lost one means that another process removed the folder in that very moment
FOLDER_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR)
REFUSED_FOR_GOOD = (  # no access, or a file system without hard links
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EXDEV,
)
RISKY_FILE_SYSTEMS = {
    "nfs": "fsync and hard links depend on the server, and locks on its lock manager",
    "nfs4": "fsync and hard links depend on the server, and locks on its lock manager",
    "cifs": "hard links and fsync depend on the server",
    "overlay": "a container's own layer is deleted with the container",
    "tmpfs": "it is memory: nothing survives a restart of the machine",
    "ramfs": "it is memory: nothing survives a restart of the machine",
}


class DirectoryObjectStore:
    """Objects as files under `root`, which is made if it is not there."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.requests = new_request_counts()
        self._root = Path(root).absolute()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="directory-store")
        self._names = itertools.count()
        self._sync_failed = False
        self.put_failure = ""
        try:
            _make_durable_path(self._root / "objects")
            _make_durable_path(self._root / "temporary")
            _sync_folder(self._root)  # an earlier process may have died between making and syncing
            _remove_dead_sessions(self._root / "temporary")
            self._session = _Session(self._root / "temporary")
            self._folders = _Folders(self._root / "objects", self._sync)
        except OSError as error:
            raise StoreUnfit(f"{self._root} cannot be used as a store: {error}") from error

    def close(self) -> None:
        """End the threads, after what they are doing. The store is of no use afterwards."""
        self._threads.shutdown(wait=True)
        self._session.remove()

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        check_key(key)
        self.requests["put"] += 1
        return await self._in_thread(lambda: self._put_new(key, data))

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes | None:
        check_key(key)
        check_range(offset, length)
        self.requests["get"] += 1
        return await self._in_thread(lambda: self._get(key, offset, length))

    async def list(self, prefix: str) -> Keys:
        check_prefix(prefix)
        self.requests["list"] += 1
        return await self._in_thread(lambda: self._list(prefix))

    async def delete(self, key: str) -> None:
        check_key(key)
        self.requests["delete"] += 1
        await self._in_thread(lambda: self._delete(key))

    async def delete_many(self, keys: Keys) -> None:
        for key in keys:
            check_key(key)
        for start in range(0, len(keys), DELETES_IN_A_ROW_MAX):
            self.requests["delete"] += 1
            await self._in_thread(partial(self._delete_all, keys[start : start + DELETES_IN_A_ROW_MAX]))

    async def probe(self) -> Warnings:
        await prove_exclusive_create(self)
        return await self._in_thread(self._warnings)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # One hop for the whole operation. A cancelled caller does not stop the thread: the put may land.
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # --- in a thread ----------------------------------------------------------------------------

    def _put_new(self, key: str, data: bytes) -> PutOutcome:
        if self._sync_failed:
            return PutOutcome.UNKNOWN
        temporary = self._session.path / str(next(self._names))
        try:
            _write_durably(temporary, data)
            outcome = self._link(temporary, key)
            self.put_failure = (
                "" if outcome is not PutOutcome.UNKNOWN else "its folder is removed again and again"
            )
            return outcome
        except OSError as error:
            if error.errno in FOLDER_IN_THE_WAY:
                raise InvalidRequest(
                    f"{key!r} is or needs a folder where there is an object", "key"
                ) from error
            if error.errno in REFUSED_FOR_GOOD:
                raise StoreUnfit(f"{self._root} cannot be written: {error}") from error
            self.put_failure = f"{self._root}: {error.strerror or error}"
            return PutOutcome.UNKNOWN  # disk full, input/output error, no more descriptors
        finally:
            _unlink_if_there(temporary)

    def _link(self, temporary: Path, key: str) -> PutOutcome:
        parent, _, name = key.rpartition("/")
        for _ in range(LINK_TRIES):
            try:
                folder = self._folders.open(parent)
                os.link(temporary, name, dst_dir_fd=folder.descriptor, follow_symlinks=False)
            except FileNotFoundError:
                self._folders.forget(parent)
                continue
            except FileExistsError:
                self._require_object(folder, name)
                self._sync(folder)
                return PutOutcome.EXISTS
            self._sync(folder)
            return PutOutcome.CREATED
        return PutOutcome.UNKNOWN

    def _require_object(self, folder: _Folder, name: str) -> None:
        try:
            found = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return  # deleted since: it did exist when the link was refused
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "a folder has this name", name)

    def _sync(self, folder: _Folder) -> None:
        try:
            os.fsync(folder.descriptor)
        except OSError:
            self._sync_failed = True
            raise

    def _get(self, key: str, offset: int, length: int | None) -> bytes | None:
        try:
            descriptor = os.open(self._folders.path / key, os.O_RDONLY | os.O_CLOEXEC)
            with open(descriptor, "rb", buffering=0) as file:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    return None
                end = found.st_size if length is None else min(found.st_size, offset + length)
                return _read_range(file.fileno(), offset, end)
        except OSError as error:
            if error.errno in (errno.ENOENT, *FOLDER_IN_THE_WAY):
                return None
            raise _read_failure(f"get {key}", error) from error

    def _list(self, prefix: str) -> Keys:
        folder = prefix.rpartition("/")[0]
        try:
            return sorted(key for key in _keys_below(self._folders.path, folder) if key.startswith(prefix))
        except OSError as error:
            raise _read_failure(f"list {prefix}", error) from error

    def _delete(self, key: str) -> None:
        # No fsync: an object that comes back after a power cut is the same object, to be deleted again.
        try:
            os.unlink(self._folders.path / key)
        except OSError as error:
            if error.errno in (errno.ENOENT, *FOLDER_IN_THE_WAY):
                return
            raise _read_failure(f"delete {key}", error) from error
        self._folders.remove_empty(key.rpartition("/")[0])

    def _delete_all(self, keys: Keys) -> None:
        for key in keys:
            self._delete(key)

    def _warnings(self) -> Warnings:
        kind = _file_system_of(self._root)
        if kind not in RISKY_FILE_SYSTEMS:
            return []
        return [f"{self._root} is on {kind}: {RISKY_FILE_SYSTEMS[kind]}"]


class _Folder:
    """An open directory. Closed when the last thread that uses it lets go."""

    descriptor: int

    def __init__(self, path: str, parent: _Folder | None) -> None:
        where = None if parent is None else parent.descriptor
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=where)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # not so when the open failed
            os.close(self.descriptor)


class _Folders:
    """The folders below `objects/` that were used last, each with a path that is known to be on disk."""

    def __init__(self, path: Path, sync: Callable[[_Folder], None]) -> None:
        self.path = path
        self._sync = sync
        self._top = _Folder(str(path), None)
        self._open: OrderedDict[str, _Folder] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, folder: str) -> _Folder:
        """Raises FileNotFoundError when an ancestor vanished meanwhile; it is forgotten then."""
        if not folder:
            return self._top
        with self._lock:
            known = self._open.get(folder)
            if known is not None:
                self._open.move_to_end(folder)
                return known
        parent_name, _, name = folder.rpartition("/")
        parent = self.open(parent_name)
        try:
            opened = _make_and_open(parent, name)
        except FileNotFoundError:
            self.forget(parent_name)
            raise
        self._sync(parent)
        with self._lock:
            self._open[folder] = opened
            if len(self._open) > OPEN_FOLDERS_MAX:
                self._open.popitem(last=False)
        return opened

    def forget(self, folder: str) -> None:
        with self._lock:
            self._open.pop(folder, None)

    def remove_empty(self, folder: str) -> None:
        """Remove a folder and its parents as far as they are empty: a folder per job would add up."""
        while folder:
            self.forget(folder)
            try:
                os.rmdir(self.path / folder)
            except OSError:
                return  # not empty, which is the usual case, or gone
            folder = folder.rpartition("/")[0]


class _Session:
    """This process's folder for temporary files, locked for as long as the process lives."""

    def __init__(self, parent: Path) -> None:
        while True:
            self.path = Path(tempfile.mkdtemp(dir=parent))
            self._lock = _lock_folder(self.path)
            if self._lock is not None:
                return
            # Another process that starts just now took the unlocked folder for a dead one's: make a new one.

    def remove(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


def _remove_dead_sessions(parent: Path) -> None:
    for entry in list(os.scandir(parent)):
        descriptor = _lock_folder(Path(entry.path))
        if descriptor is not None:
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(descriptor)


def _lock_folder(path: Path) -> int | None:
    """The descriptor that holds the lock, or None if another process has it or the folder is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _make_and_open(parent: _Folder, name: str) -> _Folder:
    try:
        os.mkdir(name, dir_fd=parent.descriptor)
    except FileExistsError:
        pass
    return _Folder(name, parent)


def _make_durable_path(path: Path) -> None:
    if path.is_dir():
        return
    _make_durable_path(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        pass  # another process was faster; a file of that name fails when the folder is used
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_durably(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink_if_there(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # what stays is removed with the session; the put's outcome must not depend on it


def _read_range(descriptor: int, offset: int, end: int) -> bytes:
    pieces: list[bytes] = []
    while offset < end:
        piece = os.pread(descriptor, end - offset, offset)
        if not piece:
            raise OSError(errno.EIO, "the file is shorter than it was")
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def _keys_below(objects: Path, folder: str) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(objects / folder))
        except (FileNotFoundError, NotADirectoryError):
            continue  # never made, or removed while we walk
        for entry in entries:
            key = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(key)
            else:
                yield key


def _read_failure(what: str, error: OSError) -> StoreError | StoreUnfit:
    if error.errno in REFUSED_FOR_GOOD:
        return StoreUnfit(f"{what}: {error}")
    return StoreError(f"{what}: {error}")


def _file_system_of(path: Path) -> str:
    """Type of the file system that holds `path`; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    real = str(path.resolve())
    for line in lines:
        fields = line.split(" ")
        point = fields[1].encode().decode("unicode_escape").rstrip("/")  # blanks are written as \040
        if (real == point or real.startswith(point + "/")) and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind
