"""The conformance suite reports each promise of a connector that is broken."""

from __future__ import annotations

import asyncio
import socket

import pytest

from async_repool.testing.scripted import ScriptedConnector, error, never
from conformance_kit import BrokenPromises, assert_reported

breaks = BrokenPromises()


@breaks("the protocol is complete: the Connector protocol also needs check")
class HasNoCheck(ScriptedConnector):
    check = None


@breaks("the protocol of streams is complete: a connector with streams also needs wait_streams")
class HasNoStreams(ScriptedConnector):
    wait_streams = None


@breaks("endpoint is text: it must be a str that is not empty, not ''")
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


@breaks("check() passes: check() of a new connection raised CancelledError, but nobody cancelled it")
class ChecksCancelThemselves(ScriptedConnector):
    async def check(self, connection, /):
        raise asyncio.CancelledError


@breaks("check() passes: the connection is not open after check()")
class CheckCloses(ScriptedConnector):
    async def check(self, connection, /):
        await super().check(connection)
        self.abort(connection)


@breaks("close() closes: the connection is still open after close()")
class DoesNotClose(ScriptedConnector):
    async def close(self, connection, /):
        await asyncio.sleep(0)


@breaks("close() does nothing after the end: close() of a closed connection raised LookupError('closed already')")
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


@breaks("on_lost() reports only losses: its callback was called after abort()")
class ReportsAborts(ScriptedConnector):
    def on_lost(self, connection, callback, /):
        connection.callback = callback

    def abort(self, connection, /):
        super().abort(connection)
        getattr(connection, "callback", bool)()


@breaks("many connections can be opened at once: some are the same object")
class OpensOne(ScriptedConnector):
    async def connect(self):
        await super().connect()
        return self.open_connections[0]


@breaks("many connections can be opened at once: connect() raised ExceptionGroup(")
class OpensFew(ScriptedConnector):
    async def connect(self):
        if self.connects.in_progress == 5:
            raise OSError("too many")
        return await super().connect()


@breaks("many connections can be opened at once: abort() of one ended others too")
class AbortsAll(ScriptedConnector):
    def abort(self, connection, /):
        for one in self.open_connections:
            super().abort(one)


@breaks("connect() can be cancelled: connect(), cancelled in its wait number 2, left a task: background")
class LeaksTask(ScriptedConnector):
    async def connect(self):
        await asyncio.sleep(0)
        self.task = asyncio.create_task(asyncio.sleep(60), name="background")
        connection = await super().connect()
        self.task.cancel()
        return connection


@breaks("connect() can be cancelled: connect(), cancelled in its wait number 1, did not raise CancelledError")
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


@breaks("close() closes: left a task: background")
class CloseLeavesTask(ScriptedConnector):
    async def close(self, connection, /):
        await super().close(connection)
        self.task = asyncio.create_task(asyncio.sleep(60), name="background")


@breaks("close() closes: the event loop reported: Exception in callback")
class CloseFailsInCallback(ScriptedConnector):
    async def close(self, connection, /):
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await super().close(connection)


@breaks("check() passes: warned: coroutine 'ScriptedConnection.noreply_wait' was never awaited")
class ForgetsToAwait(ScriptedConnector):
    async def check(self, connection, /):
        connection.noreply_wait()
        await super().check(connection)


@pytest.mark.virtual_time
@pytest.mark.parametrize(("report", "connector_class"), breaks.cases)
async def test_a_broken_promise_is_named(report, connector_class):
    await assert_reported(report, connector_class())
