"""Frames of RethinkDB's wire protocol: bytes in, ``(token, body)`` out.

Here is only the framing: a little-endian header of 12 bytes (token, 64 bits; length of the body, 32 bits), then the
body. What a body means, sockets, asyncio and the driver are not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["HEADER_BYTES", "MAX_BODY_BYTES", "FrameError", "FrameReader", "frame_token", "pack_frame"]

_HEADER = struct.Struct("<QL")
HEADER_BYTES = _HEADER.size

MAX_BODY_BYTES = 2**31 - 1
"""Longest body, in bytes, that is taken for an answer. The server has no limit of its own, and 60 MB have been seen. A
header that declares 2 GiB or more is part of something else: reader and peer have lost step."""


class FrameError(Exception):
    """What came in cannot be RethinkDB's protocol. The text says what the peer did, as in "declared …"."""


def pack_frame(token: int, body: bytes) -> bytes:
    """One frame, ready to be written."""
    return _HEADER.pack(token, len(body)) + body


def frame_token(frame: bytes) -> int:
    """The token of a packed frame."""
    return int.from_bytes(frame[:8], "little")


class FrameReader:
    """Cuts a stream of bytes into frames. The bytes may have been split anywhere on their way.

    It holds only bytes that came, never as many as a header declares. A peer that announces 2 GB and sends ten bytes
    costs ten bytes.
    """

    __slots__ = ("_body", "_head", "_missing", "_token")

    def __init__(self) -> None:
        self._head = b""  # the beginning of a header; empty while a body is under way
        self._body: bytearray | None = None  # the beginning of a body; None between frames
        self._token = 0  # means something only while a body is under way
        self._missing = 0  # bytes of that body still to come; at least 1 while it is under way

    @property
    def buffered(self) -> int:
        """Bytes held because their frame is not complete."""
        return len(self._head) + (0 if self._body is None else len(self._body))

    @property
    def partial_token(self) -> int | None:
        """Token of the frame whose body is under way; None between frames. A stray frame is found out early by it."""
        return None if self._body is None else self._token

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream may end here."""
        return not self._head and self._body is None

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes | bytearray]]:
        """Take in bytes and yield the frames that they complete, one at a time.

        Run it to its end before the next call, or the rest of the bytes is lost. Raises :class:`FrameError` after the
        last good frame. The reader is of no use after that.
        """
        position, end = 0, len(data)
        if self._body is not None:
            position = min(self._missing, end)
            self._body += data if position == end else data[:position]
            self._missing -= position
            if self._missing:
                return
            body, self._body = self._body, None
            yield self._token, body
        elif self._head:
            data = self._head + data
            self._head = b""
            end = len(data)
        while end - position >= HEADER_BYTES:
            token, length = _HEADER.unpack_from(data, position)
            if length > MAX_BODY_BYTES:
                raise FrameError(
                    f"declared an answer of {length:,} bytes; more than {MAX_BODY_BYTES:,} is not believed"
                )
            position += HEADER_BYTES
            stop = position + length
            if stop > end:
                self._token, self._missing = token, stop - end
                self._body = bytearray(data[position:])
                return
            yield token, data[position:stop]
            position = stop
        self._head = data[position:]
