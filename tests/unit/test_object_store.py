"""The contract of a store, held by all of them: memory, directory, and S3 by two servers.

ministack is always there. radosgw is an independent second opinion: `tests/radosgw.sh` boots it, and
JOBSVC_TEST_RADOSGW_URL points here.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobsvc.errors import InvalidRequest, StoreUnfit
from jobsvc.object_store import MemoryObjectStore, ObjectStore, PutOutcome, check_key
from jobsvc.s3_store import open_store
from jobsvc.settings import Settings, encode_settings
from tests.s3_server import REPOSITORY, S3Server, running_s3, s3_credentials

CREATED, EXISTS = PutOutcome.CREATED, PutOutcome.EXISTS
MIB = 1024 * 1024
prefixes = (f"contract-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(scope="module")
def radosgw() -> Iterator[S3Server]:
    url = os.environ.get("JOBSVC_TEST_RADOSGW_URL")
    if not url:
        pytest.skip("JOBSVC_TEST_RADOSGW_URL is not set; tests/radosgw.sh says how")
    with s3_credentials():
        server = S3Server(url)
        server.make_bucket()
        yield server


@pytest.fixture(
    params=["memory", "directory", "ministack", pytest.param("radosgw", marks=pytest.mark.radosgw)]
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Settings | None:
    """Where this test's store is; None for memory, which is nowhere else."""
    if kind == "memory":
        return None
    if kind == "directory":
        return Settings(data=str(tmp_path / "data"))
    server: S3Server = request.getfixturevalue("s3" if kind == "ministack" else "radosgw")
    return server.settings(f"{next(prefixes)}-{os.getpid()}/deep")


@pytest.fixture
def store(settings: Settings | None) -> Iterator[ObjectStore]:
    if settings is None:
        yield MemoryObjectStore()
        return
    opened = open_store(settings)
    yield opened
    opened.close()  # type: ignore[attr-defined]


def test_what_was_put_is_read_back(store: ObjectStore) -> None:
    async def story() -> None:
        assert await store.put_new("log/0000000000/000000000001", b"bytes") is CREATED
        assert await store.get("log/0000000000/000000000001") == b"bytes"
        assert await store.get("log/0000000000/000000000002") is None
        assert await store.get("log") is None  # a folder, if anything

    asyncio.run(story())


def test_a_key_that_exists_is_neither_created_nor_changed(store: ObjectStore) -> None:
    async def story() -> None:
        assert await store.put_new("a", b"first") is CREATED
        assert await store.put_new("a", b"second") is EXISTS
        assert await store.put_new("a", b"first") is EXISTS
        assert await store.get("a") == b"first"

    asyncio.run(story())


def test_a_deleted_key_can_be_created_again(store: ObjectStore) -> None:
    async def story() -> None:
        await store.put_new("outbox/w/1", b"first")
        await store.delete("outbox/w/1")
        await store.delete("outbox/w/1")
        await store.delete("never/was/there")
        assert await store.get("outbox/w/1") is None
        assert await store.list("outbox/") == []
        assert await store.put_new("outbox/w/1", b"second") is CREATED
        assert await store.get("outbox/w/1") == b"second"

    asyncio.run(story())


def test_many_keys_are_deleted_with_few_requests(store: ObjectStore, kind: str) -> None:
    async def story() -> None:
        # given more objects than S3 deletes at once, some of whose names need care in XML
        keys = [f"results/{number:06}" for number in range(1_100)] + ["results/a&b <c>", "results/it's+%2F"]
        for start in range(0, len(keys), 100):
            await asyncio.gather(*(store.put_new(key, b"x") for key in keys[start : start + 100]))
        await store.put_new("results/kept", b"x")
        before = store.requests["delete"]
        # when they go, together with what was never there
        await store.delete_many([*keys, "never/was/there"])
        # then they alone are gone, each 1,000 for one request; and to ask again is no error
        assert await store.list("results/") == ["results/kept"]
        assert kind == "memory" or store.requests["delete"] - before <= 2
        await store.delete_many(keys[:3])
        await store.delete_many([])
        with pytest.raises(InvalidRequest):
            await store.delete_many(["results/kept", "../escape"])
        assert await store.list("results/") == ["results/kept"]

    asyncio.run(story())


def test_of_many_tasks_that_create_one_key_one_wins(store: ObjectStore) -> None:
    async def story() -> None:
        for number in range(10):
            key = f"race/{number}"
            bodies = [bytes([racer]) * 5000 for racer in range(16)]
            outcomes = await asyncio.gather(*(store.put_new(key, body) for body in bodies))
            assert Counter(outcomes) == {CREATED: 1, EXISTS: 15}
            assert await store.get(key) == bodies[outcomes.index(CREATED)]

    asyncio.run(story())


def test_of_several_processes_that_create_one_key_one_wins(settings: Settings | None) -> None:
    if settings is None:
        pytest.skip("memory is one process's own")
    workers, keys = [f"worker-{number}" for number in range(4)], 25
    processes = [_start_process("race", encode_settings(settings), name, str(keys)) for name in workers]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:  # only when all are ready, so that they do race
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outcomes = [process.communicate(timeout=60)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()

    async def stored() -> list[bytes | None]:
        store = open_store(settings)
        return [await store.get(f"race/{number}") for number in range(keys)]

    for number, body in enumerate(asyncio.run(stored())):
        winners = [name for name, said in zip(workers, outcomes, strict=True) if said[number] == "created"]
        assert [name.encode() for name in winners] == [body]


def test_ranges(store: ObjectStore) -> None:
    async def story() -> None:
        await store.put_new("pack", b"0123456789")
        for offset, length in itertools.product((0, 1, 5, 9, 10, 11, 5000), (None, 0, 1, 3, 10, 5000)):
            end = None if length is None else offset + length
            assert await store.get("pack", offset, length) == b"0123456789"[offset:end], (offset, length)
        assert await store.get("missing", 3, 4) is None
        assert await store.get("missing", 3, 0) is None
        for offset, length in ((-1, None), (0, -1)):
            with pytest.raises(InvalidRequest):
                await store.get("pack", offset, length)

    asyncio.run(story())


def test_empty_objects(store: ObjectStore) -> None:
    async def story() -> None:
        assert await store.put_new("empty", b"") is CREATED
        assert await store.put_new("empty", b"x") is EXISTS
        assert await store.get("empty") == b""
        assert await store.get("empty", 0, 5) == b""
        assert await store.get("empty", 3) == b""

    asyncio.run(story())


def test_big_objects(store: ObjectStore) -> None:
    async def story() -> None:
        body = os.urandom(5 * MIB)
        assert await store.put_new("results/big", body) is CREATED
        assert await store.get("results/big") == body
        assert await store.get("results/big", 3 * MIB, 2 * MIB) == body[3 * MIB :]

    asyncio.run(story())


ODD_KEYS = [
    "a b/c  d",
    "100%/%2F%20",
    "plus+and&and=and?and#",
    "~tilde/-dash/_/.hidden",
    "quote'\"<xml>&amp;",
    "UPPER/lower",
    "upper/lower",
    "back\\slash",
    "x" * 200,
    "/".join(["long"] * 100),
]


def test_odd_keys(store: ObjectStore) -> None:
    async def story() -> None:
        for key in ODD_KEYS:
            assert await store.put_new(key, key.encode()) is CREATED, key
        for key in ODD_KEYS:
            assert await store.get(key) == key.encode(), key
        assert await store.list("") == sorted(ODD_KEYS)
        for key in ODD_KEYS:
            await store.delete(key)
        assert await store.list("") == []

    asyncio.run(story())


@pytest.mark.parametrize(
    "key",
    ["", "/", "/a", "a/", "a//b", "..", "a/../b", "./a", "a/.", "ü", "a\nb", "a\0b", "x" * 513, "y" * 201],
)
def test_keys_that_no_store_takes(key: str) -> None:
    with pytest.raises(InvalidRequest):
        check_key(key)


def test_refused_keys_reach_no_store(store: ObjectStore) -> None:
    async def story() -> None:
        for call in (store.get, store.delete, lambda key: store.put_new(key, b"")):
            with pytest.raises(InvalidRequest):
                await call("a/../../b")
        with pytest.raises(InvalidRequest):
            await store.list("../")
        assert not any(store.requests.values())

    asyncio.run(story())


def test_a_list_is_complete_and_in_byte_order(store: ObjectStore) -> None:
    """More keys than S3 puts on one page, and names whose order a folder walk would get wrong."""
    odd = ["log/5-", "log/5/a", "log/5/b", "log/50", "log/5~"]
    many = [f"log/{epoch:010}/{n:012}" for epoch in range(3) for n in range(400)]

    async def story() -> None:
        for start in range(0, len(many), 50):
            await asyncio.gather(*(store.put_new(key, b"") for key in many[start : start + 50]))
        for key in [*odd, "logs/x", "snapshots/1"]:
            await store.put_new(key, b"")
        assert await store.list("log/") == sorted(many + odd)
        assert await store.list("log/0000000001/") == many[400:800]
        assert await store.list("log/0000000001/00000000000") == many[400:410]  # not only whole folders
        assert await store.list("log/5") == odd
        assert await store.list("nothing/here/") == []
        assert len(await store.list("")) == len(many) + len(odd) + 2

    asyncio.run(story())


def test_requests_are_counted(store: ObjectStore) -> None:
    async def story() -> None:
        await store.put_new("a", b"")
        await store.put_new("a", b"")
        await store.get("a")
        await store.list("")
        await store.delete("a")
        assert store.requests == {"put": 2, "get": 1, "list": 1, "delete": 1}

    asyncio.run(story())


def test_the_probe_passes_again_and_again_and_together(store: ObjectStore) -> None:
    async def story() -> None:
        first = await store.probe()
        again = await asyncio.gather(store.probe(), store.probe())
        assert list(again) == [first, first]

    asyncio.run(story())


class OverwritingStore(MemoryObjectStore):
    """What a server does that ignores If-None-Match."""

    def __init__(self, admits: Callable[[bool], PutOutcome]) -> None:
        super().__init__()
        self._admits = admits

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        existed = key in self._objects
        self._objects[key] = data
        return self._admits(existed)


@pytest.mark.parametrize(
    "admits", [lambda existed: CREATED, lambda existed: EXISTS if existed else CREATED], ids=["says", "hides"]
)
def test_the_probe_finds_a_store_that_overwrites(admits: Callable[[bool], PutOutcome]) -> None:
    with pytest.raises(StoreUnfit, match="two leaders"):
        asyncio.run(OverwritingStore(admits).probe())


def _start_process(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.store_process", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
