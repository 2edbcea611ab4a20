"""The lease: what a user holds between acquire and release; and the context that does both.

A lease forwards to the connection, has a default database of its own, and is dead after release. It knows nothing of
the ledger's rules or of queues, and of the driver only the one method that ``query.run(connection)`` calls.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from functools import wraps
from inspect import iscoroutinefunction, ismethod
from types import TracebackType
from typing import Any, Final, Protocol

from ._ledger import Slot, SlotState
from .config import Unset
from .errors import LeaseError

__all__ = ["Lease", "LeaseContext"]


class Owner(Protocol):
    """What a lease knows of its pool."""

    @property
    def name(self) -> str:
        """The pool's name."""

    # `place` is the pool's note of where the lease was asked for.

    def _acquire_nowait(self, place: Any) -> Slot | None:
        """An idle slot, leased to the task that runs; None if the caller has to wait in line."""

    async def _wait_for_lease(self, timeout: float | None | Unset, place: Any) -> Slot:
        """A leased slot, after waiting."""

    async def _acquire_feed(self, timeout: float | None | Unset, place: Any) -> Slot:
        """A leased slot in the feed lane."""

    def _give_back(self, slot: Slot) -> None:
        """A lease has ended."""

    def _lease_collected(self, slot: Slot) -> None:
        """A lease was collected without release. Called in any thread."""


class Lease:
    """A connection in the hands of one user. It passes for the driver's connection wherever that is expected.

    ``query.run(lease)``, ``use()``, ``db``, ``server()``, ``noreply_wait()``, ``is_open()``, ``close()`` and whatever
    else the connection has are forwarded to it; ``isinstance(lease, rethinkdb.net.Connection)`` is true. ``use()``
    lasts as long as the lease. After release every use raises :class:`~async_repool.LeaseError`; cursors that were
    opened on the lease may still be read.
    """

    __slots__ = ("__weakref__", "_connection", "_db", "_pool", "_slot")

    def __init__(self, pool: Owner, slot: Slot) -> None:
        self._pool = pool
        self._slot = slot
        self._connection: Any = slot.connection
        self._db: str | None = None

    # What isinstance() asks where the type itself says no.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return Lease if self._connection is None else type(self._connection)

    @property
    def db(self) -> str | None:
        """The default database of queries on this lease."""
        connection = self._live("db")
        return connection.db if self._db is None else self._db

    @db.setter
    def db(self, db: str | None) -> None:
        self._live("db")
        self._db = db

    def use(self, db: str) -> None:
        """Make ``db`` the default database of this lease; the connection's own stays as it is."""
        self._live("use()")
        self._db = db

    def _start(self, term: Any, **options: Any) -> Any:
        """What ``query.run(lease, **options)`` calls."""
        connection = self._connection
        if connection is None:
            raise self._dead("query.run()")
        if self._db is not None:
            options.setdefault("db", self._db)
        return connection._start(term, **options)

    def is_open(self) -> bool:
        """Whether the connection is open, as far as is known here."""
        is_open: bool = self._live("is_open()").is_open()
        return is_open

    async def reconnect(self, *arguments: Any, **options: Any) -> Lease:
        """Close the connection and open it again; the lease goes on with it. Takes what the connection's own takes, and
        waits, raises and is cancelled as that.
        """
        await self._live("reconnect()").reconnect(*arguments, **options)
        return self

    def repl(self) -> Any:
        """Make this lease, as long as it lasts, the connection of every ``query.run()`` without one in this thread."""
        return type(self._live("repl()")).repl(self)

    def __getattr__(self, name: str) -> Any:
        if name in Lease.__slots__:  # of a copy that was not made yet
            raise AttributeError(name)
        value = getattr(self._live(name), name)
        if not ismethod(value) or value.__self__ is not self._connection:
            return value

        def method(*arguments: Any, **options: Any) -> Any:  # one that is kept is as dead as the lease is
            return getattr(self._live(f"{name}()"), name)(*arguments, **options)

        async def async_method(*arguments: Any, **options: Any) -> Any:
            return await method(*arguments, **options)

        return wraps(value)(async_method if iscoroutinefunction(value) else method)

    async def __aenter__(self) -> Lease:
        self._live("async with")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection, as the driver's does. The pool gives the next user a fresh one."""
        await self._live("async with").close(False)

    def __repr__(self) -> str:
        if self._connection is None:
            return f"<Lease of pool {self._pool.name!r}, released>"
        return f"<Lease of pool {self._pool.name!r} on {self._connection!r}>"

    def _live(self, use: str) -> Any:
        if self._connection is None:
            raise self._dead(use)
        return self._connection

    def _dead(self, use: str) -> LeaseError:
        return LeaseError(f"{self._pool.name}: {use} on a lease that was released before; acquire a new one")

    def __del__(self) -> None:
        if self._connection is not None:
            self._pool._lease_collected(self._slot)

    @property
    def _was_ended_by_pool(self) -> bool:
        return self._slot.state is SlotState.GONE

    def _end(self, pool: Owner) -> Slot:
        """For the pool: end this lease, take its slot. Raises LeaseError, and changes nothing, where that is wrong."""
        if self._pool is not pool:
            raise LeaseError(f"{pool.name}: release() was given a lease of pool {self._pool.name!r}; release it there")
        if self._connection is None:
            raise LeaseError(f"{pool.name}: release() of a lease that was released before")
        self._connection = None
        return self._slot


class LeaseContext:
    """What :meth:`~async_repool.AsyncConnectionPool.connect` returns: acquires on entry, releases on exit.

    For one user at a time; it may be used again after that.
    """

    __slots__ = ("_lease", "_place", "_pool", "_timeout")

    _lease: Lease

    def __init__(self, pool: Owner, timeout: float | None | Unset, place: Any) -> None:
        self._pool: Any = pool  # None while in use
        self._timeout = timeout
        self._place = place

    async def __aenter__(self) -> Lease:
        pool, self._pool = self._pool, None  # a second user of this context finds none
        if pool is None:
            raise LeaseError("a connect() context was entered again while it is in use; call connect() for each lease")
        place = self._place
        try:
            slot = pool._acquire_nowait(place) or await pool._wait_for_lease(self._timeout, place)
        except BaseException:
            self._pool = pool
            raise
        self._lease = lease = Lease(pool, slot)
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # As release(), less what cannot be wrong here: whose lease it is, and the loop, which a task does not change.
        lease = self._lease
        pool = self._pool = lease._pool
        if lease._connection is not None:
            lease._connection = None
            pool._give_back(lease._slot)
        elif error is None:  # else that is the error to see
            raise lease._dead("the end of `async with`")


class FeedContext(LeaseContext):
    """The same with ``looped_mode``: the connection leaves the pool until the feed has ended."""

    __slots__ = ()

    async def __aenter__(self) -> Lease:
        pool, self._pool = self._pool, None
        if pool is None:
            raise LeaseError("a connect() context was entered again while it is in use; call connect() for each lease")
        try:
            slot = await pool._acquire_feed(self._timeout, self._place)
        except BaseException:
            self._pool = pool
            raise
        self._lease = Lease(pool, slot)
        return self._lease


class Done(Coroutine[Any, Any, None]):
    """An awaitable that is done, so that ``release(c)`` and ``await release(c)`` both work; a task can be made of it
    too.
    """

    def send(self, value: Any, /) -> Any:
        raise StopIteration

    def throw(self, *args: Any) -> Any:
        raise args[0]

    def close(self) -> None:
        pass

    def __await__(self) -> Generator[Any, Any, None]:
        return self._nothing()

    @staticmethod
    def _nothing() -> Generator[Any, Any, None]:
        return
        yield


DONE: Final = Done()
