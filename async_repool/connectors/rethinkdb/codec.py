"""What a frame's body means: queries into JSON, and JSON into answers, exactly as the driver does both.

Sockets, tokens in flight, and asyncio are not known here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from rethinkdb import ql2_pb2
from rethinkdb.ast import ReQLDecoder, ReQLEncoder, RqlQuery
from rethinkdb.net import Response

from .frames import FrameError, pack_frame

QueryType = ql2_pb2.Query.QueryType
AnswerType = ql2_pb2.Response.ResponseType
_Note = ql2_pb2.Response.ResponseNote
FEED_NOTES = frozenset({_Note.SEQUENCE_FEED, _Note.ATOM_FEED, _Note.ORDER_BY_LIMIT_FEED, _Note.UNIONED_FEED})

PARTIAL_START = b'{"t":%d,' % AnswerType.SUCCESS_PARTIAL
"""How the server begins a batch that is not the last."""

_ANSWER_START = re.compile(rb'\s*\{\s*"t"\s*:\s*(\d+)\s*,\s*"r"\s*:\s*\[')
_PLAIN_DECODER = json.JSONDecoder()
_raw_decode = _PLAIN_DECODER.raw_decode
_ENCODER = ReQLEncoder()
_PLAIN_OPTIONS = (RqlQuery, str, int, float, type(None))


class Answer(Response):  # type: ignore[misc]
    """An answer, decoded: the driver's, with the notes that the driver leaves out."""

    def __init__(self, token: int, text: str, decode: Callable[[str], Any]) -> None:
        answer = decode(text)
        self.token = token
        self.type = answer["t"]
        self.data = answer["r"]
        self.backtrace = answer.get("b")
        self.profile = answer.get("p")
        self.error_type = answer.get("e")
        self.notes = answer.get("n")


@dataclass(frozen=True, slots=True)
class Codec:
    """Writes queries and reads answers, with the JSON classes of one connection or those that a query brings."""

    json_encoder: Callable[..., Any] = ReQLEncoder
    json_decoder: Callable[..., Any] = ReQLDecoder

    def encode(self, query: Any) -> bytes:
        """The frame of a query, byte for byte as the driver would write it.

        The driver makes terms of the options, and an encoder for each query. Neither is needed if the encoder is the
        driver's and no option needs more than JSON.
        """
        if query._json_encoder is None and self.json_encoder is ReQLEncoder:
            options = query.global_optargs
            if options is not None and (not options or all(isinstance(o, _PLAIN_OPTIONS) for o in options.values())):
                return pack_frame(query.token, _ENCODER.encode([query.type, query.term, options]).encode())
            return cast(bytes, query.serialize(_ENCODER))
        return cast(bytes, query.serialize((query._json_encoder or self.json_encoder)()))

    def decode(self, query: Any, body: bytes | bytearray) -> Answer:
        """The answer, as the driver would decode it.

        The driver makes a decoder for each answer, which looks at every object for a pseudo-type. If the text has none,
        spelt out or escaped, one plain decoder gives the same result, for a small answer in half the time.
        """
        text = str(body, "utf-8")
        if query._json_decoder is None and self.json_decoder is ReQLDecoder:
            # Two searches for one character cost a tenth of those for the words, and nearly always are enough.
            has_neither = "$" not in text and "\\" not in text
            if has_neither or ("$reql_type$" not in text and "\\u" not in text):
                return Answer(query.token, text, _decode_plain)
        return Answer(query.token, text, (query._json_decoder or self.json_decoder)(query.global_optargs).decode)


def type_of(body: bytes | bytearray) -> int:
    """The type of an answer that could not be decoded. Raises :class:`FrameError` if the decoder is not to blame."""
    try:
        answer = json.loads(str(body, "utf-8"))
    except ValueError as error:
        raise FrameError(f"sent an answer that is not valid JSON: {bytes(body[:80])!r}") from error
    except RecursionError:  # too deep for Python: the fault of the query that asked for it
        start = _ANSWER_START.match(body)
        answer = {"t": int(start[1]), "r": [None]} if start else None
    if not isinstance(answer, dict) or not isinstance(answer.get("t"), int) or not isinstance(answer.get("r"), list):
        raise FrameError(f"sent JSON that is no answer: {bytes(body[:80])!r}")
    kind: int = answer["t"]
    if kind in (AnswerType.SUCCESS_ATOM, AnswerType.SERVER_INFO) and not answer["r"]:
        raise FrameError(f"sent an answer without a value: {bytes(body[:80])!r}")
    return kind


def _decode_plain(text: str) -> Any:
    """As ``JSONDecoder.decode()``, which looks for space before and behind with regular expressions."""
    if text[:1] == "{":
        value, end = _raw_decode(text)
        if end == len(text):
            return value
    return _PLAIN_DECODER.decode(text)
