"""Faults on demand: the stand-in server and a proxy in front of it have the same controls and the same effects."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from rethinkdb.errors import ReqlDriverError

from async_repool.testing import Fault, FaultProxy, Faults, StandInServer
from paths import DATA
from standin_kit import r
from wire_client import WireClient, query, squares

CERTIFICATE = DATA / "localhost.pem"


@dataclass
class Place:
    """An address to connect to, and the controls of its faults."""

    host: str
    port: int
    faults: Faults

    def client(self) -> WireClient:
        return WireClient(self.host, self.port)


@pytest.fixture(params=["stand-in", "proxy"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    async with StandInServer() as server:
        if request.param == "stand-in":
            yield Place(server.host, server.port, server.faults)
        else:
            async with FaultProxy(server.host, server.port) as proxy:
                yield Place(proxy.host, proxy.port, proxy.faults)
            assert proxy.connections == 0
    assert server.connections == 0


@pytest.fixture
async def wire(place: Place) -> AsyncIterator[WireClient]:
    async with place.client() as wire:
        yield wire


async def is_silent(wire: WireClient) -> bool:
    """Whether the connection sends nothing and does not end for a short time."""
    try:
        async with asyncio.timeout(0.05):
            await wire.read_exactly(1)
    except TimeoutError:
        return True
    return False


async def test_without_faults_all_passes_untouched(place: Place, wire: WireClient) -> None:
    assert await wire.run("x" * 300_000) == "x" * 300_000
    answers = await wire.ask_all(2, query([173, [2000]]))
    assert [row for answer in answers for row in answer["r"]] == list(range(2000))
    assert all(place.faults.happened(fault) == 0 for fault in Fault)
    assert repr(place.faults) == "<Faults none>"


async def test_a_refused_port_can_be_opened_again_and_open_connections_live_on(place: Place, wire: WireClient) -> None:
    place.faults.refuse()
    with pytest.raises(ConnectionRefusedError):
        await place.client().connect()
    assert await wire.run(1) == 1
    place.faults.refuse(False)
    async with place.client() as other:
        assert await other.run(1) == 1
    assert place.faults.happened(Fault.REFUSE) == 1


async def test_a_mute_server_accepts_and_never_answers(place: Place, wire: WireClient) -> None:
    place.faults.mute()
    mute = place.client()
    await mute.connect()
    mute.write(b"anything")
    assert await is_silent(mute)
    assert await wire.run(1) == 1
    assert place.faults.happened(Fault.MUTE) == 1
    place.faults.mute(False)
    assert await is_silent(mute)
    async with place.client() as other:
        assert await other.run(1) == 1
    await mute.close()


async def test_a_frozen_server_answers_nobody_until_it_thaws(place: Place, wire: WireClient) -> None:
    place.faults.freeze()
    wire.send(1, "[1,1]")
    newcomer = asyncio.create_task(place.client().__aenter__())
    assert await is_silent(wire)
    assert not newcomer.done()
    place.faults.thaw()
    assert (await wire.receive())[1]["r"] == [1]
    logged_in = await newcomer
    assert await logged_in.run(2) == 2
    await logged_in.close()
    assert place.faults.happened(Fault.FREEZE) == 1


async def test_an_answer_that_was_under_way_is_frozen_too(place: Place, wire: WireClient) -> None:
    wire.send(1, query(squares(20_000)))
    wire.send(2, "[1,1]")
    assert (await wire.receive())[0] == 2
    place.faults.freeze()
    assert await is_silent(wire)
    place.faults.thaw()
    assert (await wire.receive())[0] == 1


async def test_delay_makes_each_answer_late_but_not_each_later_than_the_last(place: Place, wire: WireClient) -> None:
    place.faults.delay = 0.05
    began = time.monotonic()
    for token in range(100):
        wire.send(token, "[1,1]")
    assert [(await wire.receive())[0] for _ in range(100)] == list(range(100))
    assert 0.05 <= time.monotonic() - began < 100 * 0.05
    assert place.faults.happened(Fault.DELAY) == 100
    place.faults.delay = 0
    assert await wire.run(1) == 1
    assert place.faults.happened(Fault.DELAY) == 100


async def test_delay_holds_for_the_login_too(place: Place) -> None:
    place.faults.delay = 0.02
    began = time.monotonic()
    async with place.client():
        assert time.monotonic() - began >= 0.04
    assert place.faults.happened(Fault.DELAY) == 3


async def test_clearing_a_delay_keeps_the_order_of_answers_that_are_held_back(place: Place, wire: WireClient) -> None:
    place.faults.delay = 0.05
    wire.send(1, "[1,1]")
    wire.send(2, "[1,2]")
    while not place.faults.happened(Fault.DELAY):  # noqa: ASYNC110  (it polls a counter)
        await asyncio.sleep(0.001)
    place.faults.clear()
    wire.send(3, "[1,3]")
    assert [(await wire.receive())[0] for _ in range(3)] == [1, 2, 3]


async def test_a_cut_resets_all_connections(place: Place, wire: WireClient) -> None:
    async with place.client() as other:
        assert place.faults.cut() == 2
        for victim in (wire, other):
            with pytest.raises(ConnectionResetError):
                await victim.read_to_end()
    assert place.faults.happened(Fault.RESET) == 2
    assert place.faults.cut() == 0
    async with place.client() as again:
        assert await again.run(1) == 1


async def test_an_orderly_cut_is_an_end_of_file(place: Place, wire: WireClient) -> None:
    assert place.faults.cut(orderly=True) == 1
    assert await wire.read_to_end() == b""
    assert place.faults.happened(Fault.EOF) == 1


@pytest.mark.parametrize("orderly", [True, False])
async def test_the_next_connection_can_be_cut_and_only_that(place: Place, wire: WireClient, orderly: bool) -> None:
    assert place.faults.cut(orderly=orderly, when="next connection") == 0
    assert place.faults.pending == 1
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await place.client().__aenter__()
    assert place.faults.pending == 0
    assert place.faults.happened(Fault.EOF if orderly else Fault.RESET) == 1
    async with place.client() as other:
        assert await other.run(1) == await wire.run(1) == 1


@pytest.mark.parametrize("orderly", [True, False])
async def test_a_connection_can_be_cut_right_behind_an_answer(place: Place, wire: WireClient, orderly: bool) -> None:
    place.faults.cut(orderly=orderly, when="after next answer")
    assert await wire.run(1) == 1
    if orderly:
        assert await wire.read_to_end() == b""
    else:
        with pytest.raises(ConnectionResetError):
            await wire.read_to_end()
    assert place.faults.pending == 0


async def test_garbage_comes_instead_of_an_answer_and_is_the_same_in_every_run(place: Place, wire: WireClient) -> None:
    place.faults.inject(Fault.GARBAGE)
    wire.send(1, "[1,1]")
    assert await wire.read_exactly(64) == Faults().random_bytes(64)
    assert await wire.run(1) == 1
    assert place.faults.happened(Fault.GARBAGE) == 1


async def test_bad_json_comes_behind_a_good_header(place: Place, wire: WireClient) -> None:
    place.faults.inject(Fault.BAD_JSON)
    wire.send(1, "[1,1]")
    header = await wire.read_exactly(12)
    assert header[0] == 1
    assert set(await wire.read_exactly(header[8])) == {ord("{")}
    assert await wire.run(1) == 1
    assert place.faults.happened(Fault.BAD_JSON) == 1


async def test_half_an_answer_is_followed_by_the_end(place: Place, wire: WireClient) -> None:
    whole = b"\x01" + bytes(7) + b"\x0f" + bytes(3) + b'{"t":1,"r":[1]}'
    place.faults.inject(Fault.HALF_ANSWER)
    wire.send(1, "[1,1]")
    assert await wire.read_to_end() == whole[: len(whole) // 2]
    assert place.faults.happened(Fault.HALF_ANSWER) == 1


async def test_an_answer_may_come_with_a_wrong_token(place: Place, wire: WireClient) -> None:
    place.faults.inject(Fault.WRONG_TOKEN, times=2)
    wire.send(1, "[1,1]")
    wire.send(2, "[1,2]")
    wire.send(3, "[1,3]")
    assert [(await wire.receive())[0] for _ in range(3)] == [1_000_001, 1_000_002, 3]
    assert place.faults.happened(Fault.WRONG_TOKEN) == 2


async def test_a_wrong_token_waits_for_a_query_and_garbage_does_not(place: Place) -> None:
    place.faults.inject(Fault.WRONG_TOKEN)
    async with place.client() as wire:
        assert place.faults.pending == 1
        wire.send(1, "[1,1]")
        assert (await wire.receive())[0] == 1_000_001
    place.faults.inject(Fault.GARBAGE)
    wire = place.client()
    await wire.connect()
    wire.write(b"\xc3\xbd\xc2\x34")
    assert await wire.read_exactly(64) == Faults().random_bytes(64)
    await wire.close()


async def test_clear_ends_and_forgets_all_faults_and_keeps_the_counts(place: Place, wire: WireClient) -> None:
    place.faults.refuse()
    place.faults.mute()
    place.faults.freeze()
    place.faults.delay = 5
    place.faults.inject(Fault.GARBAGE)
    place.faults.cut(when="next connection")
    assert repr(place.faults) == "<Faults frozen, mute, refusing, delay 5 s, 2 pending>"
    place.faults.clear()
    assert repr(place.faults) == "<Faults none>"
    assert place.faults.happened(Fault.FREEZE) == place.faults.happened(Fault.REFUSE) == 1
    assert await wire.run(1) == 1
    async with place.client() as other:
        assert await other.run(1) == 1


async def test_bad_arguments_are_errors() -> None:
    faults = Faults()
    with pytest.raises(ValueError, match="delay must be 0 or more seconds, not -1"):
        faults.delay = -1
    with pytest.raises(ValueError, match="when must be"):
        faults.cut(when="later")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be injected"):
        faults.inject(Fault.FREEZE)  # type: ignore[arg-type]


async def test_faults_may_be_set_up_before_the_server_starts() -> None:
    faults = Faults()
    faults.refuse()
    async with StandInServer(faults=faults) as server:
        assert server.port
        with pytest.raises(ConnectionRefusedError):
            await WireClient(server.host, server.port).connect()
        faults.clear()
        async with WireClient(server.host, server.port) as wire:
            assert await wire.run(1) == 1


async def test_a_frozen_server_stops_without_a_thaw(place: Place, wire: WireClient) -> None:
    place.faults.freeze()
    wire.send(1, "[1,1]")
    await asyncio.sleep(0)


async def test_the_official_driver_sees_a_frozen_server_as_a_timeout(place: Place) -> None:
    place.faults.freeze()
    with pytest.raises(ReqlDriverError, match="Connection interrupted during handshake"):
        await r.connect(place.host, place.port, timeout=0.05)


async def test_the_official_driver_fails_on_bad_json(place: Place) -> None:
    conn = await r.connect(place.host, place.port)
    place.faults.inject(Fault.BAD_JSON)
    with pytest.raises(ReqlDriverError):
        await r.expr(1).run(conn)
    assert not conn.is_open()
    await conn.close(False)


async def test_a_proxy_whose_target_is_gone_resets_its_clients() -> None:
    async with StandInServer() as server:
        pass
    async with FaultProxy(server.host, server.port) as proxy:
        wire = WireClient(proxy.host, proxy.port)
        await wire.connect()
        with pytest.raises(ConnectionResetError):
            await wire.read_to_end()
        await wire.close()


async def test_a_proxy_passes_on_how_its_target_ends_a_connection() -> None:
    async with StandInServer() as server, FaultProxy(server.host, server.port) as proxy:
        async with WireClient(proxy.host, proxy.port) as wire:
            server.faults.cut(orderly=True, when="after next answer")
            assert await wire.run(1) == 1
            assert await wire.read_to_end() == b""
        async with WireClient(proxy.host, proxy.port) as wire:
            server.faults.cut()
            with pytest.raises(ConnectionResetError):
                await wire.read_to_end()


async def test_a_client_that_leaves_the_proxy_leaves_the_server() -> None:
    async with StandInServer() as server, FaultProxy(server.host, server.port) as proxy:
        async with WireClient(proxy.host, proxy.port) as wire:
            wire.send(1, query(squares(50_000_000)))
            await wire.drain()
        async with asyncio.timeout(10):
            while server.connections or proxy.connections:  # noqa: ASYNC110  (it polls counters)
                await asyncio.sleep(0.001)


async def test_what_a_client_sent_before_it_left_the_proxy_still_arrives() -> None:
    async with StandInServer() as server, FaultProxy(server.host, server.port) as proxy:
        async with WireClient(proxy.host, proxy.port) as wire:
            wire.send(1, query([56, [[15, ["t"]], {"id": 1, "text": "x" * 1_000_000}]], noreply=True))
            await wire.drain()
        async with asyncio.timeout(10):
            while not server.queries_total:  # noqa: ASYNC110  (it polls a counter)
                await asyncio.sleep(0.001)


async def test_a_proxy_passes_large_traffic_on_in_both_directions() -> None:
    text = "x" * 10_000_000
    async with (
        StandInServer() as server,
        FaultProxy(server.host, server.port) as proxy,
        WireClient(proxy.host, proxy.port) as wire,
    ):
        assert await wire.run(text) == text


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS is deprecated")  # the driver's own
async def test_a_proxy_passes_tls_on_and_can_freeze_and_cut_it() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    async with StandInServer(ssl=context) as server, FaultProxy(server.host, server.port) as proxy:
        conn = await r.connect(proxy.host, proxy.port, ssl={"ca_certs": str(CERTIFICATE)})
        proxy.faults.freeze()
        answer = asyncio.create_task(r.expr(1).run(conn))
        await asyncio.sleep(0.01)
        assert not answer.done()
        proxy.faults.thaw()
        assert await answer == 1
        proxy.faults.cut()
        with pytest.raises(ReqlDriverError):
            await r.expr(1).run(conn)
        with contextlib.suppress(ConnectionResetError):
            await conn.close(False)
