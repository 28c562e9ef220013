"""What only a directory can get wrong: half files, dead sessions, folders that come and go, full disks."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobsvc import directory_store
from jobsvc.directory_store import DirectoryObjectStore
from jobsvc.errors import InvalidRequest, StoreUnfit
from jobsvc.object_store import PutOutcome, StoreError
from jobsvc.settings import Settings, encode_settings
from tests.s3_server import REPOSITORY
from tests.store_process import body_of

CREATED, EXISTS, UNKNOWN = PutOutcome.CREATED, PutOutcome.EXISTS, PutOutcome.UNKNOWN


def test_what_a_killed_process_was_told_is_there_and_nothing_is_half(tmp_path: Path) -> None:
    """Given a process that puts in a loop and says what is CREATED, when it is killed with SIGKILL at any
    moment, then every key it said is there, every key that is there is whole, and its temporary files go."""
    for round_number in range(8):
        said = _killed_putter(tmp_path, f"round-{round_number}", after_puts=5 + 7 * round_number)

        async def story(prefix: str, said: list[str]) -> None:
            store = DirectoryObjectStore(tmp_path)
            there = await store.list(f"{prefix}/")
            assert set(said) <= set(there)
            assert len(there) - len(said) <= 1  # the one that it could not say any more
            for key in there:
                assert await store.get(key) == body_of(key)
            assert _temporary_files(tmp_path) == []
            assert len(_sessions(tmp_path)) == 1  # our own
            store.close()

        asyncio.run(story(f"round-{round_number}", said))


def _killed_putter(root: Path, prefix: str, after_puts: int) -> list[str]:
    settings = encode_settings(Settings(data=str(root)))
    command = [sys.executable, "-m", "tests.store_process", "puts", settings, prefix]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(after_puts)]
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().splitlines(keepends=True)
    process.wait()
    return said + [line.strip() for line in rest if line.endswith("\n")]


@pytest.mark.parametrize(
    ("call", "timing", "visible"),
    [
        ("write", "before", False),
        ("write", "after", False),
        ("fsync", "after", False),
        ("link", "before", False),
        ("link", "after", True),
        ("unlink", "before", True),
    ],
)
def test_a_process_killed_at_one_step_of_a_put_leaves_all_or_nothing(
    tmp_path: Path, call: str, timing: str, visible: bool
) -> None:
    settings, key = encode_settings(Settings(data=str(tmp_path))), "log/0"
    command = [sys.executable, "-m", "tests.store_process", "die", settings, key, call, timing]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -signal.SIGKILL

    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        assert _temporary_files(tmp_path) == []
        assert await store.get(key) == (body_of(key) if visible else None)
        assert await store.list("") == ([key] if visible else [])
        assert await store.put_new(key, b"next") is (EXISTS if visible else CREATED)

    asyncio.run(story())


def test_a_start_leaves_a_living_process_its_temporary_files(tmp_path: Path) -> None:
    """Given two stores on one directory, of which one is in the middle of a put, when a third starts,
    then that put still succeeds; after the owner has ended, its session is removed."""

    async def story() -> None:
        first = DirectoryObjectStore(tmp_path)
        linking, go_on = threading.Event(), threading.Event()
        link = first._link

        def slow_link(temporary: Path, key: str) -> PutOutcome:
            linking.set()
            assert go_on.wait(20)
            return link(temporary, key)

        first._link = slow_link  # type: ignore[method-assign]
        put = asyncio.create_task(first.put_new("a", b"bytes"))
        await asyncio.to_thread(linking.wait, 20)
        second = DirectoryObjectStore(tmp_path)
        assert await second.get("a") is None
        assert len(_sessions(tmp_path)) == 2
        go_on.set()
        assert await put is CREATED
        assert await second.get("a") == b"bytes"
        first.close()
        second.close()
        assert _sessions(tmp_path) == []

    asyncio.run(story())


def test_stores_that_start_together_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    stores: list[DirectoryObjectStore] = []
    starting = threading.Barrier(8)

    def start() -> None:
        starting.wait()
        stores.append(DirectoryObjectStore(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def story() -> None:
        outcomes = [await store.put_new(f"k/{n}", b"") for n, store in enumerate(stores)]
        assert outcomes == [CREATED] * 8

    asyncio.run(story())
    assert len(_sessions(tmp_path)) == 8


def test_an_emptied_folder_is_removed_and_can_be_used_again(tmp_path: Path) -> None:
    async def story() -> None:
        store, other = DirectoryObjectStore(tmp_path), DirectoryObjectStore(tmp_path)
        assert await store.put_new("results/job/1", b"a") is CREATED  # `store` keeps the folder open now
        await other.delete("results/job/1")
        assert not (tmp_path / "objects" / "results").exists()
        assert await store.put_new("results/job/1", b"b") is CREATED
        assert await other.get("results/job/1") == b"b"

    asyncio.run(story())


def test_puts_and_removals_of_one_folder_do_not_hurt_each_other(tmp_path: Path) -> None:
    """Given two stores that create and delete in the same folder at once, the folder comes and goes all
    the time, and still every put is CREATED and read back."""

    async def story() -> None:
        stores = [DirectoryObjectStore(tmp_path), DirectoryObjectStore(tmp_path)]

        async def work(store: DirectoryObjectStore, name: str) -> None:
            for number in range(100):
                key = f"logs/job/{name}-{number}"
                assert await store.put_new(key, key.encode()) is CREATED
                assert await store.get(key) == key.encode()
                await store.delete(key)

        await asyncio.gather(*(work(store, f"{n}-{m}") for n, store in enumerate(stores) for m in range(2)))
        assert await stores[0].list("") == []

    asyncio.run(story())


def test_folders_that_are_kept_open_are_bounded(tmp_path: Path) -> None:
    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(directory_store.OPEN_FOLDERS_MAX + 40):
            assert await store.put_new(f"results/{number}/1", b"") is CREATED
        assert len(os.listdir("/proc/self/fd")) - before <= directory_store.OPEN_FOLDERS_MAX + 2

    asyncio.run(story())


def test_a_key_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        await store.put_new("a/b", b"")
        for key in ("a", "a/b/c"):
            with pytest.raises(InvalidRequest):
                await store.put_new(key, b"")
            assert await store.get(key) is None
            await store.delete(key)
        assert await store.list("") == ["a/b"]

    asyncio.run(story())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE])
def test_a_full_or_broken_disk_is_unknown_and_the_next_put_may_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        with monkeypatch.context() as broken:
            broken.setattr(os, "write", _raiser(code))
            assert await store.put_new("a", b"bytes") is UNKNOWN
        assert await store.get("a") is None
        assert _temporary_files(tmp_path) == []
        assert await store.put_new("a", b"bytes") is CREATED

    asyncio.run(story())


def test_after_a_folder_could_not_be_synced_no_put_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost write once. A second fsync that says "fine" would be a false promise."""

    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        assert await store.put_new("log/1", b"") is CREATED
        fsync = os.fsync

        def failing(descriptor: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.EIO, "input/output error")
            fsync(descriptor)

        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", failing)
            assert await store.put_new("log/2", b"bytes") is UNKNOWN
        assert await store.put_new("log/2", b"bytes") is UNKNOWN
        assert await DirectoryObjectStore(tmp_path).put_new("log/2", b"bytes") is EXISTS

    asyncio.run(story())


def test_exists_is_answered_after_the_folder_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer may not have come to its own fsync yet, and EXISTS is believed to be durable."""

    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        await store.put_new("log/1", b"")
        synced: list[str] = []
        fsync = os.fsync

        def watched(descriptor: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", watched)
        assert await store.put_new("log/1", b"other") is EXISTS
        assert synced[-1] == str(tmp_path / "objects" / "log")

    asyncio.run(story())


def test_a_new_folder_is_on_disk_before_its_first_object_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        synced: list[str] = []
        fsync = os.fsync

        def watched(descriptor: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", watched)
        assert await store.put_new("log/1/1", b"") is CREATED
        objects = tmp_path / "objects"
        assert synced[1:] == [str(objects), str(objects / "log"), str(objects / "log" / "1")]
        del synced[:]
        assert await store.put_new("log/1/2", b"") is CREATED
        assert synced[1:] == [str(objects / "log" / "1")]  # the parents once only

    asyncio.run(story())


def test_reads_that_fail_are_store_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        await store.put_new("a", b"bytes")
        for broken_call, call in (
            ("pread", lambda: store.get("a")),
            ("scandir", lambda: store.list("")),
            ("unlink", lambda: store.delete("a")),
        ):
            with monkeypatch.context() as broken:
                broken.setattr(os, broken_call, _raiser(errno.EIO))
                with pytest.raises(StoreError):
                    await call()
        assert await store.get("a") == b"bytes"

    asyncio.run(story())


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM, errno.EOPNOTSUPP])
def test_no_access_and_no_hard_links_are_not_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = DirectoryObjectStore(tmp_path)
    monkeypatch.setattr(os, "link", _raiser(code))
    with pytest.raises(StoreUnfit):
        asyncio.run(store.probe())


def test_a_root_that_cannot_be_made_is_unfit(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreUnfit, match="cannot be used"):
        DirectoryObjectStore(tmp_path / "file" / "data")


def test_the_probe_warns_of_file_systems_that_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryObjectStore(tmp_path)
    for kind, word in (("tmpfs", "memory"), ("nfs4", "locks"), ("overlay", "container")):
        monkeypatch.setattr(directory_store, "_file_system_of", lambda path, kind=kind: kind)
        (warning,) = asyncio.run(store.probe())
        assert word in warning
    monkeypatch.setattr(directory_store, "_file_system_of", lambda path: "ext4")
    assert asyncio.run(store.probe()) == []


def test_the_file_system_of_a_path_is_found() -> None:
    assert directory_store._file_system_of(Path("/proc/self")) == "proc"


def test_the_loop_goes_on_while_the_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        fsync = os.fsync

        def slow(descriptor: int) -> None:
            time.sleep(0.1)
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", slow)
        put = asyncio.create_task(store.put_new("a", b""))
        turns = 0
        while not put.done():
            await asyncio.sleep(0.005)
            turns += 1
        assert turns >= 10

    asyncio.run(story())


def _raiser(code: int) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def _sessions(root: Path) -> list[Path]:
    return list((root / "temporary").iterdir())


def _temporary_files(root: Path) -> list[Path]:
    return [path for session in _sessions(root) for path in session.iterdir()]
