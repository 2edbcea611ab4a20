"""The conformance suite: it passes connectors that keep their promises, and catches each one that breaks one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import socket

import pytest

from async_repool.errors import ConnectionLost, NotSent
from async_repool.testing.conformance import ConformanceError, SampleQueries, check_connector
from async_repool.testing.scripted import ScriptedConnector, error, never, ok, slow


class SocketConnector:
    """A connector that keeps every promise, over real sockets: the peer echoes lines."""

    connect_timeout = 5.0

    def __init__(self, host, port):
        self.host, self.port = host, port

    @property
    def endpoint(self):
        return f"{self.host}:{self.port}"

    async def connect(self):
        reader, writer = await asyncio.open_connection(self.host, self.port)
        connection = SocketConnection(reader, writer)
        try:
            await self.check(connection)
        except BaseException:
            self.abort(connection)
            raise
        return connection

    def is_open(self, connection, /):
        return not connection.writer.transport.is_closing()

    def on_lost(self, connection, callback, /):
        pass

    def has_streams(self, connection, /):
        return False

    async def wait_streams(self, connection, /):
        pass

    async def check(self, connection, /):
        connection.writer.write(b"ping\n")
        connection.unread += 1
        # Answers of checks that were cancelled come first.
        while connection.unread:
            if not await connection.reader.readline():
                raise ConnectionResetError
            connection.unread -= 1

    async def close(self, connection, /):
        connection.writer.close()
        await connection.writer.wait_closed()

    def abort(self, connection, /):
        connection.writer.transport.abort()


class SocketConnection:
    def __init__(self, reader, writer):
        self.reader, self.writer, self.unread = reader, writer, 0


async def echo(reader, writer):
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(line)


@contextlib.asynccontextmanager
async def echo_server():
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()


class AnsweringConnector(ScriptedConnector):
    """A scripted connector that knows the sample queries. Rows of a stream come in batches, one each 0.1 s."""

    async def run(self, connection, query, options, /):
        if connection.is_open():
            kind, number = query
            self.queries.then({"value": ok(number), "rows": ok([*range(number)]), "slow": never()}[kind])
        return await super().run(connection, query, options)

    async def open_stream(self, connection, query, options, /):
        kind, number = query
        if connection.is_open():
            self.streams.then(ok(number) if kind == "value" else ok())
        reader = await super().open_stream(connection, query, options)
        if kind == "rows":
            loop, stream = asyncio.get_running_loop(), self.opened_streams[-1]
            for first in range(0, number, 100):
                loop.call_later(first / 1000, stream.send, *range(first, min(first + 100, number)))
            loop.call_later(number / 1000, stream.end)
        return reader


QUERIES = SampleQueries(
    value=lambda number: ("value", number),
    rows=lambda number: ("rows", number),
    endless=("endless", 0),
    slow=("slow", 0),
)


# Connectors that keep their promises.


@pytest.mark.virtual_time
async def test_the_scripted_connector_keeps_every_promise():
    connector = ScriptedConnector()
    await check_connector(connector)
    connector.assert_nothing_left()


@pytest.mark.virtual_time
async def test_the_scripted_connector_keeps_every_promise_of_queries():
    connector = AnsweringConnector()
    await check_connector(connector, queries=QUERIES)
    connector.assert_nothing_left()
    assert connector.open_streams == []
    assert max(connection.max_in_flight for connection in connector.connections) == 100


@pytest.mark.virtual_time
async def test_without_sample_queries_none_is_run():
    connector = AnsweringConnector()
    await check_connector(connector)
    assert connector.queries.started_total == connector.streams.started_total == 0


@pytest.mark.virtual_time
async def test_a_sample_query_that_is_not_slow_is_the_fault_of_its_author():
    samples = dataclasses.replace(QUERIES, slow=("value", 1))
    with pytest.raises(ConformanceError, match="the slow query was answered at once: 1"):
        await check_connector(AnsweringConnector(), queries=samples)


@pytest.mark.virtual_time
async def test_a_slow_connector_keeps_every_promise():
    connector = ScriptedConnector()
    for verb in (connector.connects, connector.checks, connector.closes):
        verb.always(slow(1))
    await check_connector(connector, seconds=100)
    connector.assert_nothing_left()


async def test_a_connector_over_real_sockets_keeps_every_promise():
    async with echo_server() as address:
        await check_connector(SocketConnector(*address))


@pytest.mark.virtual_time
async def test_as_many_connections_are_opened_at_once_as_is_asked_for():
    connector = ScriptedConnector()
    await check_connector(connector, connections=37)
    assert connector.max_open == 37


# Connectors that break one. The first of each pair says how the report must begin.

BROKEN = []


def breaks(promise):
    def register(connector_class):
        BROKEN.append(pytest.param(promise, connector_class, id=connector_class.__name__))
        return connector_class

    return register


@breaks("the protocol is complete: a method or a property of the Connector protocol is missing")
class HasNoStreams(ScriptedConnector):
    wait_streams = None


@breaks("endpoint says where: it must be text that is not empty, not ''")
class HasNoEndpoint(ScriptedConnector):
    def __init__(self):
        super().__init__(endpoint="")


@breaks("connect_timeout is positive: it must be a finite number of seconds above 0, not 0.0")
class HasNoTime(ScriptedConnector):
    def __init__(self):
        super().__init__(connect_timeout=0.0)


@breaks("connect() gives an open connection: is_open() of a new connection is not True")
class OpensClosed(ScriptedConnector):
    async def connect(self):
        connection = await super().connect()
        self.drop(connection)
        return connection


@breaks("connect() gives an open connection: connect() raised OSError('refused')")
class CannotConnect(ScriptedConnector):
    def __init__(self):
        super().__init__()
        self.connects.always(error(OSError("refused")))


@breaks("connect() gives an open connection: not done after 20 s: connect() did not end")
class NeverConnects(ScriptedConnector):
    def __init__(self):
        super().__init__()
        self.connects.always(never())


@breaks("a new connection has no streams: has_streams() of a new connection is not False")
class OpensWithStreams(ScriptedConnector):
    async def connect(self):
        connection = await super().connect()
        connection.open_stream()
        return connection


@breaks("check() passes: check() of a new connection raised ConnectionResetError()")
class ChecksFail(ScriptedConnector):
    def __init__(self):
        super().__init__()
        self.checks.always(error(ConnectionResetError()))


@breaks("check() passes: a second check() raised LookupError('checked already')")
class ChecksOnce(ScriptedConnector):
    async def check(self, connection, /):
        await super().check(connection)
        self.checks.always(error(LookupError("checked already")))


@breaks("check() passes: check() of a new connection raised CancelledError, and nobody had cancelled it")
class ChecksCancelThemselves(ScriptedConnector):
    async def check(self, connection, /):
        raise asyncio.CancelledError


@breaks("check() passes: the connection is not open any more after check()")
class CheckCloses(ScriptedConnector):
    async def check(self, connection, /):
        await super().check(connection)
        self.abort(connection)


@breaks("close() closes: the connection is still open after close()")
class DoesNotClose(ScriptedConnector):
    async def close(self, connection, /):
        await asyncio.sleep(0)


@breaks("close() does nothing to what has ended: close() of a closed connection raised LookupError('closed already')")
class ClosesOnce(ScriptedConnector):
    async def close(self, connection, /):
        if connection.ended_by == "close":
            raise LookupError("closed already")
        await super().close(connection)


@breaks("abort() ends at once: abort() must do its work at once, not return something to await")
class AbortsLater(ScriptedConnector):
    def abort(self, connection, /):
        super().abort(connection)
        return asyncio.sleep(0)


@breaks("abort() ends at once: the connection is still open after abort()")
class DoesNotAbort(ScriptedConnector):
    def abort(self, connection, /):
        asyncio.get_running_loop().call_soon(super().abort, connection)


@breaks("abort() never raises: a second abort() raised LookupError('aborted already')")
class AbortsOnce(ScriptedConnector):
    def abort(self, connection, /):
        if connection.ended_by == "abort":
            raise LookupError("aborted already")
        super().abort(connection)


@breaks("abort() never raises: abort() of a closed connection raised LookupError('closed already')")
class CannotAbortClosed(ScriptedConnector):
    def abort(self, connection, /):
        if connection.ended_by == "close":
            raise LookupError("closed already")
        super().abort(connection)


@breaks("on_lost() is for losses: its callback was called after abort()")
class TellsOfAborts(ScriptedConnector):
    def on_lost(self, connection, callback, /):
        connection.callback = callback

    def abort(self, connection, /):
        super().abort(connection)
        getattr(connection, "callback", bool)()


@breaks("many can be opened at once: some are the same object")
class OpensOne(ScriptedConnector):
    async def connect(self):
        await super().connect()
        return self.open_connections[0]


@breaks("many can be opened at once: connect() raised ExceptionGroup(")
class OpensFew(ScriptedConnector):
    async def connect(self):
        if self.connects.in_progress == 5:
            raise OSError("too many")
        return await super().connect()


@breaks("many can be opened at once: abort() of one ended others too")
class AbortsAll(ScriptedConnector):
    def abort(self, connection, /):
        for one in self.open_connections:
            super().abort(one)


@breaks("connect() can be cancelled: connect(), cancelled in its wait number 2, left a task behind: background")
class LeaksTask(ScriptedConnector):
    async def connect(self):
        await asyncio.sleep(0)
        self.task = asyncio.create_task(asyncio.sleep(60), name="background")
        connection = await super().connect()
        self.task.cancel()
        return connection


@breaks("connect() can be cancelled: connect(), cancelled in its wait number 1, went on as if")
class SwallowsCancellation(ScriptedConnector):
    async def connect(self):
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: future.done() or future.set_result(None))
        try:
            await future
        except asyncio.CancelledError:
            if not future.done() or future.cancelled():
                raise
        return await super().connect()


@breaks(
    "connect() can be cancelled: connect(), cancelled in its wait number 1, "
    "raised OSError('interrupted') instead of CancelledError"
)
class HidesCancellation(ScriptedConnector):
    async def connect(self):
        try:
            return await super().connect()
        except asyncio.CancelledError:
            raise OSError("interrupted") from None


@breaks("connect() can be cancelled: not done after 20 s: connect(), cancelled in its wait number 1, did not end")
class HangsWhenCancelled(ScriptedConnector):
    async def connect(self):
        try:
            return await super().connect()
        except asyncio.CancelledError:
            await asyncio.Event().wait()


@breaks("connect() can be cancelled: warned: unclosed <socket.socket")
class LeavesSocketToTheCollector(ScriptedConnector):
    async def connect(self):
        ours, theirs = socket.socketpair()
        connection = await super().connect()
        ours.close()
        theirs.close()
        return connection


@breaks("check() can be cancelled: check(), cancelled in its wait number 1, left the connection closed")
class CancelledCheckCloses(ScriptedConnector):
    async def check(self, connection, /):
        try:
            await super().check(connection)
        except asyncio.CancelledError:
            self.abort(connection)
            raise


@breaks(
    "check() can be cancelled: check() after a check(), cancelled in its wait number 1 raised LookupError('poisoned')"
)
class CancelledCheckPoisons(ScriptedConnector):
    async def check(self, connection, /):
        try:
            await super().check(connection)
        except asyncio.CancelledError:
            self.checks.always(error(LookupError("poisoned")))
            raise


@breaks(
    "close() can be cancelled, then aborted: "
    "abort() after close(), cancelled in its wait number 1 left the connection open"
)
class CancelledCloseCannotBeAborted(ScriptedConnector):
    async def close(self, connection, /):
        connection.is_closing = True
        await super().close(connection)

    def abort(self, connection, /):
        if not hasattr(connection, "is_closing"):
            super().abort(connection)


@breaks("close() closes: left a task behind: background")
class CloseLeavesTask(ScriptedConnector):
    async def close(self, connection, /):
        await super().close(connection)
        self.task = asyncio.create_task(asyncio.sleep(60), name="background")


@breaks("close() closes: the event loop was told: Exception in callback")
class CloseFailsInCallback(ScriptedConnector):
    async def close(self, connection, /):
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await super().close(connection)


@breaks("check() passes: warned: coroutine 'ScriptedConnection.noreply_wait' was never awaited")
class ForgetsToAwait(ScriptedConnector):
    async def check(self, connection, /):
        connection.noreply_wait()
        await super().check(connection)


# The same for queries.


class Reader:
    """The reader's end of a stream, for connectors to break."""

    def __init__(self, connector, reader):
        self.connector, self.reader = connector, reader
        self.stream = connector.opened_streams[-1]

    @property
    def is_feed(self):
        return self.reader.is_feed

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.reader)

    def close(self):
        return self.reader.close()


class BreaksReader(AnsweringConnector):
    """What it opens is read through its own ``Reader``."""

    Reader = Reader

    async def open_stream(self, connection, query, options, /):
        return self.Reader(self, await super().open_stream(connection, query, options))


@breaks("the protocol of queries is complete: a method of the QueryConnector protocol is missing")
class HasNoRun(AnsweringConnector):
    run = None


@breaks("queries share a connection: some got the answer of another")
class MixesAnswers(AnsweringConnector):
    async def run(self, connection, query, options, /):
        await super().run(connection, query, options)
        return connection.queries[-1].term[1]


@breaks("run() returns sequences whole: a sequence must be a list, not tuple")
class RunsToTuples(AnsweringConnector):
    async def run(self, connection, query, options, /):
        value = await super().run(connection, query, options)
        return tuple(value) if query[0] == "rows" else value


@breaks("run() returns sequences whole: 100 rows came, not the 1000 in their order")
class RunsToTheFirstBatch(AnsweringConnector):
    async def run(self, connection, query, options, /):
        value = await super().run(connection, query, options)
        return value[:100] if query[0] == "rows" else value


@breaks("run() returns sequences whole: has_streams() is not False when all rows have come")
class RunLeavesStream(AnsweringConnector):
    async def run(self, connection, query, options, /):
        value = await super().run(connection, query, options)
        connection.open_stream()
        return value


@breaks("what has ended sends nothing: run() on a closed connection raised ConnectionResetError()")
class RunsOnClosed(AnsweringConnector):
    async def run(self, connection, query, options, /):
        if connection.ended_by == "close":
            raise ConnectionResetError
        return await super().run(connection, query, options)


@breaks("what has ended sends nothing: run() on an aborted connection returned None instead of raising NotSent")
class RunsOnAborted(AnsweringConnector):
    async def run(self, connection, query, options, /):
        return None if connection.ended_by == "abort" else await super().run(connection, query, options)


@breaks("what has ended sends nothing: open_stream() on an aborted connection raised ConnectionLost()")
class OpensStreamsOnAborted(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        if connection.ended_by == "abort":
            raise ConnectionLost
        return await super().open_stream(connection, query, options)


@breaks("who waits is told of the end: run() on a connection that was aborted meanwhile raised NotSent(")
class SaysNotSentOfWhatWasSent(AnsweringConnector):
    async def run(self, connection, query, options, /):
        try:
            return await super().run(connection, query, options)
        except ConnectionLost:
            raise NotSent("once more") from None


@breaks("who waits is told of the end: not done after 20 s: run() on a connection that was aborted meanwhile did not")
class RunsForgottenWhenAborted(AnsweringConnector):
    async def run(self, connection, query, options, /):
        try:
            return await super().run(connection, query, options)
        except ConnectionLost:
            await asyncio.Event().wait()


@breaks("who waits is told of the end: reading from a connection that was aborted meanwhile returned [] instead of")
class EndsLostStreamsAsIfWhole(BreaksReader):
    class Reader(Reader):
        async def __anext__(self):
            try:
                return await super().__anext__()
            except ConnectionLost:
                raise StopAsyncIteration from None


@breaks("who waits is told of the end: has_streams() of an aborted connection is not False")
class HasStreamsWhenAborted(AnsweringConnector):
    def has_streams(self, connection, /):
        return super().has_streams(connection) or connection.ended_by == "abort"


@breaks("queries can be cancelled: run() of a slow query, cancelled, left the connection closed")
class CancelledRunClosesLater(AnsweringConnector):
    async def run(self, connection, query, options, /):
        value = await super().run(connection, query, options)
        if self.queries.cancelled_total:
            self.abort(connection)
        return value


@breaks("queries can be cancelled: run() of a slow query, cancelled, did not raise CancelledError")
class RunSwallowsCancellation(AnsweringConnector):
    async def run(self, connection, query, options, /):
        with contextlib.suppress(asyncio.CancelledError):
            return await super().run(connection, query, options)


@breaks("queries can be cancelled: run() beside run() of a slow query, cancelled got a wrong answer")
class CancelledRunShiftsAnswers(AnsweringConnector):
    async def run(self, connection, query, options, /):
        value = await super().run(connection, query, options)
        return value - 1 if self.queries.cancelled_total else value


@breaks("queries can be cancelled: run() beside run(), cancelled in its wait number 1 raised LookupError('stopped')")
class CancelledRunStopsAnother(AnsweringConnector):
    async def run(self, connection, query, options, /):
        total = self.queries.cancelled_total
        value = await super().run(connection, query, options)
        await asyncio.sleep(0.1)
        if self.queries.cancelled_total > total > 0:  # the first to be cancelled is the slow one
            raise LookupError("stopped")
        return value


@breaks("queries can be cancelled: open_stream(), cancelled in its wait number 1, raised ConnectionLost() instead of")
class OpenStreamHidesCancellation(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        try:
            return await super().open_stream(connection, query, options)
        except asyncio.CancelledError:
            raise ConnectionLost from None


@breaks("queries can be cancelled: not done after 20 s: wait_streams() after a stream was cancelled did not end")
class CancelledOpenStreamLeavesStream(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        try:
            return await super().open_stream(connection, query, options)
        except asyncio.CancelledError:
            connection.open_stream()
            raise


@breaks("only sequences are streams: open_stream() of a query whose value is a number returned <")
class StreamsNumbers(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        return await super().open_stream(connection, ("rows", query[1]), options)


@breaks("only sequences are streams: it left the connection closed")
class NumbersClose(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        try:
            return await super().open_stream(connection, query, options)
        except TypeError:
            self.abort(connection)
            raise


@breaks("streams read to their end: is_feed of a stream that is no changefeed is not False")
class OpensFeeds(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        reader = await super().open_stream(connection, query, options)
        self.opened_streams[-1].is_feed = True
        return reader


@breaks("streams read to their end: 500 rows came, not the 1000 in their order")
class SkipsRows(BreaksReader):
    class Reader(Reader):
        async def __anext__(self):
            await super().__anext__()
            return await super().__anext__()


@breaks("streams read to their end: reading a stream that has ended raised LookupError('ended already')")
class EndsOnce(BreaksReader):
    class Reader(Reader):
        is_over = False

        async def __anext__(self):
            if self.is_over:
                raise LookupError("ended already")
            try:
                return await super().__anext__()
            except StopAsyncIteration:
                self.is_over = True
                raise


@breaks("streams read to their end: close() of a stream that has ended is not False")
class CutsOffWhatHasEnded(BreaksReader):
    class Reader(Reader):
        def close(self):
            super().close()
            return True


@breaks("streams read to their end: has_streams() is not False after a stream was read to its end")
class DoesNotWaitForStreams(BreaksReader):
    async def wait_streams(self, connection, /):
        pass

    class Reader(Reader):
        async def __anext__(self):
            try:
                return await super().__anext__()
            except StopAsyncIteration:
                self.stream.connection.open_stream()
                raise


@breaks("cancelled reads lose no row: 500 rows came, not the 1000 in their order")
class CancelledReadLosesRow(BreaksReader):
    class Reader(Reader):
        async def __anext__(self):
            row = await super().__anext__()
            await asyncio.sleep(0)
            return row


@breaks(
    "cancelled reads lose no row: a read after a read, cancelled in its wait number 1 raised LookupError('poisoned')"
)
class CancelledReadPoisons(BreaksReader):
    class Reader(Reader):
        is_poisoned = False

        async def __anext__(self):
            if self.is_poisoned:
                raise LookupError("poisoned")
            try:
                return await super().__anext__()
            except asyncio.CancelledError:
                self.is_poisoned = True
                raise


@breaks("closed streams are none: has_streams() is not True while one is open")
class HasNeverStreams(AnsweringConnector):
    def has_streams(self, connection, /):
        return False


@breaks("closed streams are none: not done after 20 s: wait_streams() after a stream was closed did not end")
class DoesNotCloseStreams(BreaksReader):
    class Reader(Reader):
        def close(self):
            return self.stream.is_open


@breaks("closed streams are none: close() of a stream is not True: it was cut off")
class CutsOffNothing(BreaksReader):
    class Reader(Reader):
        def close(self):
            super().close()
            return False


@breaks("closed streams are none: a second close() of a stream raised LookupError('closed already')")
class ClosesStreamsOnce(BreaksReader):
    class Reader(Reader):
        def close(self):
            if self.stream.is_closed:
                raise LookupError("closed already")
            return super().close()


@breaks("closed streams are none: not done after 20 s: wait_streams() after a stream was dropped did not end")
class KeepsStreams(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        connection.reader = await super().open_stream(connection, query, options)
        return connection.reader


@breaks("closed streams are none: the connection is not open any more after a stream was closed")
class ClosedStreamCloses(BreaksReader):
    class Reader(Reader):
        def close(self):
            is_cut_off = super().close()
            if is_cut_off:
                self.connector.drop(self.stream.connection)
            return is_cut_off


@breaks("may_pass() says yes or no: it must be true or false, not None")
class MayPassSaysNothing(AnsweringConnector):
    def may_pass(self, error, /):
        pass


@pytest.mark.virtual_time
@pytest.mark.parametrize(("promise", "connector_class"), BROKEN)
async def test_a_broken_promise_is_named(promise, connector_class):
    queries = QUERIES if issubclass(connector_class, AnsweringConnector) else None
    with pytest.raises(ConformanceError, match=f"- {re.escape(promise)}") as caught:
        await check_connector(connector_class(), queries=queries, seconds=20)
    assert any(problem.startswith(promise) for problem in caught.value.problems)
    # Whatever the suite ran is gone; what the connector itself left behind ends here.
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


class LeaksSocket(SocketConnector):
    """Like many a driver: what it cleans up with ``except Exception``, a cancellation leaves open."""

    leaked: list

    async def connect(self):
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self.leaked.append(writer)
        connection = SocketConnection(reader, writer)
        await self.check(connection)
        return connection


async def test_a_socket_that_a_cancelled_connect_leaves_open_is_found():
    async with echo_server() as address:
        connector = LeaksSocket(*address)
        connector.leaked = []
        with pytest.raises(ConformanceError, match=r"cancelled in its wait number \d+, .*left sockets open: 2"):
            await check_connector(connector)
        for writer in connector.leaked:
            writer.transport.abort()
        await asyncio.sleep(0.01)


@pytest.mark.virtual_time
async def test_all_broken_promises_are_reported_at_once():
    class BreaksThree(ScriptedConnector):
        def __init__(self):
            super().__init__(endpoint="", connect_timeout=-1.0)
            self.checks.always(error(OSError("broken")))

    with pytest.raises(ConformanceError) as caught:
        await check_connector(BreaksThree())
    promises = [problem.partition(":")[0] for problem in caught.value.problems]
    assert promises[:3] == ["endpoint says where", "connect_timeout is positive", "check() passes"]
    assert str(caught.value).startswith(f"BreaksThree breaks {len(promises)} promises:\n- endpoint says where: ")


@pytest.mark.virtual_time
async def test_who_cannot_connect_is_told_only_that():
    connector = ScriptedConnector()
    connector.connects.always(error(OSError("refused")))
    with pytest.raises(ConformanceError, match=r"^ScriptedConnector breaks 1 promise:\n- connect"):
        await check_connector(connector)


@pytest.mark.virtual_time
async def test_a_suite_that_is_cancelled_leaves_nothing():
    connector = ScriptedConnector()
    connector.checks.always(slow(1))
    task = asyncio.create_task(check_connector(connector))
    await asyncio.sleep(0.5)
    assert connector.checks.in_progress == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    connector.assert_nothing_left()
