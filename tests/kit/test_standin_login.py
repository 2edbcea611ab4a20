"""The stand-in server's login: users, passwords, refusals, and TLS."""

from __future__ import annotations

import contextlib
import json
import ssl

import pytest
from rethinkdb.errors import ReqlAuthError

from async_repool.testing import StandInServer
from paths import DATA
from standin_kit import eventually, r
from wire_client import (
    MAGIC,
    WireClient,
    hello,
)

CERTIFICATE = DATA / "localhost.pem"


async def refusal(server: StandInServer, data: bytes) -> bytes:
    """The last message to a client that sends ``data``. The server must close the connection after it."""
    wire = WireClient(server.host, server.port)
    await wire.connect()
    wire.write(data)
    messages = (await wire.read_to_end()).split(b"\0")
    await wire.close()
    assert messages.pop() == b""
    return messages[-1]


async def test_login_sends_the_version_and_proves_that_the_server_knows_the_password(server: StandInServer) -> None:
    wire = WireClient(server.host, server.port)
    await wire.connect()
    version, first, last = await wire.log_in("admin", "")
    await wire.close()
    assert version["success"]
    assert version["min_protocol_version"] == version["max_protocol_version"] == 0
    assert version["server_version"]
    assert first["authentication"].startswith("r=")
    assert last["authentication"].startswith("v=")


async def test_another_magic_number_is_answered_with_one_line_of_text(server: StandInServer) -> None:
    answer = await refusal(server, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"ERROR: Received an unsupported protocol version.")


@pytest.mark.parametrize(
    ("data", "code", "error"),
    [
        pytest.param(hello(protocol_version=1), 2, "Unsupported `protocol_version`.", id="version"),
        pytest.param(hello(authentication_method="PLAIN"), 4, "Unsupported `authentication_method`.", id="method"),
        pytest.param(MAGIC + b"{oops\0", 8, "Invalid JSON object.", id="no JSON"),
        pytest.param(MAGIC + b"[1]\0", 8, "Invalid JSON object.", id="no object"),
        pytest.param(MAGIC + b"x" * 70_000, 8, "Invalid JSON object.", id="endless"),
        pytest.param(hello(authentication="nonsense"), 10, "Invalid encoding", id="no SCRAM"),
        pytest.param(hello(authentication="p=x,,n=a,r=b"), 10, "Invalid encoding", id="channel binding"),
        pytest.param(hello() + b"{}\0", 10, "Invalid encoding", id="no proof"),
    ],
)
async def test_a_login_that_cannot_be_read_is_refused(
    server: StandInServer, data: bytes, code: int, error: str
) -> None:
    assert json.loads(await refusal(server, data)) == {"success": False, "error_code": code, "error": error}


@pytest.mark.parametrize(
    ("user", "password", "code", "error"),
    [("ana", "wrong", 12, "Wrong password"), ("ana", "", 12, "Wrong password"), ("nobody", "x", 17, "Unknown user")],
)
async def test_a_wrong_user_or_password_is_refused_only_after_the_proof(
    user: str, password: str, code: int, error: str
) -> None:
    async with StandInServer(users={"ana": "secret"}) as server:
        wire = WireClient(server.host, server.port)
        await wire.connect()
        replies = await wire.log_in(user, password)
        assert [reply["success"] for reply in replies] == [True, True, False]
        assert (replies[-1]["error_code"], replies[-1]["error"]) == (code, error)
        assert await wire.read_to_end() == b""
        await wire.close()


async def test_users_log_in_with_their_passwords_whatever_their_names() -> None:
    users = {"ana": "s3cret:=,", "a=b,c": "x", "admin": ""}
    async with StandInServer(users=users) as server:
        for user, password in users.items():
            async with WireClient(server.host, server.port, user, password) as wire:
                assert await wire.run(1) == 1


async def test_the_official_driver_logs_in_or_gets_the_reason() -> None:
    async with StandInServer(users={"ana": "secret"}) as server:
        conn = await r.connect(server.host, server.port, user="ana", password="secret")
        assert await r.expr(1).run(conn) == 1
        await conn.close()
        with pytest.raises(ReqlAuthError, match="Wrong password"):
            await r.connect(server.host, server.port, user="ana", password="wrong")


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS is deprecated")  # the driver's own
async def test_with_a_context_it_speaks_tls() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with StandInServer(ssl=context) as server:
        conn = await r.connect("127.0.0.1", server.port, ssl={"ca_certs": str(CERTIFICATE)})
        assert await r.expr(1).run(conn) == 1
        await conn.close()


async def test_a_client_without_tls_does_not_disturb_a_server_with_it() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with StandInServer(ssl=context) as server:
        wire = WireClient(server.host, server.port)
        await wire.connect()
        wire.write(hello())
        with contextlib.suppress(ConnectionResetError):
            await wire.read_to_end()
        await wire.close()
        silent = WireClient(server.host, server.port)
        await silent.connect()
        await eventually(lambda: server.connections_total == 2)
    await silent.close()
