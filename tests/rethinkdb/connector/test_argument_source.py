"""A callable that the RethinkDB connector asks for its arguments at every opening."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from async_repool.connectors import QueryConnector
from async_repool.connectors.rethinkdb import RethinkDBConnector
from async_repool.errors import ConnectFailed
from connection_kit import SECRET, connected
from scripted_server import ScriptedServer


def test_it_is_a_query_connector_too() -> None:
    assert isinstance(RethinkDBConnector(arguments=dict), QueryConnector)


async def test_nothing_is_asked_before_the_first_opening_and_then_everything_is_known(scripted: ScriptedServer) -> None:
    asked = []

    def ask() -> dict[str, Any]:
        asked.append(True)
        return {"host": scripted.host, "port": scripted.port, "timeout": 7}

    connector = RethinkDBConnector(arguments=ask)
    assert connector.endpoint == "a server that was not asked for yet"
    assert connector.connect_timeout == 20
    assert repr(connector) == "<RethinkDBConnector a server that was not asked for yet>"
    assert asked == []
    for times in (1, 2):
        async with connected(connector):
            assert len(asked) == times
    assert connector.endpoint == f"{scripted.host}:{scripted.port}"
    assert connector.connect_timeout == 7
    assert repr(connector) == f"<RethinkDBConnector admin@{scripted.host}:{scripted.port}>"


async def test_a_timeout_beside_the_callable_wins(scripted: ScriptedServer) -> None:
    connector = RethinkDBConnector(
        arguments=lambda: {"host": scripted.host, "port": scripted.port, "timeout": 1e-6}, timeout=5
    )
    assert connector.connect_timeout == 5
    async with connected(connector):
        assert connector.connect_timeout == 5


async def test_the_callable_may_be_a_coroutine_function(scripted: ScriptedServer) -> None:
    async def ask() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"host": scripted.host, "port": scripted.port}

    async with connected(RethinkDBConnector(arguments=ask)) as connection:
        assert connection.is_open()


async def test_the_work_for_a_password_is_done_again_only_if_the_arguments_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    derived = []
    derive = hashlib.pbkdf2_hmac

    def count(*arguments: Any) -> bytes:
        if arguments[3] == 77:  # rounds: of this server, and not of the server's own proof below
            derived.append(arguments[1])
        return derive(*arguments)

    async with ScriptedServer(SECRET.encode(), rounds=77).running() as server:
        arguments = {"host": server.host, "port": server.port, "password": SECRET}
        connector = RethinkDBConnector(arguments=lambda: arguments)
        monkeypatch.setattr(hashlib, "pbkdf2_hmac", count)
        counts = []
        for _ in range(3):
            async with connected(connector):
                counts.append(len(derived))
        arguments = arguments | {"db": "another"}
        async with connected(connector) as connection:
            counts.append(len(derived))
            assert connection.db == "another"
    by_client = [count - 1 - turn for turn, count in enumerate(counts)]  # the server derives once for each connection
    assert by_client == [1, 1, 1, 2]


async def test_a_changed_secret_is_used_at_the_next_opening() -> None:
    async with ScriptedServer(b"new").running() as server:
        arguments = {"host": server.host, "port": server.port, "password": "old"}
        connector = RethinkDBConnector(arguments=lambda: arguments)
        with pytest.raises(ConnectFailed) as caught:
            await connector.connect()
        assert caught.value.is_permanent
        arguments["password"] = "new"
        async with connected(connector) as connection:
            assert connection.is_open()


def raises() -> Any:
    raise LookupError("no secret today")


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (raises, LookupError, "no secret today"),
        (lambda: None, TypeError, "must return a mapping of them, not NoneType"),
        (lambda: {"port": 0}, ValueError, "port must be between 1 and 65535"),
        (lambda: {"pasword": SECRET}, TypeError, "pasword"),
    ],
)
async def test_what_is_wrong_with_the_arguments_is_what_the_opening_raises(
    ask: Callable[[], Any], error: type[Exception], says: str
) -> None:
    connector = RethinkDBConnector(arguments=ask)
    with pytest.raises(error, match=says) as caught:
        await connector.connect()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"arguments": {"host": "db1"}}, TypeError, "arguments must be a callable that returns them, not dict"),
        ({"arguments": dict, "host": "db1", "user": "bob"}, TypeError, "give host, user in what `arguments` returns"),
        ({"arguments": dict, "password": SECRET}, TypeError, "give password in what `arguments` returns"),
        ({"arguments": dict, "timeout": -1}, ValueError, "timeout must be a number of seconds above 0, not -1"),
    ],
)
def test_what_cannot_stand_beside_a_callable_is_refused_at_once(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        RethinkDBConnector(**arguments)
    assert SECRET not in str(caught.value)
