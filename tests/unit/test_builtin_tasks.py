"""The tasks that every service has."""

from __future__ import annotations

import hashlib

import pytest

from jobsvc.builtin_tasks import CommandFailed, echo, sha512, shell, sleep
from jobsvc.errors import InvalidRequest


@pytest.mark.parametrize(
    ("body", "iterations", "first_digits"),
    [
        (b"hello", 1, "9b71d224bd62f378"),
        (b"hello", 2, "0592a10584ffabf9"),
        (b"hello", 1000, "2f0d1593c9d82cc0"),
        (b"", 1, "cf83e1357eefb8bd"),
        (bytes(range(256)) * 64, 1000, "7752bef64c723e65"),
    ],
)
def test_the_vectors_of_the_old_job(body: bytes, iterations: int, first_digits: str) -> None:
    digest = sha512(body, iterations)
    assert digest[:16] == first_digits
    assert len(digest) == 128


def test_later_rounds_hash_the_64_bytes_of_the_digest() -> None:
    first = hashlib.sha512(b"hello").digest()
    assert len(first) == 64
    assert sha512(b"hello", 2) == hashlib.sha512(first).hexdigest()


def test_one_iteration_unless_said_otherwise() -> None:
    assert sha512(b"\xff\xfe not text \x00") == hashlib.sha512(b"\xff\xfe not text \x00").hexdigest()


@pytest.mark.parametrize("iterations", [0, -1, 1.5, 1.0, "2", True, None, 10_000_001, 10**30])
def test_iterations_that_make_no_sense_are_refused(iterations: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sha512(b"hello", iterations)  # type: ignore[arg-type]
    assert caught.value.field == "iterations"


def test_echo_gives_back_what_came() -> None:
    assert echo(7) == 7
    assert echo(1, "two") == [1, "two"]
    assert echo() == []
    assert echo(a=1) == {"a": 1}
    assert echo(2, a=1) == {"args": [2], "kwargs": {"a": 1}}


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", True, None])
def test_a_sleep_that_makes_no_sense_is_refused(seconds: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sleep(seconds)  # type: ignore[arg-type]
    assert caught.value.field == "seconds"


def test_a_sleep_ends() -> None:
    sleep(0)
    sleep(0.001)


def test_a_command_runs_in_the_shell_and_its_failure_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert shell("echo out; echo err >&2") == 0
    assert capfd.readouterr() == ("out\n", "err\n")
    with pytest.raises(CommandFailed, match="exit code 3"):
        shell("exit 3")
    with pytest.raises(InvalidRequest):
        shell("  ")
