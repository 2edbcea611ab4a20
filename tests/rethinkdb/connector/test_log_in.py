"""How the RethinkDB connector opens a connection: name look-up, TCP, TLS and log-in."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import pathlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rethinkdb.errors import ReqlAuthError, ReqlDriverError, ReqlError
from rethinkdb.net import Connection

from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector, login
from async_repool.errors import ConnectFailed
from async_repool.testing import StandInServer
from connection_kit import CERTIFICATE, SECRET, connected, connector_to, open_client_sockets, sockets, turns
from scripted_server import ScriptedServer


async def test_a_connection_is_the_drivers_and_ready_for_queries(url: str) -> None:
    async with connected(RethinkDBConnector(url=url, db="somewhere")) as connection:
        assert isinstance(connection, Connection)
        assert connection.is_open()
        assert connection.db == "somewhere"
        assert await R.expr(1).run(connection) == 1
        assert connection.client_address() is not None
        assert connection.client_port() > 0


async def test_the_db_of_the_url_is_the_connections(scripted: ScriptedServer) -> None:
    async with connected(RethinkDBConnector(url=f"rethinkdb://{scripted.host}:{scripted.port}/app")) as connection:
        assert connection.db == "app"


async def test_r_connect_opens_the_same_connection(server: StandInServer) -> None:
    async with await R.connect(server.host, server.port, db="x", timeout=5) as connection:
        assert type(connection) is RethinkDBConnection
        assert await R.expr(1).run(connection) == 1


async def test_a_loop_and_an_empty_url_are_taken_for_nothing_as_by_the_driver(server: StandInServer) -> None:
    arguments: dict[str, Any] = {"host": server.host, "port": server.port}
    connector = RethinkDBConnector(**arguments, io_loop=asyncio.get_running_loop(), url="")
    connection = await connector.connect()
    assert connection.is_open()
    await connector.close(connection)


async def test_r_connect_takes_an_io_loop_as_the_driver_does(server: StandInServer) -> None:
    async with await R.connect(server.host, server.port, io_loop=asyncio.get_running_loop()) as connection:
        assert await R.expr(1).run(connection) == 1


async def test_r_connect_raises_the_drivers_errors(scripted: ScriptedServer) -> None:
    with pytest.raises(ReqlAuthError, match="Wrong password"):
        await R.connect(scripted.host, scripted.port, password=SECRET)
    with pytest.raises(ReqlDriverError, match=r"Could not connect to 127.0.0.1:1 "):
        await R.connect("127.0.0.1", 1)
    with pytest.raises(ReqlDriverError, match="both set"):
        await R.connect("127.0.0.1", 1, password="a", auth_key="b")
    with pytest.raises(TypeError, match="nonsense"):
        await R.connect("127.0.0.1", 1, nonsense=1)


@pytest.mark.parametrize(
    ("passwords", "url_password"),
    [
        (["100%"], "100%"),  # no encoding at all: as in the driver
        (["p%40ss"], "p%40ss"),  # looks encoded and is not: the driver's reading, which works today
        (["p@ss"], "p%40ss"),  # encoded: what a url is expected to hold, which the driver does not decode
    ],
)
async def test_a_password_in_a_url_may_be_encoded_or_not(passwords: list[str], url_password: str) -> None:
    async with ScriptedServer(passwords[0].encode()).running() as server:
        connector = RethinkDBConnector(url=f"rethinkdb://admin:{url_password}@{server.host}:{server.port}")
        async with connected(connector):
            tried = server.accepted
        async with connected(connector):
            assert server.accepted == tried + 1, "the reading that was right is remembered"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
async def test_a_password_may_be_other_than_ascii(encoding: str) -> None:
    # The server hashes UTF-8. The driver sends Latin-1, and some will have learnt to live with it.
    async with ScriptedServer("pässword".encode(encoding)).running() as server:
        connection = await connector_to(server, password="pässword").connect()
        await connection.close()


async def test_a_password_beyond_latin_1_works() -> None:
    async with ScriptedServer("пароль".encode()).running() as server:
        connection = await connector_to(server, password="пароль").connect()
        await connection.close()


async def test_a_wrong_password_is_permanent(scripted: ScriptedServer) -> None:
    with pytest.raises(ConnectFailed) as caught:
        await connector_to(scripted, password=SECRET).connect()
    assert caught.value.is_permanent
    assert type(caught.value.__cause__) is ReqlAuthError
    assert str(caught.value) == (
        f"Could not connect to 127.0.0.1:{scripted.port}, Wrong password (user 'admin'). Check `user` and `password`."
    )


async def test_an_unknown_user_is_permanent(scripted: ScriptedServer) -> None:
    with pytest.raises(ConnectFailed, match="Unknown user") as caught:
        await connector_to(scripted, user="nobody").connect()
    assert caught.value.is_permanent
    assert type(caught.value.__cause__) is ReqlAuthError


async def test_a_refused_connection_says_so_and_may_be_tried_again(scripted: ScriptedServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ConnectFailed) as caught:
            await RethinkDBConnector(host="127.0.0.1", port=port).connect()
    assert not caught.value.is_permanent
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    message = str(caught.value)
    assert message.startswith(f"Could not connect to 127.0.0.1:{port} as 'admin': ")
    assert "while connecting by TCP" in message
    assert "of 20 s" in message
    assert "is the server up" in message


async def test_an_unknown_host_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    with pytest.raises(ConnectFailed, match=r"while looking up the host's name.* Check `host`") as caught:
        await RethinkDBConnector(host="db1.invalid").connect()
    assert isinstance(caught.value.__cause__, socket.gaierror)


async def test_the_next_address_is_tried_where_the_first_refuses(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    look_up = loop.getaddrinfo

    async def two_addresses(host: str, port: int, **options: Any) -> Any:
        if host != "db1":  # uvloop looks up the numbers too
            return await look_up(host, port, **options)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1", 1)), (*kind, ("127.0.0.1", scripted.port))]

    monkeypatch.setattr(loop, "getaddrinfo", two_addresses)
    async with connected(RethinkDBConnector(host="db1")) as connection:
        assert connection.is_open()


@pytest.mark.parametrize(
    ("says", "match"),
    [
        (b"", "ended the connection without a word"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "ended the connection after b'HTTP/1.1 400 Bad Request"),
        (b"ERROR: Received an unsupported protocol version.\n\0", "no log-in of RethinkDB: b'ERROR: Received an uns"),
        (b"\xff\xfe\0", "no log-in of RethinkDB"),
        (b"[]\0", "no log-in of RethinkDB"),
        (b"{}\0", "no log-in of RethinkDB"),
        (b"[" * 50_000 + b"\0", "no log-in of RethinkDB"),
        (
            b'{"success":false,"error":"Unsupported `protocol_version`.","error_code":2}\0',
            "Unsupported `protocol_version`",
        ),
        (b'{"success":true,"min_protocol_version":7,"max_protocol_version":9}\0', "Unsupported protocol version"),
        (b"x" * 100_000, "no log-in of RethinkDB"),
    ],
)
async def test_a_peer_that_is_not_rethinkdb_is_told_apart(says: bytes, match: str) -> None:
    class Other(ScriptedServer):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\0")
            writer.write(says)
            if not says.endswith((b"\0", b"x")):
                writer.close()

    async with Other().running() as server:
        with pytest.raises(ConnectFailed, match=match) as caught:
            await connector_to(server).connect()
        assert not caught.value.is_permanent
        assert isinstance(caught.value.__cause__, ReqlError)
        assert "while logging in" in str(caught.value)
        assert "driver port" in str(caught.value)


async def test_bytes_behind_the_log_in_are_refused() -> None:
    class Talkative(ScriptedServer):
        def say(self, writer: asyncio.StreamWriter, message: Any) -> None:
            super().say(writer, message)
            if str(message.get("authentication")).startswith("v="):
                writer.write(b"and another thing")

    async with Talkative().running() as server:
        with pytest.raises(ConnectFailed, match="more than the log-in"):
            await connector_to(server).connect()


@pytest.mark.parametrize("stage", ["logging in", "setting up TLS"])
async def test_one_deadline_bounds_all_of_it(server: StandInServer, stage: str) -> None:
    server.faults.mute()
    arguments = {"ssl": {"ca_certs": CERTIFICATE}} if "TLS" in stage else {}
    started = time.monotonic()
    with pytest.raises(ConnectFailed, match=f"no answer while {stage}, after 0.* of 0.1 s") as caught:
        await connector_to(server, timeout=0.1, **arguments).connect()
    assert time.monotonic() - started < 2
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert not caught.value.is_permanent


async def test_a_peer_that_drips_its_log_in_does_not_extend_the_deadline() -> None:
    class Dripping(ScriptedServer):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while not writer.is_closing():
                    writer.write(b"x")
                    await asyncio.sleep(0.01)

    async with Dripping().running() as server:
        started = time.monotonic()
        with pytest.raises(ConnectFailed, match="no answer"):
            await connector_to(server, timeout=0.1).connect()
        assert time.monotonic() - started < 2


@pytest.fixture
async def tcp(scripted: ScriptedServer) -> dict[str, int]:
    """The TCP options of a connection's socket, and whether the kernel looks after it when it is silent."""
    if sys.platform != "linux":
        pytest.skip("the options are Linux's")
    names = ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    async with connected(connector_to(scripted)) as connection:
        mine = (connection.client_address(), connection.client_port())
        (found,) = [
            {name: candidate.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names}
            | {"SO_KEEPALIVE": candidate.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}
            for candidate in sockets()
            if candidate.getsockname() == mine
        ]
    return found


def test_small_queries_are_sent_without_delay(tcp: dict[str, int]) -> None:
    assert tcp["TCP_NODELAY"]


def test_a_silent_peer_that_vanished_is_noticed_within_two_minutes(tcp: dict[str, int]) -> None:
    assert tcp["SO_KEEPALIVE"]
    assert 30 <= tcp["TCP_KEEPIDLE"] + tcp["TCP_KEEPINTVL"] * tcp["TCP_KEEPCNT"] <= 120


def test_a_peer_that_vanished_while_it_was_written_to_is_noticed_within_two_minutes(tcp: dict[str, int]) -> None:
    assert 30_000 <= tcp["TCP_USER_TIMEOUT"] <= 120_000, "milliseconds; sooner, and a busy server would be given up"


def test_a_connection_that_nobody_uses_is_not_forgotten_by_what_stands_between(tcp: dict[str, int]) -> None:
    assert tcp["TCP_KEEPIDLE"] < 60, "seconds after which some NATs forget a connection"


@pytest.fixture
async def tls_server() -> AsyncIterator[StandInServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with StandInServer(ssl=context) as server:
        yield server


async def test_tls_works(tls_server: StandInServer) -> None:
    connector = connector_to(tls_server, ssl={"ca_certs": str(CERTIFICATE)})
    assert repr(connector).endswith(" with TLS>")
    async with connected(connector) as connection:
        assert await R.expr(1).run(connection) == 1
        assert await (await R.range(5000).run(connection)).next() == 0


async def test_the_certificates_are_loaded_once(tls_server: StandInServer, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = ssl.SSLContext.load_verify_locations

    def count(self: ssl.SSLContext, *arguments: Any) -> None:
        loaded.append(arguments)
        load(self, *arguments)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", count)
    connector = connector_to(tls_server, ssl={"ca_certs": CERTIFICATE})
    assert loaded == []
    connections = await asyncio.gather(*[connector.connect() for _ in range(5)])
    assert len(loaded) == 1
    for connection in connections:
        await connector.close(connection)


@pytest.mark.parametrize(("name", "cause"), [("missing.pem", FileNotFoundError), ("empty.pem", ssl.SSLError)])
async def test_a_bad_path_is_named(
    tls_server: StandInServer, tmp_path: pathlib.Path, name: str, cause: type[Exception]
) -> None:
    (tmp_path / "empty.pem").touch()
    with pytest.raises(ConnectFailed, match=f"loading the certificates of ssl=.*{name}.*Check `ssl`") as caught:
        await connector_to(tls_server, ssl={"ca_certs": str(tmp_path / name)}).connect()
    assert isinstance(caught.value.__cause__, cause)


async def test_a_certificate_for_another_name_is_refused(
    tls_server: StandInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", tls_server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: address)
    connector = RethinkDBConnector(host="db1", port=tls_server.port, ssl={"ca_certs": CERTIFICATE})
    with pytest.raises(ConnectFailed, match=r"while setting up TLS.*Check `ssl`") as caught:
        await connector.connect()
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_a_server_without_tls_is_told_apart(scripted: ScriptedServer) -> None:
    with pytest.raises(ConnectFailed, match="while setting up TLS") as caught:
        await connector_to(scripted, ssl={"ca_certs": CERTIFICATE}, timeout=5).connect()
    assert isinstance(caught.value.__cause__, OSError)


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """In which thread each PBKDF2 of the connector ran; those of the scripted server do not count."""
    threads: list[threading.Thread] = []
    derive = hashlib.pbkdf2_hmac

    def count(*arguments: Any) -> bytes:
        if sys._getframe(1).f_globals is vars(login):
            threads.append(threading.current_thread())
        return derive(*arguments)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", count)
    return threads


@pytest.mark.parametrize("rounds", [4096, login.MAX_INLINE_ROUNDS + 1])
async def test_the_password_is_salted_once_for_many_connections(
    rounds: int, derivations: list[threading.Thread]
) -> None:
    async with ScriptedServer(SECRET.encode(), rounds=rounds).running() as server:
        connector = connector_to(server, password=SECRET)
        connections = await asyncio.gather(*[connector.connect() for _ in range(10)])
        for connection in connections:
            connector.abort(connection)
        await turns(3)
    assert len(derivations) == 1
    is_in_loop = derivations[0] is threading.current_thread()
    assert is_in_loop is (rounds <= login.MAX_INLINE_ROUNDS), "what takes long belongs in a thread"


async def test_a_new_salt_is_used(derivations: list[threading.Thread]) -> None:
    async with ScriptedServer(SECRET.encode(), rounds=2).running() as server:
        connector = connector_to(server, password=SECRET)
        async with connected(connector):
            server.salt = b"another 16 bytes"
        async with connected(connector):
            pass
    assert len(derivations) == 2


@pytest.mark.parametrize("rounds", [0, -1, login.MAX_ROUNDS + 1])
async def test_a_server_cannot_make_us_compute_for_ever(
    rounds: int, derivations: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedServer(rounds=rounds).running() as server:
        with pytest.raises(ConnectFailed, match="rounds of PBKDF2"):
            await connector_to(server).connect()
    assert derivations == []


@pytest.mark.parametrize("how", ["plain", "TLS", "many rounds"])
async def test_cancelled_anywhere_it_leaves_no_socket_and_no_task(how: str) -> None:
    """Cancels after one turn of the loop, after two, and so on, until connecting wins."""
    context = None
    if how == "TLS":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
    rounds = login.MAX_INLINE_ROUNDS + 1 if how == "many rounds" else 1
    async with ScriptedServer(rounds=rounds).running(context) as server:
        tasks_before = asyncio.all_tasks()
        arguments = {"ssl": {"ca_certs": CERTIFICATE}} if context else {}
        won, cancelled = 0, 0
        for count in range(5000):
            connector = connector_to(server, **arguments)
            task = asyncio.create_task(connector.connect())
            await turns(count if how != "many rounds" else count % 50)
            if how == "many rounds" and count % 10 == 9:
                await asyncio.wait([task])  # past the thread
            task.cancel()
            try:
                connection = await task
            except asyncio.CancelledError:
                cancelled += 1
            else:
                won += 1
                connector.abort(connection)
            await turns(2)
            assert open_client_sockets(server.port) == [], f"a socket is left after {count} turns of the loop"
            if won == 3:
                break
        assert won == 3
        assert cancelled >= 5
        async with asyncio.timeout(5):
            while rest := asyncio.all_tasks() - tasks_before:  # the server's own, about the last clients
                await asyncio.wait(rest)
        gc.collect()  # an unclosed socket would warn now, and a warning is an error


async def test_a_deadline_leaves_no_socket(server: StandInServer) -> None:
    server.faults.mute()
    with pytest.raises(ConnectFailed):
        await connector_to(server, timeout=0.02).connect()
    await turns(2)
    assert open_client_sockets(server.port) == []


async def test_a_refused_log_in_leaves_no_socket(scripted: ScriptedServer) -> None:
    with pytest.raises(ConnectFailed):
        await connector_to(scripted, password=SECRET).connect()
    await turns(2)
    assert open_client_sockets(scripted.port) == []
