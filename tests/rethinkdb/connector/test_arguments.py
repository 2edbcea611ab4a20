"""The arguments of the RethinkDB connector."""

from __future__ import annotations

import traceback
from typing import Any
from urllib.parse import quote

import pytest

from async_repool.connectors import Connector
from async_repool.connectors.rethinkdb import RethinkDBConnector
from async_repool.errors import ConnectFailed
from async_repool.testing import StandInServer
from connection_kit import SECRET


def test_it_is_a_connector() -> None:
    assert isinstance(RethinkDBConnector(), Connector)


def test_the_defaults_are_the_drivers() -> None:
    connector = RethinkDBConnector()
    assert connector.endpoint == "localhost:28015"
    assert connector.connect_timeout == 20
    assert repr(connector) == "<RethinkDBConnector admin@localhost:28015>"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"port": 0}, ValueError, "port must be between 1 and 65535, not 0"),
        ({"port": 65536}, ValueError, "port must be between 1 and 65535, not 65536"),
        ({"port": "x"}, ValueError, "port must be a number, not 'x'"),
        ({"port": True}, TypeError, "port must be an int, not bool"),
        ({"port": 1.5}, TypeError, "port must be an int, not float"),
        ({"host": 7}, TypeError, "host must be a str, not int"),
        ({"host": "a..b"}, ValueError, "host can be no name or address: 'a..b'"),
        ({"db": 7}, TypeError, "db must be a str, not int"),
        ({"user": 7}, TypeError, "user must be a str, not int"),
        ({"user": "jürgen"}, ValueError, "user must be ASCII"),
        ({"password": b"x"}, TypeError, "password must be a str, not bytes"),
        ({"auth_key": 7}, TypeError, "auth_key must be a str, not int"),
        ({"auth_key": SECRET, "password": SECRET}, ValueError, "password and auth_key are both set"),
        ({"timeout": -1}, ValueError, "timeout must be a number of seconds above 0, not -1"),
        ({"timeout": float("nan")}, ValueError, "timeout must be a number of seconds above 0, not nan"),
        ({"timeout": float("inf")}, ValueError, "timeout must be a number of seconds above 0, not inf"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, not str"),
        ({"timeout": True}, TypeError, "timeout must be a number of seconds, not bool"),
        ({"ssl": True}, TypeError, "ssl must be a mapping"),
        ({"ssl": {"cacerts": "x"}}, ValueError, r"ssl must have the key 'ca_certs' and no other, not \['cacerts'\]"),
        ({"ssl": {"ca_certs": None}}, TypeError, r"ssl\['ca_certs'\] must be a path, not NoneType"),
        ({"json_decoder": 7}, TypeError, "json_decoder must be a class"),
        ({"json_encoder": 7}, TypeError, "json_encoder must be a class"),
        ({"_handshake_version": 4}, ValueError, "_handshake_version must be 10"),
        ({"url": 7}, TypeError, "url must be a str, not int"),
        ({"url": f"admin:{SECRET}@db1"}, ValueError, "url must look like rethinkdb://"),
        ({"url": f"rethinkdb://admin:{SECRET}@db1:99999"}, ValueError, "url is malformed"),
        ({"url": "rethinkdb://db1?timeout=soon"}, ValueError, "timeout in the url must be a number"),
        ({"url": "rethinkdb://admin:12345#Secret@db1:28015/x"}, ValueError, "percent-encode it"),
        ({"url": "rethinkdb://admin:1234/Secret@db1:28015/x"}, ValueError, "percent-encode it"),
        ({"url": "rethinkdb://admin:123?Secret@db1/x"}, ValueError, "percent-encode it"),
        ({"url": "rethinkdb://db1?timeuot=5"}, ValueError, "auth_key and timeout and no other"),
        ({"pasword": SECRET}, TypeError, "pasword"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        RethinkDBConnector(**arguments)
    assert SECRET not in "".join(traceback.format_exception(caught.value)[-1:])


@pytest.mark.parametrize(
    ("arguments", "endpoint", "user", "timeout"),
    [
        ({"url": "rethinkdb://db1"}, "db1:28015", "admin", 20),
        ({"url": "rethinkdb://bob:x@db1:5/app?timeout=3"}, "db1:5", "bob", 3),
        ({"url": "rethinkdb://db1", "timeout": 4, "user": "bob", "port": 6}, "db1:6", "bob", 4),
        ({"url": "rethinkdb://db1:5", "host": "db2", "port": 6}, "db1:5", "admin", 20),
        ({"url": "RethinkDB://[::1]:5"}, "[::1]:5", "admin", 20),
        ({"host": "::1"}, "[::1]:28015", "admin", 20),
        ({"port": "5"}, "localhost:5", "admin", 20),
        ({"host": "", "user": "", "password": "", "timeout": 0}, "localhost:28015", "admin", 20),
    ],
)
def test_a_url_is_read_as_the_driver_reads_it_and_arguments_fill_its_gaps(
    arguments: dict[str, Any], endpoint: str, user: str, timeout: float
) -> None:
    connector = RethinkDBConnector(**arguments)
    assert (connector.endpoint, connector.connect_timeout) == (endpoint, timeout)
    assert repr(connector) == f"<RethinkDBConnector {user}@{endpoint}>"


@pytest.mark.parametrize("where", ["password", "auth_key", "url", "url auth_key"])
async def test_no_text_shows_the_password(where: str, server: StandInServer) -> None:
    arguments: dict[str, Any] = {
        "password": {"password": SECRET},
        "auth_key": {"auth_key": SECRET},
        "url": {"url": f"rethinkdb://admin:{quote(SECRET, safe='')}@{server.host}:{server.port}"},
        "url auth_key": {"url": f"{server.url}?auth_key={quote(SECRET, safe='')}"},
    }[where]
    if "url" not in arguments:
        arguments |= {"host": server.host, "port": server.port}
    connector = RethinkDBConnector(**arguments)
    with pytest.raises(ConnectFailed) as caught:
        await connector.connect()
    for text in (repr(connector), str(caught.value), repr(caught.value), str(caught.value.__cause__)):
        assert SECRET not in text
        assert quote(SECRET, safe="") not in text
