"""Whose output it is, and how much of it is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobsvc.job_frames import MARK_TOKEN_BYTES, mark
from jobsvc.job_output import OutputKeeper, OutputSplitter

TOKEN = bytes(range(200, 200 + MARK_TOKEN_BYTES))
texts = st.binary(max_size=40) | st.sampled_from([TOKEN[:1], TOKEN[:5], TOKEN[:-1], TOKEN[:3] * 4])


@given(st.lists(texts, max_size=8), texts, st.lists(st.integers(1, 30), min_size=1))
def test_however_a_stream_is_cut_up_each_job_gets_its_bytes(
    outputs: list[bytes], rest: bytes, sizes: list[int]
) -> None:
    stream = b"".join(text + mark(TOKEN, number) for number, text in enumerate(outputs, 1)) + rest
    splitter = OutputSplitter(TOKEN)
    found: dict[int, bytes] = {}
    since_mark = b""
    at = turn = 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        for piece, number in splitter.feed(stream[at : at + size]):
            since_mark += piece
            if number is not None:
                found[number], since_mark = since_mark, b""
        at, turn = at + size, turn + 1
    assert found == dict(enumerate(outputs, 1))
    assert since_mark + splitter.rest() == rest


@given(st.lists(st.binary(max_size=50), max_size=20), st.integers(0, 100), st.integers(0, 20))
def test_head_and_tail_are_kept_within_the_bound(pieces: list[bytes], bytes_max: int, live_at: int) -> None:
    keeper = OutputKeeper(bytes_max)
    kept = b""
    for turn, piece in enumerate(pieces):
        keeper.add(piece)
        if turn == live_at:
            kept += keeper.take()
    kept += keeper.take_all()
    whole = b"".join(pieces)
    if len(whole) <= bytes_max // 2:
        assert kept == whole
        return
    head, notice, tail = kept.partition(b"\n... ")
    if notice and b" bytes left out ...\n" in tail:
        count, _, tail = tail.partition(b" bytes left out ...\n")
        assert len(head) + int(count) + len(tail) == len(whole)
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head) + len(tail) <= max(bytes_max, len(whole) if not notice else 0)
