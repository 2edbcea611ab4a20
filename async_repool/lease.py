"""The lease: what a user holds between acquire and release; and the context that does both.

A lease forwards to the connection, and is dead after release. It knows nothing of the core and of the driver: what is
special about one kind of connection is in a subclass, the connector's ``lease_type``.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from inspect import iscoroutinefunction, ismethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from .errors import LeaseError

__all__ = ["Lease", "LeaseContext"]


class Lender(Protocol):
    """Whose connection it is. A ``slot`` is the lender's note of it, opaque here."""

    @property
    def name(self) -> str:
        """The pool's name."""

    def lease_nowait(self, place: Any) -> Any:
        """A slot, leased to the task that runs; None if the caller has to wait in line."""

    async def wait_for_lease(self, timeout: float | None, place: Any) -> Any:
        """A leased slot, after waiting."""

    async def lease_for_feed(self, timeout: float | None, place: Any) -> Any:
        """A leased slot in the feed lane."""

    def make_lease(self, slot: Any) -> Lease:
        """The lease of a leased slot."""

    def give_back(self, slot: Any) -> None:
        """The lease has ended."""

    def lease_collected(self, slot: Any) -> None:
        """The lease was collected without release. Called in any thread."""


class Lease:
    """A connection in the hands of one user. It passes for the connection wherever that is expected.

    Whatever the connection has is forwarded to it, and ``isinstance(lease, type(connection))`` is true. After release
    every use raises :class:`~async_repool.LeaseError`; cursors that were opened on the lease may still be read.
    """

    __slots__ = ("__weakref__", "_connection", "_lender", "_own", "_slot")

    def __init__(self, lender: Lender, slot: Any, connection: Any) -> None:
        self._lender = lender
        self._slot = slot
        self._connection = connection  # None after release
        self._own: Any = None  # for a subclass: with a constructor of its own it would make every acquire slower

    # What isinstance() asks if the type itself says no.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self) if self._connection is None else type(self._connection)

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

    if TYPE_CHECKING:  # a lease has what its connection has

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __repr__(self) -> str:
        if self._connection is None:
            return f"<Lease of pool {self._lender.name!r}, released>"
        return f"<Lease of pool {self._lender.name!r} on {self._connection!r}>"

    def _live(self, use: str) -> Any:
        """The connection. For subclasses: call it first in every use."""
        if self._connection is None:
            raise self._dead(use)
        return self._connection

    def _dead(self, use: str) -> LeaseError:
        return LeaseError(f"{self._lender.name}: {use} on a lease that was released before; acquire a new one")

    def __del__(self) -> None:
        if self._connection is not None:
            self._lender.lease_collected(self._slot)


def parts_of(lease: object) -> tuple[Any, Any] | None:
    """Lender and slot of a lease; None if it is none. For pools."""
    return (lease._lender, lease._slot) if issubclass(type(lease), Lease) else None  # type: ignore[attr-defined]


def end_lease(lease: Lease, call: str) -> None:
    """The lease is dead from now on. For pools. Raises LeaseError if it was before."""
    if lease._connection is None:
        raise LeaseError(f"{lease._lender.name}: {call} of a lease that was released before")
    lease._connection = None


class LeaseContext:
    """What :meth:`~async_repool.AsyncConnectionPool.connect` returns: acquires on entry, releases on exit.

    For one user at a time; it may be used again after that.
    """

    __slots__ = ("_find_lender", "_is_used", "_lease", "_place", "_timeout")

    _lease: Lease

    def __init__(self, find_lender: Callable[[str], Lender], timeout: float | None, place: Any) -> None:
        self._find_lender = find_lender
        self._timeout = timeout
        self._place = place
        self._is_used = False

    async def __aenter__(self) -> Lease:
        if self._is_used:
            raise LeaseError("a connect() context was entered again while it is in use; call connect() for each lease")
        self._is_used = True
        try:
            lender = self._find_lender("connect()")
            place = self._place
            slot = lender.lease_nowait(place) or await lender.wait_for_lease(self._timeout, place)
        except BaseException:
            self._is_used = False
            raise
        self._lease = lease = lender.make_lease(slot)
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # As release(), less what cannot be wrong here: whose lease it is, and the loop, which a task does not change.
        self._is_used = False
        lease = self._lease
        if lease._connection is not None:
            lease._connection = None
            lease._lender.give_back(lease._slot)
        elif error is None:  # else that is the error to see
            raise lease._dead("the end of `async with`")


class FeedContext(LeaseContext):
    """The same with ``looped_mode``: the connection leaves the pool until the feed has ended."""

    __slots__ = ()

    async def __aenter__(self) -> Lease:
        if self._is_used:
            raise LeaseError("a connect() context was entered again while it is in use; call connect() for each lease")
        self._is_used = True
        try:
            lender = self._find_lender("connect()")
            slot = await lender.lease_for_feed(self._timeout, self._place)
        except BaseException:
            self._is_used = False
            raise
        self._lease = lender.make_lease(slot)
        return self._lease


class Done(Coroutine[Any, Any, None]):
    """An awaitable that is done, so that ``release(c)`` and ``await release(c)`` both work. A task can be made of it
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
