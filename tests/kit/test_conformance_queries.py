"""The conformance suite reports each promise of queries and streams that is broken."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from async_repool.errors import ConnectionLost, NotSent
from conformance_kit import QUERIES, AnsweringConnector, BrokenPromises, assert_reported

breaks = BrokenPromises()


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


@breaks("the protocol of queries is complete: the QueryConnector protocol also needs run")
class HasNoRun(AnsweringConnector):
    run = None


@breaks("queries share a connection: some queries got the answer of another one")
class MixesAnswers(AnsweringConnector):
    async def run(self, connection, query, options, /):
        await super().run(connection, query, options)
        return connection.queries[-1].term[1]


@breaks("run() returns sequences whole: a sequence must be a list, not tuple")
class RunsToTuples(AnsweringConnector):
    async def run(self, connection, query, options, /):
        value = await super().run(connection, query, options)
        return tuple(value) if query[0] == "rows" else value


@breaks("run() returns sequences whole: expected 1000 rows in order, got 100 rows")
class RunsToTheFirstBatch(AnsweringConnector):
    async def run(self, connection, query, options, /):
        value = await super().run(connection, query, options)
        return value[:100] if query[0] == "rows" else value


@breaks("run() returns sequences whole: expected 1000 rows in order, got 1000 rows, but not in order")
class RunReversesRows(AnsweringConnector):
    async def run(self, connection, query, options, /):
        answer = await super().run(connection, query, options)
        return answer[::-1] if isinstance(answer, list) else answer


@breaks("run() returns sequences whole: has_streams() is not False after the last row")
class RunLeavesStream(AnsweringConnector):
    async def run(self, connection, query, options, /):
        value = await super().run(connection, query, options)
        connection.open_stream()
        return value


@breaks("an ended connection sends nothing: run() on a closed connection raised ConnectionResetError()")
class RunsOnClosed(AnsweringConnector):
    async def run(self, connection, query, options, /):
        if connection.ended_by == "close":
            raise ConnectionResetError
        return await super().run(connection, query, options)


@breaks("an ended connection sends nothing: run() on an aborted connection returned None instead of raising NotSent")
class RunsOnAborted(AnsweringConnector):
    async def run(self, connection, query, options, /):
        return None if connection.ended_by == "abort" else await super().run(connection, query, options)


@breaks("an ended connection sends nothing: open_stream() on an aborted connection raised ConnectionLost()")
class OpensStreamsOnAborted(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        if connection.ended_by == "abort":
            raise ConnectionLost
        return await super().open_stream(connection, query, options)


@breaks("waiting calls fail if the connection ends: run() on a connection that is aborted raised NotSent(")
class SaysNotSentOfWhatWasSent(AnsweringConnector):
    async def run(self, connection, query, options, /):
        try:
            return await super().run(connection, query, options)
        except ConnectionLost:
            raise NotSent("once more") from None


@breaks("waiting calls fail if the connection ends: not done after 20 s: run() on a connection that is aborted did not")
class RunsForgottenWhenAborted(AnsweringConnector):
    async def run(self, connection, query, options, /):
        try:
            return await super().run(connection, query, options)
        except ConnectionLost:
            await asyncio.Event().wait()


@breaks("waiting calls fail if the connection ends: reading from a connection that is aborted returned [] instead of")
class EndsLostStreamsAsIfWhole(BreaksReader):
    class Reader(Reader):
        async def __anext__(self):
            try:
                return await super().__anext__()
            except ConnectionLost:
                raise StopAsyncIteration from None


@breaks("waiting calls fail if the connection ends: has_streams() of an aborted connection is not False")
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


@breaks("streams can be read to their end: is_feed of a stream that is not a changefeed is not False")
class OpensFeeds(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        reader = await super().open_stream(connection, query, options)
        self.opened_streams[-1].is_feed = True
        return reader


@breaks("streams can be read to their end: expected 1000 rows in order, got 500 rows")
class SkipsRows(BreaksReader):
    class Reader(Reader):
        async def __anext__(self):
            await super().__anext__()
            return await super().__anext__()


@breaks("streams can be read to their end: reading a stream that has ended raised LookupError('ended already')")
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


@breaks("streams can be read to their end: close() of a stream that has ended does not return False")
class CutsOffWhatHasEnded(BreaksReader):
    class Reader(Reader):
        def close(self):
            super().close()
            return True


@breaks("streams can be read to their end: has_streams() is not False after a stream was read to its end")
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


@breaks("cancelled reads lose no row: expected 1000 rows in order, got 500 rows")
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


@breaks("closed streams are gone: has_streams() is not True while one is open")
class HasNeverStreams(AnsweringConnector):
    def has_streams(self, connection, /):
        return False


@breaks("closed streams are gone: not done after 20 s: wait_streams() after a stream was closed did not end")
class DoesNotCloseStreams(BreaksReader):
    class Reader(Reader):
        def close(self):
            return self.stream.is_open


@breaks("closed streams are gone: close() of an open stream does not return True")
class CutsOffNothing(BreaksReader):
    class Reader(Reader):
        def close(self):
            super().close()
            return False


@breaks("closed streams are gone: a second close() of a stream raised LookupError('closed already')")
class ClosesStreamsOnce(BreaksReader):
    class Reader(Reader):
        def close(self):
            if self.stream.is_closed:
                raise LookupError("closed already")
            return super().close()


@breaks("closed streams are gone: not done after 20 s: wait_streams() after a stream was dropped did not end")
class KeepsStreams(AnsweringConnector):
    async def open_stream(self, connection, query, options, /):
        connection.reader = await super().open_stream(connection, query, options)
        return connection.reader


@breaks("closed streams are gone: the connection is not open after a stream was closed")
class ClosedStreamCloses(BreaksReader):
    class Reader(Reader):
        def close(self):
            is_cut_off = super().close()
            if is_cut_off:
                self.connector.drop(self.stream.connection)
            return is_cut_off


@breaks("is_transient() returns a bool: it must be True or False, not None")
class MayPassReturnsNothing(AnsweringConnector):
    def is_transient(self, error, /):
        pass


@pytest.mark.virtual_time
@pytest.mark.parametrize(("report", "connector_class"), breaks.cases)
async def test_a_broken_promise_is_named(report, connector_class):
    await assert_reported(report, connector_class(), QUERIES)
