"""A question to a head, and its answer: what they prove, and what they never claim."""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
import time
from pathlib import Path
from random import Random

import pytest

from jobsvc import head_pulse
from jobsvc.faulty_store import FaultyObjectStore
from jobsvc.head_pulse import Pulse, Questions, Sign, ray_answers
from jobsvc.object_store import MemoryObjectStore, ObjectStore, PutOutcome, StoreError

from ..simulation.virtual_loop import run

HEAD = "i-1"


class Pair:
    """A guard and a head with a store between them."""

    def __init__(self, store: ObjectStore | None = None) -> None:
        self.store = store or MemoryObjectStore()
        self.nonces = itertools.count()
        self.gcs_lives = True
        self.pulse = Pulse(self.store, HEAD, self._gcs_answers)
        self.guard = self.new_guard()

    def new_guard(self) -> Questions:
        return Questions(self.store, lambda: f"nonce {next(self.nonces)}")

    async def _gcs_answers(self) -> bool:
        return self.gcs_lives


def test_a_head_that_lives_takes_the_question_away() -> None:
    async def story() -> None:
        pair = Pair()
        assert await pair.guard.look(HEAD) is Sign.ASKED
        assert await pair.guard.look(HEAD) is Sign.ASKED
        await pair.pulse.step()
        # then it has answered once, and is asked again
        assert await pair.guard.look(HEAD) is Sign.ANSWERED
        assert await pair.guard.look(HEAD) is Sign.ASKED

    run(story())


def test_a_head_whose_ray_does_not_answer_leaves_it() -> None:
    async def story() -> None:
        pair = Pair()
        await pair.guard.look(HEAD)
        pair.gcs_lives = False
        await pair.pulse.step()
        assert await pair.guard.look(HEAD) is Sign.ASKED

    run(story())


def test_a_head_that_nobody_asks_puts_nothing() -> None:
    async def story() -> None:
        pair = Pair()
        for _ in range(100):
            await pair.pulse.step()
        assert pair.store.requests == {"put": 0, "get": 100, "list": 0, "delete": 0}

    run(story())


def test_a_question_that_was_not_seen_to_lie_there_proves_nothing_by_its_absence() -> None:
    async def story() -> None:
        pair = Pair()
        await pair.guard.look(HEAD)
        await pair.pulse.step()
        # given an answer to the question of another, or of this guard's process before this one
        later = pair.new_guard()
        assert await later.look(HEAD) is Sign.ASKED
        assert await later.look("i-2") is Sign.ASKED

    run(story())


def test_two_guards_share_a_question_and_both_hear_the_answer() -> None:
    async def story() -> None:
        pair = Pair()
        other = pair.new_guard()
        assert [await each.look(HEAD) for each in (pair.guard, other)] == [Sign.ASKED] * 2
        await pair.pulse.step()
        # the one who looks first asks again; the other sees that it is another question
        assert [await each.look(HEAD) for each in (pair.guard, other)] == [Sign.ANSWERED] * 2
        assert [await each.look(HEAD) for each in (pair.guard, other)] == [Sign.ASKED] * 2

    run(story())


class StoreThatLoses(MemoryObjectStore):
    """Puts are done, or not, and nobody is told."""

    def __init__(self, *, done: bool) -> None:
        super().__init__()
        self.done = done

    async def put_new(self, key: str, data: bytes) -> PutOutcome:
        if self.done:
            await super().put_new(key, data)
        return PutOutcome.UNKNOWN


def test_a_put_whose_answer_is_lost_counts_when_the_question_is_seen() -> None:
    async def story() -> None:
        pair = Pair(StoreThatLoses(done=True))
        assert [await pair.guard.look(HEAD) for _ in range(2)] == [Sign.NOT_ASKED, Sign.ASKED]

    run(story())


def test_a_question_that_cannot_be_put_is_not_held_against_the_head() -> None:
    async def story() -> None:
        pair = Pair(StoreThatLoses(done=False))
        assert {await pair.guard.look(HEAD) for _ in range(50)} == {Sign.NOT_ASKED}

    run(story())


def test_a_store_that_is_away_is_no_sign_at_all() -> None:
    async def story() -> None:
        inner = MemoryObjectStore()
        pair = Pair(FaultyObjectStore(inner, Random(1)))
        assert isinstance(pair.store, FaultyObjectStore)
        await pair.guard.look(HEAD)
        pair.store.cut()
        with pytest.raises(StoreError):
            await pair.guard.look(HEAD)
        await pair.pulse.step()  # the next step is its next try
        pair.store.heal()
        assert await pair.guard.look(HEAD) is Sign.ASKED
        await pair.pulse.step()
        assert await pair.guard.look(HEAD) is Sign.ANSWERED

    run(story())


# --- Ray's own word -----------------------------------------------------------------------------------


def health_check_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> Path:
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/said"\n{then}\n')
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    return tmp_path / "said"


@pytest.mark.parametrize(("code", "lives"), [(0, True), (1, False)])
def test_ray_is_asked_and_not_only_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, lives: bool
) -> None:
    said = health_check_that(tmp_path, monkeypatch, f"exit {code}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert asyncio.run(ray_answers(address)) is lives
    assert said.read_text().split() == [
        *("-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address)
    ]


def test_ray_that_hangs_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    health_check_that(tmp_path, monkeypatch, "sleep 300")
    monkeypatch.setattr(head_pulse, "CHECK_SECONDS", 0.2)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert asyncio.run(ray_answers(f"127.0.0.1:{listening.getsockname()[1]}")) is False
    assert time.monotonic() - began < 30


def test_where_nobody_listens_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = health_check_that(tmp_path, monkeypatch, "exit 0")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    assert asyncio.run(ray_answers(address)) is False
    assert not said.exists()
