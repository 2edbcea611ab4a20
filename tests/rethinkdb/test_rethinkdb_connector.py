"""The RethinkDB connector: its arguments, and how it opens, checks, closes and aborts."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import pathlib
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from rethinkdb.errors import ReqlAuthError, ReqlDriverError, ReqlError
from rethinkdb.net import Connection

from async_repool.connectors import Connector
from async_repool.connectors import rethinkdb as module
from async_repool.connectors.rethinkdb import R, RethinkDBConnection, RethinkDBConnector
from async_repool.errors import ConnectFailed
from async_repool.testing import StandInServer
from paths import DATA
from scripted_server import NOREPLY_WAIT, SERVER_INFO, SERVER_INFO_ANSWER, WAIT_COMPLETE, ScriptedServer

CERTIFICATE = DATA / "localhost.pem"
SECRET = "t0p/s3cret"


@pytest.fixture
async def server() -> AsyncIterator[StandInServer]:
    async with StandInServer() as server:
        yield server


@pytest.fixture
async def url(server: StandInServer) -> str:
    """Any server will do, so a real one where the environment names it."""
    return os.environ.get("RETHINKDB_URL") or server.url


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer().running() as server:
        yield server


@contextlib.asynccontextmanager
async def connected(connector: RethinkDBConnector) -> AsyncIterator[RethinkDBConnection]:
    connection = await connector.connect()
    try:
        yield connection
    finally:
        connector.abort(connection)
        await connection.close()


def connector_to(server: Any, **arguments: Any) -> RethinkDBConnector:
    return RethinkDBConnector(host=server.host, port=server.port, **arguments)


def sockets() -> Iterator[socket.socket]:
    """A copy of each TCP socket of this process, closed when the next is asked for."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    for name in os.listdir("/proc/self/fd"):
        try:
            is_socket = os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
            copy = os.dup(int(name)) if is_socket else None
        except OSError:  # the directory's own
            continue
        if copy is not None:
            with socket.socket(fileno=copy) as found:
                if found.family == socket.AF_INET:
                    yield found


def open_client_sockets(port: int) -> list[Any]:
    """The local ends of this process's sockets that are connected to a port."""
    found = []
    for candidate in sockets():
        with contextlib.suppress(OSError):
            if candidate.getpeername()[1] == port:
                found.append(candidate.getsockname())
    return found


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- arguments ---


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


# --- connecting ---


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


# --- TLS ---


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


# --- the password's price ---


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """In which thread each PBKDF2 of the connector ran; those of the scripted server do not count."""
    threads: list[threading.Thread] = []
    derive = hashlib.pbkdf2_hmac

    def count(*arguments: Any) -> bytes:
        if sys._getframe(1).f_globals is vars(module):
            threads.append(threading.current_thread())
        return derive(*arguments)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", count)
    return threads


@pytest.mark.parametrize("rounds", [4096, module.MAX_INLINE_ROUNDS + 1])
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
    assert is_in_loop is (rounds <= module.MAX_INLINE_ROUNDS), "what takes long belongs in a thread"


async def test_a_new_salt_is_used(derivations: list[threading.Thread]) -> None:
    async with ScriptedServer(SECRET.encode(), rounds=2).running() as server:
        connector = connector_to(server, password=SECRET)
        async with connected(connector):
            server.salt = b"another 16 bytes"
        async with connected(connector):
            pass
    assert len(derivations) == 2


@pytest.mark.parametrize("rounds", [0, -1, module.MAX_ROUNDS + 1])
async def test_a_server_cannot_make_us_compute_for_ever(
    rounds: int, derivations: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedServer(rounds=rounds).running() as server:
        with pytest.raises(ConnectFailed, match="rounds of PBKDF2"):
            await connector_to(server).connect()
    assert derivations == []


# --- cancellation ---


@pytest.mark.parametrize("how", ["plain", "TLS", "many rounds"])
async def test_cancelled_anywhere_it_leaves_no_socket_and_no_task(how: str) -> None:
    """Cancels after one turn of the loop, after two, and so on, until connecting wins."""
    context = None
    if how == "TLS":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
    rounds = module.MAX_INLINE_ROUNDS + 1 if how == "many rounds" else 1
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


# --- check ---


async def test_check_asks_the_server_who_it_is(url: str) -> None:
    connector = RethinkDBConnector(url=url)
    async with connected(connector) as connection:
        assert await connector.check(connection) is None


async def test_a_cancelled_check_leaves_the_connection_usable(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connector.check(connection)
        token, query = await peer.request()
        assert query == [SERVER_INFO]
        peer.answer(token, SERVER_INFO_ANSWER, {"id": "late"})
        second = asyncio.create_task(connector.check(connection))
        token, query = await peer.request()
        assert query == [SERVER_INFO], "a SERVER_INFO cannot be stopped, only waited out"
        peer.answer(token, SERVER_INFO_ANSWER, {"id": "in time"})
        await second
        assert connector.is_open(connection)


async def test_check_raises_where_the_server_is_another_one(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()

        async def be(server_id: str) -> None:
            token, _ = await peer.request()
            peer.answer(token, SERVER_INFO_ANSWER, {"id": server_id})

        for _ in range(2):
            await asyncio.gather(connector.check(connection), be("first"))
        with pytest.raises(ReqlDriverError, match="is another one now: second, not first"):
            await asyncio.gather(connector.check(connection), be("second"))


async def test_check_raises_when_the_peer_has_gone(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        check = asyncio.create_task(connector.check(connection))
        await peer.request()
        peer.end()
        with pytest.raises(ReqlDriverError, match="ended the connection"):
            await check
        assert not connector.is_open(connection)


# --- close and abort ---


async def test_close_waits_for_noreply_queries(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        await R.expr(1).run(connection, noreply=True)
        await peer.request()
        close = asyncio.create_task(connector.close(connection))
        token, query = await peer.request()
        assert query == [NOREPLY_WAIT]
        assert not connector.is_open(connection), "nobody may use it any more"
        await turns(5)
        assert not close.done()
        peer.answer(token, WAIT_COMPLETE)
        await close
        await peer.is_left()


async def test_close_asks_nothing_where_there_was_no_noreply_query_since(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        await R.expr(1).run(connection, noreply=True)
        await peer.request()
        assert connection.pending_noreply == 1
        wait = asyncio.create_task(connection.noreply_wait())
        token, _ = await peer.request()
        peer.answer(token, WAIT_COMPLETE)
        await wait
        assert connection.pending_noreply == 0
        await connector.close(connection)
        await peer.is_left()
        assert peer.reader.at_eof()


async def test_close_twice_and_after_abort_does_nothing(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    await connector.close(connection)
    await connector.close(connection)
    connector.abort(connection)
    connector.abort(connection)
    await connector.close(connection)


async def test_a_close_that_is_cancelled_releases_the_socket(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    peer = await scripted.peer()
    await R.expr(1).run(connection, noreply=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await connector.close(connection)
    connector.abort(connection)
    await turns(2)
    assert open_client_sockets(scripted.port) == []
    await peer.is_left()


async def test_two_closes_at_once_both_return(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    peer = await scripted.peer()
    await R.expr(1).run(connection, noreply=True)
    await peer.request()
    both = asyncio.gather(connector.close(connection), connection.close())
    token, _ = await peer.request()
    peer.answer(token, WAIT_COMPLETE)
    await both


async def test_close_says_if_the_noreply_queries_may_be_lost(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    peer = await scripted.peer()
    await R.expr(1).run(connection, noreply=True)
    await peer.request()
    close = asyncio.create_task(connector.close(connection))
    await peer.request()
    peer.end()
    with pytest.raises(ReqlDriverError, match="ended the connection before its noreply writes were done"):
        await close


async def test_abort_fails_what_still_runs_and_releases_the_socket(scripted: ScriptedServer) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    peer = await scripted.peer()
    query = asyncio.create_task(R.expr(1).run(connection))
    await peer.request()
    connector.abort(connection)
    assert not connector.is_open(connection)
    with pytest.raises(ReqlDriverError, match="Connection is closed"):
        await query
    await turns(2)
    assert open_client_sockets(scripted.port) == []


def test_abort_after_the_loop_has_ended_raises_nothing() -> None:
    kept = []

    async def connect() -> None:
        async with StandInServer() as server:
            connector = connector_to(server)
            kept.append((connector, await connector.connect()))

    asyncio.run(connect())
    for connector, connection in kept:
        connector.abort(connection)
        connector.abort(connection)
        assert not connector.is_open(connection)


# --- what the pool is told ---


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_peer_that_goes_away_is_noticed_at_once(scripted: ScriptedServer, how: str) -> None:
    connector = connector_to(scripted)
    async with connected(connector) as connection:
        peer = await scripted.peer()
        calls = []
        connector.on_lost(connection, lambda: calls.append(asyncio.current_task()))
        assert connector.is_open(connection)
        getattr(peer, how)()
        async with asyncio.timeout(5):
            while not calls:  # noqa: ASYNC110 - the callback is what is tested
                await asyncio.sleep(0)
        await turns(4)
        assert not connector.is_open(connection)
        assert len(calls) == 1
        assert connection.lost_reason is not None
        assert connection.lost_reason.startswith(f"127.0.0.1:{scripted.port} ")
        connector.on_lost(connection, lambda: calls.append(None))
        await turns(1)
        assert len(calls) == 2, "who asks late is told too"


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_nobody_is_told_of_an_end_that_was_asked_for(scripted: ScriptedServer, how: str) -> None:
    connector = connector_to(scripted)
    connection = await connector.connect()
    connector.on_lost(connection, lambda: pytest.fail("told"))
    if how == "close":
        await connector.close(connection)
    else:
        connector.abort(connection)
    await turns(4)
    assert connection.lost_reason is None


async def test_it_is_known_whether_somebody_still_reads(server: StandInServer) -> None:
    connector = connector_to(server)
    async with connected(connector) as connection:
        assert not connector.has_streams(connection)
        await connector.wait_streams(connection)
        cursor = await R.range(1_000_000).run(connection)
        assert connector.has_streams(connection)
        wait = asyncio.create_task(connector.wait_streams(connection))
        await turns(5)
        assert not wait.done()
        await cursor.close()
        assert not connector.has_streams(connection)
        await wait


async def test_waiting_for_readers_ends_with_the_connection(server: StandInServer) -> None:
    connector = connector_to(server)
    async with connected(connector) as connection:
        cursor = await R.range(1_000_000).run(connection)
        wait = asyncio.create_task(connector.wait_streams(connection))
        await turns(5)
        server.faults.cut()
        async with asyncio.timeout(5):
            await wait
        assert not connector.is_open(connection)
        assert cursor.error is not None
