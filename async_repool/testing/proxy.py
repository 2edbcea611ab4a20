"""A TCP proxy with faults, in front of any server.

This module passes bytes on in both directions, and the server's bytes answer by answer. It does not know what an answer
means.
"""

from __future__ import annotations

import asyncio
from typing import cast

from .faults import Faults
from .standin.endpoint import ClientConnection, Endpoint
from .standin.wire import MAGIC_V1_0, AnswerSplitter


class FaultProxy(Endpoint):
    """A TCP proxy with faults, in front of any RethinkDB server.

    The proxy reads the protocol to find where an answer ends. If it cannot read the protocol, as with TLS, each piece
    that arrives counts as one answer of the login.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Faults | None = None,
    ) -> None:
        super().__init__(host=host, port=port, ssl=None, faults=faults)
        self.target = (target_host, target_port)

    def connection(self) -> ClientConnection:
        """Make the object for a client's connection, which opens a connection to the target."""
        return _ProxyConnection(self)


class _ProxyConnection(ClientConnection):
    """The client's side of one proxied connection."""

    def __init__(self, endpoint: FaultProxy) -> None:
        super().__init__(endpoint)
        self._proxy = endpoint
        self._upstream = _Upstream(self, endpoint)
        self._is_opaque: bool | None = None  # None until the first bytes of the client arrive
        self._splitter = AnswerSplitter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.spawn(self._open_upstream())

    async def _open_upstream(self) -> None:
        try:
            await self._proxy.loop.create_connection(lambda: self._upstream, *self._proxy.target)
        except OSError:
            self.cut()
        else:
            self.update()

    @property
    def may_read(self) -> bool:
        return self._upstream.may_write and not self._faults.is_frozen

    def process(self) -> None:
        if self._is_opaque is None:
            magic = MAGIC_V1_0.to_bytes(4, "little")
            if len(self._inbox) < len(magic) and magic.startswith(self._inbox):
                return
            self._is_opaque = not self._inbox.startswith(magic)
        self._upstream.write(bytes(self._inbox))
        self._inbox.clear()

    def answered(self, data: bytes) -> None:
        self.send([(data, False)] if self._is_opaque else self._splitter.feed(data))

    def answers_ended(self, is_orderly: bool) -> None:
        if self.transport.is_closing():
            return
        rest = self._splitter.rest()
        if rest:
            self.send([(rest, False)])
        if is_orderly:
            self.end()
        else:
            self.cut()

    def update(self) -> None:
        super().update()
        self._upstream.read(super().may_read)

    def lost(self) -> None:
        self._upstream.close()


class _Upstream(asyncio.Protocol):
    """The server's side of one proxied connection."""

    def __init__(self, client: _ProxyConnection, endpoint: Endpoint) -> None:
        self._client = client
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        self._is_reading = True
        self.may_write = False

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def read(self, may_read: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or may_read == self._is_reading:
            return
        self._is_reading = may_read
        if may_read:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def close(self) -> None:
        """Close the connection after everything from the client is passed on."""
        self.may_write = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self.may_write = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._endpoint.add(self)
        if self._client.transport.is_closing():
            self._transport.abort()
            return
        self.may_write = True
        self._client.update()

    def data_received(self, data: bytes) -> None:
        if not self._client.transport.is_closing():
            self._client.answered(data)

    def pause_writing(self) -> None:
        self.may_write = False
        self._client.update()

    def resume_writing(self) -> None:
        self.may_write = True
        self._client.update()

    def connection_lost(self, exc: Exception | None) -> None:
        self.may_write = False
        self._transport = None
        self._endpoint.discard(self)
        self._client.answers_ended(exc is None)
