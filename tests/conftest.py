"""For all tests: which event loop they run on, and collections that are quick."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: many tests collect garbage, and need not look at those each time."""
    gc.collect()
    gc.freeze()


if os.environ.get("ASYNC_REPOOL_TEST_LOOP") == "uvloop":  # instead of asyncio's own
    import uvloop

    def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Hook of pytest-asyncio 1.4, for all async tests but those on virtual time, whose loop is the clock's."""
        return {"uvloop": uvloop.new_event_loop}
