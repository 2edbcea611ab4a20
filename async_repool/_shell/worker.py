"""The worker: opens, checks and closes connections as the core orders, each in a task, and reports the outcome to the
core as one fact. Callers never do this themselves. So a caller that is cancelled, at any moment, takes nothing down:
what was half done goes on and serves the next caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from .. import events
from .._core.core import Core
from .._core.orders import AwaitReaders, Close, Open, Order, Prepare
from .._core.slots import GONE, Slot
from ..config import PoolConfig
from ..connectors import Connector, StreamingConnector
from ..errors import ConnectFailed
from . import hooks
from .holders import Holder
from .journal import Journal, log

DEFAULT_CONNECT_SECONDS: Final = 20.0


class Worker:
    """The worker of one runtime. It calls ``settle`` after each fact."""

    core: Core

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        time: Callable[[], float],
        config: PoolConfig,
        connector: Connector,
        journal: Journal,
        settle: Callable[[], None],
    ) -> None:
        self._loop, self._time, self._config = loop, time, config
        self._connector, self._journal, self._settle = connector, journal, settle
        self._streaming = connector if isinstance(connector, StreamingConnector) else None
        self.tasks: set[asyncio.Task[None]] = set()

    def carry_out(self, order: Order) -> None:
        """Begin what the core orders. Does not wait."""
        connector, config = self._connector, self._config
        match order:
            case Open(slot):
                opened: list[Any] = []
                work = hooks.open_connection(connector, config.configure, self.connect_timeout(), opened)
                self._start(slot, "open", work, partial(self._opened, slot, self._time(), opened))
            case Prepare(slot, is_reset):
                hook = (config.reset if is_reset else config.check) or connector.check
                work = hooks.call(hook, connector, slot.connection, config.check_timeout)
                report = partial(self._prepared, slot, self._time(), is_reset)
                self._start(slot, "reset" if is_reset else "check", work, report)
            case AwaitReaders(slot, grace):
                assert self._streaming is not None  # it has streams
                work = hooks.await_readers(self._streaming, slot.connection, grace)
                self._start(slot, "last reader", work, partial(self._read_out, slot))
            case Close(slot, reason, politely):
                if slot.work is not None:
                    slot.work.cancel()
                if politely:
                    work = hooks.close_connection(connector, slot.connection, config.close_timeout)
                    self._start(slot, "close", work, partial(self._closed, slot, reason))
                elif slot.connection is not None:
                    self.abort(slot.connection)
                    self.tell_closed(slot, reason, was_aborted=True)

    def _start(
        self,
        slot: Slot,
        purpose: str,
        work: Coroutine[Any, Any, None],
        report: Callable[[asyncio.Task[None]], None],
    ) -> None:
        """Run ``work`` in a task; ``report`` is called with its outcome, even if it never began."""
        slot.work = task = self._loop.create_task(work, name=f"{self._journal.name}: {purpose} #{slot.number}")
        self.tasks.add(task)
        task.add_done_callback(partial(self._done, slot, report))

    def _done(self, slot: Slot, report: Callable[[asyncio.Task[None]], None], task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if slot.work is task:
            slot.work = None  # else an idle connection would keep its task, twice as large as all else of it
        report(task)
        self._settle()

    def _opened(self, slot: Slot, began: float, opened: list[Any], task: asyncio.Task[None]) -> None:
        now = self._time()
        error = _outcome(task, "the opening")
        if error is None and (opened[0] is None or any(other.connection is opened[0] for other in self.core.slots)):
            error = TypeError(f"connect() of the connector returned {opened.pop()!r}, which is no new connection")
        if error is not None:
            for connection in opened:  # the opening was cancelled in its last step
                self.abort(connection)
            if slot.state is not GONE:
                self._tell(events.ConnectionFailed, slot, now - began, error)
            is_hopeless = isinstance(error, ConnectFailed) and error.is_permanent
            self.core.open_failed(slot, now, is_hopeless=is_hopeless)
            return
        (connection,) = opened
        slot.holder = Holder()
        self.core.opened(slot, connection, now)
        self._tell(events.ConnectionOpened, slot, now - began)
        self._settle()
        try:
            self._connector.on_lost(connection, partial(self._lost, slot))
        except Exception:
            log.exception("%s: on_lost() of the connector raised", self._journal.name)

    def _prepared(self, slot: Slot, began: float, is_reset: bool, task: asyncio.Task[None]) -> None:
        if slot.state is not GONE:
            error = _outcome(task, "its reset" if is_reset else "its check")
            self._tell(events.ConnectionChecked, slot, self._time() - began, is_reset, error)
            self.core.prepared(slot, self._time(), is_fit=error is None)

    def _lost(self, slot: Slot) -> None:
        self.core.lost(slot, self._time())
        self._settle()

    def _read_out(self, slot: Slot, task: asyncio.Task[None]) -> None:
        self.core.read_out(slot, self._time())

    def _closed(self, slot: Slot, reason: str, task: asyncio.Task[None]) -> None:
        error = _outcome(task, "the closing")
        if error is not None:
            self.abort(slot.connection)
        self.core.closed(slot, self._time())
        self.tell_closed(slot, reason, was_aborted=error is not None)

    def tell_closed(self, slot: Slot, reason: str, *, was_aborted: bool) -> None:
        """Record that a connection is closed."""
        self._tell(events.ConnectionClosed, slot, self._time() - slot.opened_at, str(reason), was_aborted)

    def _tell(self, kind: Callable[..., events.Event], slot: Slot, seconds: float, *details: Any) -> None:
        self._journal.tell(kind(self._journal.name, slot.number, self._journal.endpoint, seconds, *details))

    def connect_timeout(self) -> float:
        """Seconds that one opening may take."""
        timeout = self._config.connect_timeout
        try:
            return self._connector.connect_timeout if timeout is None else timeout
        except Exception:
            log.exception("%s: connect_timeout of the connector raised", self._journal.name)
            return DEFAULT_CONNECT_SECONDS

    # If a connector raises in a method that must not raise, it costs one connection, and nothing else.

    def is_open(self, connection: Any) -> bool:
        """The connector's answer; false if it raises."""
        try:
            return self._connector.is_open(connection)
        except Exception:
            log.exception("%s: is_open() of the connector raised", self._journal.name)
            return False

    def has_streams(self, connection: Any) -> bool:
        """The connector's answer; false if it raises."""
        try:
            return self._streaming is not None and self._streaming.has_streams(connection)
        except Exception:
            log.exception("%s: has_streams() of the connector raised", self._journal.name)
            return False

    def abort(self, connection: Any) -> None:
        """End a connection now."""
        try:
            self._connector.abort(connection)
        except Exception:
            log.exception("%s: abort() of the connector raised", self._journal.name)


def _outcome(task: asyncio.Task[None], what: str) -> BaseException | None:
    """The error that ended a task; None if it succeeded."""
    return ConnectionAbortedError(f"{what} was cancelled") if task.cancelled() else task.exception()
