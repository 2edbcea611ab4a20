"""Which errors of the server pass by themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rethinkdb.errors import (
    ReqlDriverError,
    ReqlInternalError,
    ReqlNonExistenceError,
    ReqlOpFailedError,
    ReqlOpIndeterminateError,
    ReqlPermissionError,
    ReqlQueryLogicError,
    ReqlRuntimeError,
    ReqlServerCompileError,
)

from async_repool.connectors.rethinkdb import RethinkDBConnection
from async_repool.errors import ConnectionLost, NotSent
from scripted_server import CONNECTOR

PASSING = [
    "Changefeed aborted (unavailable).",
    'cannot subscribe to table `db.t`: primary replica for shard ["", +inf) not available',
    'Cannot perform read: primary replica for shard ["", Sa) not available',
    "Cannot perform read: lost contact with primary replica",
    "Cannot perform read: The primary replica isn't connected to a quorum of replicas. The read was not performed, you "
    'can do an outdated read using `read_mode="outdated"`.',
    "Cannot perform write: The primary replica lost contact with the secondary replicas. The write may or may not have "
    "been performed.",
    "cannot subscribe to table `t`: no replica is available",
    "Unable to retrieve the start stamps.  Did you just reshard?",
    "Unable to retrieve start stamp.  (Did you just reshard?)",
    "Feed aborted before initial values were read.",
    "Subscription destroyed (shutting down?).",
    "Query terminated by an unknown cause.",
    "Index `v` on table `db.t` was accessed before its construction was finished.",
    "The server(s) hosting table `db.t` are currently unreachable. The table was not reconfigured.",
]


LASTING = [
    "Table `db.t` does not exist.",
    "Database `unavailable` does not exist.",
    "Index `v` was not found on table `db.t`.",
    "Index `no replica is available` was not found on table `db.t`.",
    "The secondary index `v` was replaced by a different one.",
    "There is no table with the given name / UUID.",
    "Table `db.t` is ambiguous; there are multiple tables with that name.",
    "Query terminated by the `rethinkdb.jobs` table.",
    "Timed out while waiting for tables.",
    "A write hook function must not turn a deletion into a replace/insert.",
]


@pytest.mark.parametrize("kind", [ReqlOpFailedError, ReqlOpIndeterminateError])
def test_what_a_server_says_that_restarts_or_moves_data_is_transient(kind: type[Exception]) -> None:
    assert [text for text in PASSING if CONNECTOR.is_transient(kind(text)) is not True] == []
    assert [text for text in LASTING if CONNECTOR.is_transient(kind(text)) is not False] == []


@pytest.mark.parametrize(
    "kind",
    [
        *(ReqlQueryLogicError, ReqlNonExistenceError, ReqlPermissionError, ReqlServerCompileError, ReqlInternalError),
        *(ReqlDriverError, ReqlRuntimeError, ConnectionLost, NotSent, TypeError, asyncio.CancelledError),
    ],
)
def test_no_other_error_is_transient(kind: type[BaseException]) -> None:
    assert [text for text in PASSING if CONNECTOR.is_transient(kind(text)) is not False] == []


async def test_a_feed_on_a_table_that_is_dropped_is_transient_but_its_reopening_may_not(
    connection: RethinkDBConnection, table: Any
) -> None:
    stream = await CONNECTOR.open_stream(connection, table.changes(), {})
    db = table._args[0]
    await CONNECTOR.run(connection, db.table_drop("rows"), {})
    async with asyncio.timeout(5):
        with pytest.raises(ReqlOpFailedError, match="Changefeed aborted") as ended:
            await anext(stream)
    assert CONNECTOR.is_transient(ended.value)
    with pytest.raises(ReqlOpFailedError, match="does not exist") as refused:
        await CONNECTOR.open_stream(connection, table.changes(), {})
    assert not CONNECTOR.is_transient(refused.value)


async def test_a_feed_on_a_table_that_is_moved_is_transient_and_its_reopening_works(
    connection: RethinkDBConnection, table: Any, rethinkdb_server: Any
) -> None:
    if rethinkdb_server.kind == "stand-in":
        pytest.skip("the stand-in server moves nothing")
    stream = await CONNECTOR.open_stream(connection, table.changes(), {})
    await CONNECTOR.run(connection, table.reconfigure(shards=2, replicas=1), {})
    async with asyncio.timeout(10):
        with pytest.raises(ReqlOpFailedError, match="Changefeed aborted") as ended:
            await anext(stream)
        assert CONNECTOR.is_transient(ended.value)
        while True:
            [outcome] = await asyncio.gather(
                CONNECTOR.open_stream(connection, table.changes(), {}), return_exceptions=True
            )
            if not isinstance(outcome, BaseException):
                break
            assert CONNECTOR.is_transient(outcome)
            await asyncio.sleep(0.02)
