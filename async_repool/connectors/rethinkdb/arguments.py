"""The arguments of ``r.connect()``: checked, and with the driver's defaults. Sockets and asyncio are not known here."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from rethinkdb.net import DEFAULT_PORT

_TEXTS = ("host", "db", "auth_key", "user", "password")
_CODECS = ("json_encoder", "json_decoder")
_NAMES = (*_TEXTS, *_CODECS, "port", "timeout", "ssl", "url", "_handshake_version", "io_loop")
_DEFAULT_TIMEOUT = 20.0  # seconds; the driver's value


@dataclass(frozen=True, slots=True)
class ConnectArguments:
    """The arguments of ``r.connect()`` after they were checked. Its repr has no password."""

    host: str
    port: int
    db: str | None
    user: str
    passwords: list[bytes] = field(repr=False)
    """The bytes that the password may stand for, in the order to try."""
    timeout: float
    ssl: Mapping[str, Any]
    codecs: Mapping[str, Callable[..., Any]]
    """``json_encoder`` and ``json_decoder``, if they were given."""


def check_arguments(given: Mapping[str, Any]) -> ConnectArguments:
    """Check the arguments and fill in the driver's defaults. Raises ``ValueError`` or ``TypeError`` if one is wrong."""
    if unknown := given.keys() - set(_NAMES):
        raise TypeError(f"connect() got unexpected arguments: {', '.join(sorted(map(str, unknown)))}")
    found: dict[str, Any] = {**dict.fromkeys(_NAMES), **given}
    of_url = _from_url(found["url"]) if found["url"] not in (None, "") else {}
    if "password" in of_url or "auth_key" in of_url:  # they are one thing under two names
        found |= {"password": None, "auth_key": None}
    found |= of_url
    for name in _TEXTS:
        if found[name] is not None and not isinstance(found[name], str):
            raise TypeError(f"{name} must be a str, not {type(found[name]).__name__}")
    if found["password"] and found["auth_key"]:
        raise ValueError("password and auth_key are both set; give one")
    if found["_handshake_version"] not in (None, 10):
        version = found["_handshake_version"]
        raise ValueError(f"_handshake_version must be 10, the only one that the driver has, not {version!r}")
    codecs: dict[str, Any] = {name: found[name] for name in _CODECS if found[name] is not None}
    for name, codec in codecs.items():
        if not callable(codec):
            raise TypeError(f"{name} must be a class or function that makes one, not {codec!r}")
    host, user = found["host"] or "localhost", found["user"] or "admin"
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"host can be no name or address: {host!r} ({error})") from None
    if not user.isascii():
        raise ValueError(f"user must be ASCII, which is all that the driver can log in with, not {user!r}")
    secret = found["password"] or found["auth_key"] or ""
    return ConnectArguments(
        host=host,
        port=_port(found["port"]),
        db=found["db"],
        user=user,
        passwords=encodings(secret, unquote(secret)) if "password" in of_url else encodings(secret),
        timeout=check_timeout(found["timeout"]),
        ssl=_ssl(found["ssl"]),
        codecs=codecs,
    )


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
        return _DEFAULT_TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"timeout must be a number of seconds, not {type(value).__name__}")
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"timeout must be a number of seconds above 0, not {value!r}")
    return float(value) or _DEFAULT_TIMEOUT  # as in the driver


def _from_url(url: object) -> dict[str, Any]:
    """The arguments that a url has, by name. A percent-encoded password stays as it is, like in the driver."""
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
    found: dict[str, Any] = {"host": host, "port": port, "user": parts.username, "password": parts.password}
    found["db"] = parts.path.replace("/", "")
    options = dict(parse_qsl(parts.query))
    if options.keys() - {"auth_key", "timeout"}:
        raise ValueError("url may have the options auth_key and timeout and no other")
    found |= options
    if "timeout" in options:
        try:
            found["timeout"] = float(options["timeout"])
        except ValueError:
            raise ValueError("timeout in the url must be a number of seconds") from None
    return {name: value for name, value in found.items() if value not in (None, "")}


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
