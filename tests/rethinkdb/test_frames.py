"""The frame reader: however bytes are split on their way, the same frames come out, in no more memory."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_repool.connectors.rethinkdb.frames import MAX_BODY_BYTES, FrameError, FrameReader, pack_frame

TOKENS = st.integers(0, 2**64 - 1)
FRAMES = st.lists(st.tuples(TOKENS, st.binary(max_size=64)), max_size=8)
# Good frames, then anything: what a peer that breaks down sends.
BYTES = st.builds(
    lambda frames, rest: b"".join(pack_frame(*frame) for frame in frames) + rest, FRAMES, st.binary(max_size=64)
)


def read(reader: FrameReader, pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], str | None]:
    """The frames that come out, and the error after them, if any."""
    frames: list[tuple[int, bytes]] = []
    try:
        for piece in pieces:
            for token, body in reader.feed(piece):
                frames.append((token, bytes(body)))
    except FrameError as error:
        return frames, str(error)
    return frames, None


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(FRAMES, st.lists(st.integers(min_value=0), max_size=20))
def test_frames_come_out_as_they_were_packed_however_they_are_split(
    frames: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    reader = FrameReader()
    data = b"".join(pack_frame(token, body) for token, body in frames)
    assert read(reader, split(data, cuts)) == (frames, None)
    assert reader.buffered == 0


@given(BYTES, st.lists(st.integers(min_value=0), max_size=20))
def test_any_bytes_give_the_same_frames_and_the_same_error_however_they_are_split(data: bytes, cuts: list[int]) -> None:
    assert read(FrameReader(), split(data, cuts)) == read(FrameReader(), [data])


@given(BYTES)
def test_byte_by_byte_is_as_good_as_all_at_once(data: bytes) -> None:
    assert read(FrameReader(), [bytes([byte]) for byte in data]) == read(FrameReader(), [data])


@given(st.lists(st.binary(max_size=100), max_size=10))
def test_no_more_is_held_than_what_came(pieces: list[bytes]) -> None:
    reader, came, handed_out = FrameReader(), 0, 0
    try:
        for piece in pieces:
            came += len(piece)
            for _, body in reader.feed(piece):
                handed_out += len(body) + 12
            assert reader.buffered <= came - handed_out
    except FrameError:
        pass


def test_a_declared_length_takes_no_memory() -> None:
    header = struct.pack("<QL", 1, MAX_BODY_BYTES)
    tracemalloc.start()
    try:
        readers = [FrameReader() for _ in range(100)]
        for reader in readers:
            assert list(reader.feed(header + b"ten bytes.")) == []
        used, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000, f"100 readers with ten bytes each took {used:,} bytes, at most {peak:,}"


def test_a_large_body_in_small_pieces_takes_about_its_own_size() -> None:
    size, piece = 4_000_000, b"x" * 1000
    reader = FrameReader()
    list(reader.feed(struct.pack("<QL", 1, size)))
    tracemalloc.start()
    try:
        bodies = [body for _ in range(size // 1000) for _, body in reader.feed(piece)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(body) for body in bodies] == [size]
    assert peak < 1.3 * size


def test_an_absurd_length_is_refused_after_the_good_frames_before_it() -> None:
    data = pack_frame(1, b"good") + struct.pack("<QL", 2, MAX_BODY_BYTES + 1) + b"more"
    assert read(FrameReader(), [data]) == (
        [(1, b"good")],
        "declared an answer of 2,147,483,648 bytes; more than 2,147,483,647 is not believed",
    )


def test_the_token_is_known_as_soon_as_the_header_is() -> None:
    reader = FrameReader()
    data = pack_frame(7, b"body")
    assert list(reader.feed(data[:11])) == []
    assert reader.partial_token is None
    assert list(reader.feed(data[11:12])) == []
    assert reader.partial_token == 7
    assert list(reader.feed(data[12:])) == [(7, b"body")]
    assert reader.partial_token is None


@pytest.mark.parametrize("size", [0, 1, 11, 12, 13])
def test_the_stream_may_end_only_between_frames(size: int) -> None:
    data = pack_frame(1, b"x")
    reader = FrameReader()
    list(reader.feed(data[:size]))
    assert reader.buffered == (size if size < len(data) else 0)
