"""Frames between a worker and its job process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from jobsvc.job_frames import FrameReader, frame


@pytest.fixture
def pipe() -> Iterator[tuple[FrameReader, int]]:
    reading, writing = os.pipe()
    yield FrameReader(reading), writing
    os.close(reading)


def test_a_frame_that_waits_is_not_taken_for_silence(pipe: tuple[FrameReader, int]) -> None:
    # given two frames that arrive together
    reader, writing = pipe
    os.write(writing, frame([1]) + frame([2]))
    # when the first one is read
    assert reader.read() == frame([1])[4:]
    # then the second one shows, and is not waited for
    assert not reader.is_quiet(3_600_000)
    assert reader.read() == frame([2])[4:]
    assert reader.is_quiet(0)
    os.close(writing)


def test_a_frame_larger_than_the_pipe_arrives_whole(pipe: tuple[FrameReader, int]) -> None:
    reader, writing = pipe
    data = frame(os.urandom(3_000_000))
    thread = threading.Thread(target=lambda: os.write(writing, data))
    thread.start()
    assert reader.read() == data[4:]
    thread.join(10)
    os.close(writing)


@pytest.mark.parametrize("length", [0, 2, 4, 5])
def test_a_pipe_that_closes_early_ends_the_reading(pipe: tuple[FrameReader, int], length: int) -> None:
    reader, writing = pipe
    os.write(writing, frame([1, 2])[:length])
    os.close(writing)
    assert reader.read() is None
