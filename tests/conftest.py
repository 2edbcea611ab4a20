"""Which event loop the tests run on: asyncio's own, or with ``ASYNC_REPOOL_TEST_LOOP=uvloop`` uvloop's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

if os.environ.get("ASYNC_REPOOL_TEST_LOOP") == "uvloop":
    import uvloop

    def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Hook of pytest-asyncio 1.4, for all async tests but those on virtual time, whose loop is the clock's."""
        return {"uvloop": uvloop.new_event_loop}
