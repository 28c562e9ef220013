"""A disk that is full is named: in the answer, in the status, by the health check; until there is room."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from jobsvc.directory_store import DirectoryObjectStore
from jobsvc.errors import InvalidRequest
from jobsvc.object_store import MemoryObjectStore, PutOutcome
from jobsvc.settings import Settings
from jobsvc.start_checks import check_store

from .http_world import Replica, run

FULL = os.strerror(errno.ENOSPC)


class Disk:
    """Fills a memory store, and makes room again."""

    def __init__(self, store: MemoryObjectStore) -> None:
        self._store = store

    def fill(self) -> None:
        async def put_new(key: str, data: bytes) -> PutOutcome:
            self._store.put_failure = f"/data: {FULL}"
            return PutOutcome.UNKNOWN

        self._store.put_new = put_new  # type: ignore[method-assign]

    def make_room(self) -> None:
        del self._store.put_new
        self._store.put_failure = ""


def test_a_full_disk_is_named_wherever_somebody_looks() -> None:
    async def story(replica: Replica) -> None:
        # given a service whose disk is full
        disk = Disk(replica.pair.store)
        disk.fill()
        # when a job is enqueued
        answer = await replica.http.post("/v1/jobs", json={"task": "jobsvc.echo", "args": [1]})
        # then the answer says why it was not, and that it may be sent again
        assert answer.status_code == 503 and answer.json()["retryable"] is True
        assert FULL in answer.json()["detail"]
        # and so does one whose payload would be an object
        large = await replica.http.post("/v1/jobs", json={"task": "jobsvc.echo", "args": ["x" * 20_000]})
        assert large.status_code == 503 and FULL in large.json()["detail"]
        # and who looks is told
        status = (await replica.http.get("/v1/status")).json()
        assert status["ready"] is False and FULL in status["problem"]
        ready = await replica.http.get("/readyz")
        assert ready.status_code == 503 and FULL in ready.json()["detail"]
        # and nothing of it was taken
        assert replica.pair.store.put_failure

    run(story)


def test_a_leader_says_it_before_it_gives_up_and_goes_on_when_there_is_room() -> None:
    async def story(replica: Replica) -> None:
        disk = Disk(replica.pair.store)
        disk.fill()
        asked = asyncio.create_task(replica.http.post("/v1/jobs", json={"task": "jobsvc.echo", "args": [1]}))
        await asyncio.sleep(7)
        status = (await replica.http.get("/v1/status")).json()
        assert status["leader"] == "manager-a" and FULL in status["problem"]
        disk.make_room()
        answer = await asked
        assert answer.status_code == 202
        await asyncio.sleep(5)
        assert (await replica.http.get("/v1/status")).json()["problem"] is None

    run(story)


def test_a_directory_remembers_why_it_took_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, FULL)

    async def story() -> None:
        store = DirectoryObjectStore(tmp_path)
        with monkeypatch.context() as broken:
            broken.setattr(os, "write", full)
            assert await store.put_new("log/1", b"x") is PutOutcome.UNKNOWN
        assert store.put_failure == f"{tmp_path}: {FULL}"
        # and forgets it with the next one that went well
        assert await store.put_new("log/1", b"x") is PutOutcome.CREATED
        assert store.put_failure == ""
        store.close()

    asyncio.run(story())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("only root may mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that there is."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4_096))
    return filler


def test_a_real_disk_that_is_full_takes_nothing_by_halves_and_goes_on_when_there_is_room(
    small_disk: Path,
) -> None:
    async def story() -> None:
        # given a store on a disk that has room for some objects
        store = DirectoryObjectStore(small_disk / "data")
        assert await store.put_new("log/0", b"a" * 1_000) is PutOutcome.CREATED
        # when the disk is full
        filler = fill(small_disk)
        # then nothing is said to be there that is not, and what is wrong is named
        assert await store.put_new("log/1", bytes(100_000)) is PutOutcome.UNKNOWN
        assert "No space left" in store.put_failure or "full" in store.put_failure
        assert await store.list("log/") == ["log/0"]
        with pytest.raises(InvalidRequest, match="the disk is full"):
            check_store(Settings(data=str(small_disk / "data")))
        # and when there is room again, it goes on
        filler.unlink()
        assert await store.put_new("log/1", bytes(100_000)) is PutOutcome.CREATED
        assert store.put_failure == ""
        assert await store.get("log/1") == bytes(100_000)
        store.close()

    asyncio.run(story())
