"""What the pool does with one connection, as coroutines with a timeout: open and configure it, check or reset it, wait
for its readers, close it. They know neither the core nor the pool.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from ..config import Hook
from ..connectors import Connector, StreamingConnector

PATIENCE_SECONDS: Final = 0.1
"""How long after its timeout an opening is cancelled. A connector with a timeout of its own can say what was slow."""

CANCEL_SECONDS: Final = 1.0
"""How long a hook may take to end after it was cancelled. Then its connection is aborted, and nobody waits for it."""


async def open_connection(connector: Connector, configure: Hook | None, timeout: float, opened: list[Any]) -> None:
    """Append the new connection to ``opened``: a task that is cancelled in its last step loses what it returns."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    async with asyncio.timeout_at(deadline + PATIENCE_SECONDS):
        connection = await connector.connect()
    if configure is not None:
        try:
            await call(configure, connector, connection, deadline - loop.time())
        except BaseException:
            connector.abort(connection)
            raise
    opened.append(connection)


async def call(hook: Hook, connector: Connector, connection: Any, timeout: float) -> None:
    """Run a hook for up to ``timeout`` seconds, then raise ``TimeoutError``.

    It has a task of its own: a hook that does not end when it is cancelled must not keep the connection's place.
    """
    work = asyncio.ensure_future(hook(connection))
    work.add_done_callback(_retrieve)  # whatever becomes of this task
    try:
        await asyncio.wait([work], timeout=timeout)
        if work.done():
            error = None if work.cancelled() else work.exception()
            if error is not None and not isinstance(error, Exception):  # the event loop has raised it already
                raise RuntimeError(f"the hook raised {error!r}")
            work.result()
            return
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait([work], timeout=CANCEL_SECONDS)
            if not work.done():
                connector.abort(connection)  # what the hook still awaits on it fails now
    raise TimeoutError


def _retrieve(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()


async def await_readers(connector: StreamingConnector, connection: Any, grace: float | None) -> None:
    """Wait until nobody reads from the connection, for up to ``grace`` seconds."""
    with contextlib.suppress(TimeoutError):  # the readers see that the connection is closed
        async with asyncio.timeout(grace):
            await connector.wait_streams(connection)


async def close_connection(connector: Connector, connection: Any, timeout: float) -> None:
    """Close politely, for up to ``timeout`` seconds, then raise ``TimeoutError``."""
    async with asyncio.timeout(timeout):
        await connector.close(connection)
