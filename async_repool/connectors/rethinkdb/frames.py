"""Frames of RethinkDB's wire protocol: bytes in, ``(token, body)`` out.

Here is only the framing: a little-endian header of 12 bytes (token, 64 bits; length of the body, 32 bits), then the
body. What a body means, sockets, asyncio and the driver are not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

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

    It holds only bytes that came, never as many as a header declares.
    """

    __slots__ = ("_body", "_head", "_missing", "partial_token")

    def __init__(self) -> None:
        self.partial_token: int | None = None
        """Token of the frame whose body is under way; None between frames. It shows a stray frame early."""
        self._body = bytearray()  # the beginning of that body
        self._missing = 0  # bytes of that body still to come; at least 1 while it is under way
        self._head = b""  # the beginning of a header; empty while a body is under way

    @property
    def buffered(self) -> int:
        """Bytes that came of a frame that is not complete. The stream may end only if there are none."""
        return len(self._head) if self.partial_token is None else HEADER_BYTES + len(self._body)

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes | bytearray]]:
        """Take in bytes and yield the frames that they complete, one at a time.

        Run it to its end before the next call, or bytes are lost. After :class:`FrameError` the reader is of no use.
        """
        position, end = 0, len(data)
        if self.partial_token is not None:
            position = min(self._missing, end)
            self._body += data if position == end else data[:position]
            self._missing -= position
            if self._missing:
                return
            token, body = self.partial_token, self._body
            self.partial_token, self._body = None, bytearray()
            yield token, body
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
                self.partial_token, self._missing, self._body = token, stop - end, bytearray(data[position:])
                return
            yield token, data[position:stop]
            position = stop
        self._head = data[position:]
