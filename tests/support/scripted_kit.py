"""What tests of the scripted connector share."""

from __future__ import annotations

from async_repool.testing.scripted import ScriptedConnection, ScriptedConnector


async def connected() -> tuple[ScriptedConnector, ScriptedConnection]:
    """A connector without a script, and a connection that it opened."""
    connector = ScriptedConnector()
    return connector, await connector.connect()
