"""The server's side of the wire: protocol numbers, frames, and the login (V1_0, SCRAM-SHA-256).

This module turns bytes into messages and messages into bytes. It has no sockets and no asyncio, and does not know
queries or faults. It is written from the public protocol and from recorded exchanges, and never uses the driver. No
test would notice a mistake that both had in common.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAGIC_V1_0: Final = 0x34C2BDC3
MAX_QUERY_SIZE: Final = 134_217_727
MAX_HANDSHAKE_SIZE: Final = 65_536
SERVER_VERSION: Final = "2.4.4"
HEADER: Final = struct.Struct("<QL")

# Queries.
START, CONTINUE, STOP, NOREPLY_WAIT, SERVER_INFO = 1, 2, 3, 4, 5
# Responses.
ATOM, SEQUENCE, PARTIAL, WAIT_COMPLETE, SERVER_INFO_ANSWER = 1, 2, 3, 4, 5
CLIENT_ERROR, COMPILE_ERROR, RUNTIME_ERROR = 16, 17, 18
# Classes of run-time errors.
INTERNAL, RESOURCE_LIMIT, QUERY_LOGIC, NON_EXISTENCE, OP_FAILED, USER = (
    1_000_000,
    2_000_000,
    3_000_000,
    3_100_000,
    4_100_000,
    5_000_000,
)
# Notes in the answers of a changefeed.
SEQUENCE_FEED, ATOM_FEED = 1, 2

_TERM_TABLE = """
DATUM 1 MAKE_ARRAY 2 MAKE_OBJ 3 VAR 10 JAVASCRIPT 11 ERROR 12 IMPLICIT_VAR 13 DB 14 TABLE 15 GET 16 EQ 17 NE 18 LT 19
LE 20 GT 21 GE 22 NOT 23 ADD 24 SUB 25 MUL 26 DIV 27 MOD 28 APPEND 29 SLICE 30 GET_FIELD 31 HAS_FIELDS 32 PLUCK 33
WITHOUT 34 MERGE 35 BETWEEN_DEPRECATED 36 REDUCE 37 MAP 38 FILTER 39 CONCAT_MAP 40 ORDER_BY 41 DISTINCT 42 COUNT 43
UNION 44 NTH 45 INNER_JOIN 48 OUTER_JOIN 49 EQ_JOIN 50 COERCE_TO 51 TYPE_OF 52 UPDATE 53 DELETE 54 REPLACE 55
INSERT 56 DB_CREATE 57 DB_DROP 58 DB_LIST 59 TABLE_CREATE 60 TABLE_DROP 61 TABLE_LIST 62 FUNCALL 64 BRANCH 65 OR 66
AND 67 FOR_EACH 68 FUNC 69 SKIP 70 LIMIT 71 ZIP 72 ASC 73 DESC 74 INDEX_CREATE 75 INDEX_DROP 76 INDEX_LIST 77
GET_ALL 78 INFO 79 PREPEND 80 SAMPLE 81 INSERT_AT 82 DELETE_AT 83 CHANGE_AT 84 SPLICE_AT 85 IS_EMPTY 86 OFFSETS_OF 87
SET_INSERT 88 SET_INTERSECTION 89 SET_UNION 90 SET_DIFFERENCE 91 DEFAULT 92 CONTAINS 93 KEYS 94 DIFFERENCE 95
WITH_FIELDS 96 MATCH 97 JSON 98 ISO8601 99 TO_ISO8601 100 EPOCH_TIME 101 TO_EPOCH_TIME 102 NOW 103 IN_TIMEZONE 104
DURING 105 DATE 106 MONDAY 107 TUESDAY 108 WEDNESDAY 109 THURSDAY 110 FRIDAY 111 SATURDAY 112 SUNDAY 113 JANUARY 114
FEBRUARY 115 MARCH 116 APRIL 117 MAY 118 JUNE 119 JULY 120 AUGUST 121 SEPTEMBER 122 OCTOBER 123 NOVEMBER 124
DECEMBER 125 TIME_OF_DAY 126 TIMEZONE 127 YEAR 128 MONTH 129 DAY 130 DAY_OF_WEEK 131 DAY_OF_YEAR 132 HOURS 133
MINUTES 134 SECONDS 135 TIME 136 LITERAL 137 SYNC 138 INDEX_STATUS 139 INDEX_WAIT 140 UPCASE 141 DOWNCASE 142
OBJECT 143 GROUP 144 SUM 145 AVG 146 MIN 147 MAX 148 SPLIT 149 UNGROUP 150 RANDOM 151 CHANGES 152 HTTP 153 ARGS 154
BINARY 155 INDEX_RENAME 156 GEOJSON 157 TO_GEOJSON 158 POINT 159 LINE 160 POLYGON 161 DISTANCE 162 INTERSECTS 163
INCLUDES 164 CIRCLE 165 GET_INTERSECTING 166 FILL 167 GET_NEAREST 168 UUID 169 BRACKET 170 POLYGON_SUB 171
TO_JSON_STRING 172 RANGE 173 CONFIG 174 STATUS 175 RECONFIGURE 176 WAIT 177 REBALANCE 179 MINVAL 180 MAXVAL 181
BETWEEN 182 FLOOR 183 CEIL 184 ROUND 185 VALUES 186 FOLD 187 GRANT 188 SET_WRITE_HOOK 189 GET_WRITE_HOOK 190
BIT_AND 191 BIT_OR 192 BIT_XOR 193 BIT_NOT 194 BIT_SAL 195 BIT_SAR 196
""".split()  # noqa: SIM905
TERM_NUMBERS: Final[Mapping[str, int]] = dict(zip(_TERM_TABLE[::2], map(int, _TERM_TABLE[1::2]), strict=True))
TERM_NAMES: Final[Mapping[int, str]] = {number: name for name, number in TERM_NUMBERS.items()}


class QueryError(Exception):
    """An error that the client gets as an answer: its response type, its text, and the class of a run-time error."""

    def __init__(self, kind: int, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.code = code

    def as_answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"t": self.kind, "r": [self.message], "b": []}
        if self.code is not None:
            answer["e"] = self.code
        return answer


def _no_json(value: Any) -> Any:
    name = {"MINVAL": "`r.minval`", "MAXVAL": "`r.maxval`"}.get(value.type_name, value.type_name)
    raise QueryError(RUNTIME_ERROR, f"Cannot convert {name} to JSON.", QUERY_LOGIC)


_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_no_json).encode


def pack_answer(token: int, answer: Mapping[str, Any]) -> bytes:
    """The frame of one answer. Raises ``QueryError`` if a value has no JSON form."""
    # A lone surrogate has no UTF-8 form. "backslashreplace" writes it as a JSON escape.
    body = _encode_json(answer).encode("utf-8", "backslashreplace")
    return HEADER.pack(token, len(body)) + body


def next_frame(buffer: bytearray, offset: int) -> tuple[int, int, int] | None:
    """The token, the size, and the start of the body of the frame at ``offset``. ``None``: its header is incomplete."""
    if len(buffer) - offset < HEADER.size:
        return None
    token, size = HEADER.unpack_from(buffer, offset)
    return token, size, offset + HEADER.size


class AnswerSplitter:
    """Splits the bytes of a server into handshake messages and frames. A proxy needs it to find single answers."""

    _HANDSHAKE_MESSAGES = 3

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._messages = 0

    @property
    def is_logged_in(self) -> bool:
        return self._messages >= self._HANDSHAKE_MESSAGES

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Take bytes, and return the messages that are complete now. Each comes with a flag: is it a frame?"""
        self._buffer += data
        messages = []
        while (size := self._complete()) is not None:
            messages.append((bytes(self._buffer[:size]), self.is_logged_in))
            del self._buffer[:size]
            self._messages += not self.is_logged_in
        return messages

    def rest(self) -> bytes:
        """The bytes of a message that is still incomplete."""
        return bytes(self._buffer)

    def _complete(self) -> int | None:
        if not self.is_logged_in:
            end = self._buffer.find(0)
            return None if end < 0 else end + 1
        frame = next_frame(self._buffer, 0)
        if frame is None or len(self._buffer) < HEADER.size + frame[1]:
            return None
        return HEADER.size + frame[1]


@dataclass(frozen=True, slots=True)
class _Secret:
    salt: bytes
    rounds: int
    stored_key: bytes = b""
    server_key: bytes = b""  # empty: the user does not exist


class Accounts:
    """Users and their passwords. Each user's keys are derived once, because that is slow."""

    def __init__(self, users: Mapping[str, str]) -> None:
        self._passwords = dict(users)
        self._secrets: dict[str, _Secret] = {}
        self._pepper = os.urandom(16)

    def secret(self, user: str) -> _Secret:
        if user not in self._passwords:
            # An unknown user gets the same salt every time, as a real one does. The first reply must not show who
            # exists.
            return _Secret(hmac.digest(self._pepper, user.encode(), "sha256")[:16], 4096)
        if user not in self._secrets:
            self._secrets[user] = self._derive(self._passwords[user])
        return self._secrets[user]

    @staticmethod
    def _derive(password: str) -> _Secret:
        salt, rounds = os.urandom(16), 4096 if password else 1
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
        stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        return _Secret(salt, rounds, stored_key, hmac.digest(salted, b"Server Key", "sha256"))


class _Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Handshake:
    """The server's side of one login. ``feed`` takes messages from the buffer and returns the answers to them."""

    def __init__(self, accounts: Accounts) -> None:
        self.is_done = False
        self.is_refused = False
        self._accounts = accounts
        self._step: Callable[[bytes], bytes] = self._magic
        self._secret = _Secret(b"", 1)
        self._first_messages = ""
        self._nonce = ""

    def feed(self, buffer: bytearray) -> list[bytes]:
        answers = []
        while not (self.is_done or self.is_refused):
            message = self._take(buffer)
            if message is None:
                break
            try:
                answers.append(self._step(message))
            except _Refused as refused:
                self.is_refused = True
                answers.append(_message(success=False, error=str(refused), error_code=refused.code))
        return answers

    def _take(self, buffer: bytearray) -> bytes | None:
        if self._step == self._magic:
            end, skip = (4, 0) if len(buffer) >= 4 else (-1, 0)
        else:
            end, skip = buffer.find(0), 1
        if end < 0:
            if len(buffer) > MAX_HANDSHAKE_SIZE:
                buffer[:] = b"\0"  # too long for a login: it fails like bad JSON
                return b""
            return None
        message = bytes(buffer[:end])
        del buffer[: end + skip]
        return message

    def _magic(self, magic: bytes) -> bytes:
        if int.from_bytes(magic, "little") != MAGIC_V1_0:
            self.is_refused = True
            return (
                b"ERROR: Received an unsupported protocol version. This port is for RethinkDB queries. "
                b"Does your client driver version not match the server?\n\0"
            )
        self._step = self._hello
        return _message(success=True, min_protocol_version=0, max_protocol_version=0, server_version=SERVER_VERSION)

    def _hello(self, message: bytes) -> bytes:
        hello = _parse(message)
        if hello.get("protocol_version") != 0:
            raise _Refused(2, "Unsupported `protocol_version`.")
        if hello.get("authentication_method") != "SCRAM-SHA-256":
            raise _Refused(4, "Unsupported `authentication_method`.")
        binding, _, first = str(hello.get("authentication", "")).partition(",,")
        fields = _fields(first, "n", "r")
        if binding != "n":
            raise _Refused(10, "Invalid encoding")
        self._secret = self._accounts.secret(fields["n"].replace("=2C", ",").replace("=3D", "="))
        self._nonce = fields["r"] + base64.b64encode(os.urandom(18)).decode()
        answer = f"r={self._nonce},s={base64.b64encode(self._secret.salt).decode()},i={self._secret.rounds}"
        self._first_messages = f"{first},{answer}"
        self._step = self._proof
        return _message(success=True, authentication=answer)

    def _proof(self, message: bytes) -> bytes:
        final = str(_parse(message).get("authentication", ""))
        fields = _fields(final, "c", "r", "p")
        if not self._secret.server_key:
            raise _Refused(17, "Unknown user")
        if fields["c"] != "biws" or fields["r"] != self._nonce:
            raise _Refused(10, "Invalid encoding")
        signed = f"{self._first_messages},{final.rpartition(',p=')[0]}".encode()
        if not self._proves(fields["p"], hmac.digest(self._secret.stored_key, signed, "sha256")):
            raise _Refused(12, "Wrong password")
        self.is_done = True
        signature = hmac.digest(self._secret.server_key, signed, "sha256")
        return _message(success=True, authentication="v=" + base64.b64encode(signature).decode())

    def _proves(self, proof: str, signature: bytes) -> bool:
        try:
            given = base64.b64decode(proof)
        except binascii.Error:
            return False
        client_key = bytes(a ^ b for a, b in zip(given, signature, strict=False))
        return hmac.compare_digest(hashlib.sha256(client_key).digest(), self._secret.stored_key)


def _message(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\0"


def _parse(message: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(message)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise _Refused(8, "Invalid JSON object.")
    return parsed


def _fields(message: str, *names: str) -> dict[str, str]:
    """The attributes of a SCRAM message. Raises an error unless they are exactly ``names``, in this order."""
    parts: Sequence[tuple[str, str, str]] = [part.partition("=") for part in message.split(",")]
    if tuple(name for name, _, _ in parts) != names:
        raise _Refused(10, "Invalid encoding")
    return {name: value for name, _, value in parts}
