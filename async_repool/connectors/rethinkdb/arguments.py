"""The arguments of ``r.connect()``: checked, with the driver's defaults, and ready for use.

Here too is what is asked for arguments that change. Sockets, connections and asyncio are not known here.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from rethinkdb.net import DEFAULT_PORT

__all__ = [
    "DEFAULT_TIMEOUT",
    "ArgumentSource",
    "ConnectArguments",
    "ask",
    "check_arguments",
    "check_timeout",
    "encodings",
]

DEFAULT_TIMEOUT = 20.0
"""Seconds to open a connection, if nobody says otherwise. The driver's value."""

ArgumentSource = Callable[[], Any]
"""Returns a mapping of ``r.connect()`` arguments, or an awaitable of one. It is asked at every opening."""


@dataclass(frozen=True, slots=True)
class ConnectArguments:
    """The arguments of ``r.connect()`` after they were checked. Its repr has no password."""

    host: str
    port: int
    db: str | None
    user: str
    passwords: list[bytes] = field(repr=False)
    """What the password may stand for, in the order in which to try."""
    timeout: float
    ssl: Mapping[str, Any]
    codecs: Mapping[str, Callable[..., Any]]
    """``json_encoder`` and ``json_decoder``, if they were given."""


def check_arguments(
    *,
    host: Any = None,
    port: Any = None,
    db: Any = None,
    auth_key: Any = None,
    user: Any = None,
    password: Any = None,
    timeout: Any = None,
    ssl: Any = None,
    url: Any = None,
    json_encoder: Any = None,
    json_decoder: Any = None,
    io_loop: object = None,
    _handshake_version: Any = None,
) -> ConnectArguments:
    """Check the arguments and fill in the driver's defaults. The parts of ``url`` win over the other arguments.

    Raises ``ValueError`` or ``TypeError`` if one is wrong. No message has a password in it.
    """
    del io_loop  # the driver takes one and does not use it here
    found: dict[str, Any] = {"host": host, "port": port, "db": db, "auth_key": auth_key, "user": user}
    found |= {"password": password, "timeout": timeout}
    is_encoded = False
    if url is not None and url != "":
        of_url = _from_url(url)
        is_encoded = "password" in of_url
        if "password" in of_url or "auth_key" in of_url:  # they are one thing under two names
            found |= {"password": None, "auth_key": None}
        found |= of_url
    for name in ("host", "db", "auth_key", "user", "password"):
        _check_text(name, found[name])
    if found["password"] and found["auth_key"]:
        raise ValueError("password and auth_key are both set; give one")
    if _handshake_version not in (None, 10):
        raise ValueError(f"_handshake_version must be 10, the only one that the driver has, not {_handshake_version!r}")
    codecs = {"json_encoder": json_encoder, "json_decoder": json_decoder}
    for name, codec in codecs.items():
        if codec is not None and not callable(codec):
            raise TypeError(f"{name} must be a class or function that makes one, not {codec!r}")
    secret = found["password"] or found["auth_key"] or ""
    return ConnectArguments(
        host=_host(found["host"]),
        port=_port(found["port"]),
        db=found["db"],
        user=_user(found["user"]),
        passwords=encodings(secret, unquote(secret)) if is_encoded else encodings(secret),
        timeout=check_timeout(found["timeout"]),
        ssl=_ssl(ssl),
        codecs={name: codec for name, codec in codecs.items() if codec},
    )


async def ask(source: ArgumentSource) -> dict[str, Any]:
    """Ask for the arguments of one opening. Raises what ``source`` raises, and TypeError if it returns no mapping."""
    arguments = source()
    if inspect.isawaitable(arguments):
        arguments = await arguments
    if not isinstance(arguments, Mapping):
        raise TypeError(
            "the callable that was given for the connect() arguments must return a mapping of them, not "
            f"{type(arguments).__name__}"
        )
    return dict(arguments)


def encodings(*readings: str) -> list[bytes]:
    """The bytes that a password may stand for, each once. The first is what the driver would send: Latin-1."""
    found: dict[bytes, None] = {}
    for reading in readings:
        with contextlib.suppress(UnicodeEncodeError):
            found[reading.encode("latin-1")] = None
        found[reading.encode("utf-8", "surrogatepass")] = None  # what the server has hashed
    return list(found)


def check_timeout(value: float | None) -> float:
    """Seconds to open a connection. None and 0 mean the default."""
    if value is None:
        return DEFAULT_TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"timeout must be a number of seconds, not {type(value).__name__}")
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"timeout must be a number of seconds above 0, not {value!r}")
    return float(value) or DEFAULT_TIMEOUT  # as in the driver


def _from_url(url: object) -> dict[str, Any]:
    """The arguments that a url has, by name. As for the driver, a percent-encoded password stays as it is."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}")
    # No message has the url in it: it may hold a password in a place where nobody expects one.
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("url is malformed: check its port, its brackets, and percent-encode the password") from None
    if not parts.scheme or not url.startswith(f"{url[: len(parts.scheme)]}://"):
        raise ValueError("url must look like rethinkdb://user:password@host:port/db?timeout=20")
    if "#" in url or "@" in parts.path or "@" in parts.query:
        raise ValueError("url has a '#', '/' or '?' in its user or password: percent-encode it")
    found: dict[str, Any] = {
        "host": host,
        "port": port,
        "user": parts.username,
        "password": parts.password,
        "db": parts.path.replace("/", "") or None,
    }
    for name, value in parse_qsl(parts.query):
        if name == "auth_key":
            found[name] = value
        elif name == "timeout":
            try:
                found[name] = float(value)
            except ValueError:
                raise ValueError("timeout in the url must be a number of seconds") from None
        else:
            raise ValueError("url may have the options auth_key and timeout and no other")
    return {name: value for name, value in found.items() if value not in (None, "")}


def _check_text(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")


def _host(value: str | None) -> str:
    host = value or "localhost"
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"host can be no name or address: {value!r} ({error})") from None
    return host


def _port(value: int | str | None) -> int:
    if value is None or value == "":
        return int(DEFAULT_PORT)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"port must be an int, not {type(value).__name__}")
    try:
        port = int(value)
    except ValueError:
        raise ValueError(f"port must be a number, not {value!r}") from None
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be between 1 and 65535, not {value!r}")
    return port


def _user(value: str | None) -> str:
    user = value or "admin"
    if not user.isascii():
        raise ValueError(f"user must be ASCII, which is all that the driver can log in with, not {value!r}")
    return user


def _ssl(value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"ssl must be a mapping such as {{'ca_certs': path}}, not {type(value).__name__}")
    if set(value) != {"ca_certs"}:
        raise ValueError(f"ssl must have the key 'ca_certs' and no other, not {sorted(map(str, value))}")
    if not isinstance(value["ca_certs"], str | os.PathLike):
        raise TypeError(f"ssl['ca_certs'] must be a path, not {type(value['ca_certs']).__name__}")
    return dict(value)
