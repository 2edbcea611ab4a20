"""Servers for the connector."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from async_repool.testing import StandInServer
from scripted_server import ScriptedServer


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
