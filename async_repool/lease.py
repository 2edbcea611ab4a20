"""The lease: what a user holds between acquire and release; and the context that does both.

A lease forwards to the connection, and is dead after release. It knows neither the core nor the driver. What one kind
of connection needs in addition is in a subclass, the connector's ``lease_type``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import wraps
from inspect import iscoroutinefunction, ismethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from .errors import LeaseError

__all__ = ["Lease", "LeaseContext"]


class Lender(Protocol):
    """The owner of the connection. A ``slot`` is its note of the connection, opaque here."""

    @property
    def name(self) -> str:
        """The pool's name."""

    def lease_nowait(self, place: Any) -> Lease | None:
        """A lease for the task that runs; None if the caller has to wait in line."""

    def wait_for_slot(self, timeout: float | None) -> Awaitable[Any]:
        """Wait in line for a slot."""

    def make_lease(self, slot: Any, place: Any) -> Lease:
        """The lease of a slot that was waited for."""

    async def lease_for_feed(self, timeout: float | None, place: Any) -> Lease:
        """A lease whose connection is in the feed lane."""

    def give_back(self, slot: Any) -> None:
        """The lease has ended."""

    def lease_collected(self, slot: Any) -> None:
        """The lease was collected without release. Called in any thread."""


class Lease:
    """A connection that one user has. Use it like the connection.

    It forwards every attribute to the connection, and ``isinstance(lease, type(connection))`` is true. After release
    every use raises :class:`~async_repool.LeaseError`; cursors that were opened on the lease may still be read.
    """

    __slots__ = ("__weakref__", "_connection", "_lender", "_own", "_slot")

    def __init__(self, lender: Lender, slot: Any, connection: Any) -> None:
        self._lender = lender
        self._slot = slot
        self._connection = connection  # None after release
        self._own: Any = None  # for a subclass: a constructor of its own would make every acquire slower

    # What isinstance() asks if the type itself says no.
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self) if self._connection is None else type(self._connection)

    def __getattr__(self, name: str) -> Any:
        if name in Lease.__slots__:  # asked by copy() of a lease without slots yet
            raise AttributeError(name)
        value = getattr(self._live(name), name)
        if not ismethod(value) or value.__self__ is not self._connection:
            return value

        def method(*arguments: Any, **options: Any) -> Any:  # a method that is kept dies with the lease
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
        try:
            if self._connection is not None:
                self._lender.lease_collected(self._slot)
        except AttributeError:  # a subclass raised before it was made
            pass


def parts_of(lease: object) -> tuple[Any, Any] | None:
    """Lender and slot of a lease; None if it is none. For pools."""
    return (lease._lender, lease._slot) if issubclass(type(lease), Lease) else None  # type: ignore[attr-defined]


def slot_of(lease: Lease) -> Any:
    """The lender's note of its connection. For pools."""
    return lease._slot


def is_live(lease: Lease) -> bool:
    """Whether it was not released yet. For pools."""
    return lease._connection is not None


def end_lease(lease: Lease, call: str) -> None:
    """The lease is dead from now on. For pools. Raises LeaseError if it is dead already."""
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
            lease = lender.lease_nowait(place)
            if lease is None:
                lease = lender.make_lease(await lender.wait_for_slot(self._timeout), place)
        except BaseException:
            self._is_used = False
            raise
        self._lease = lease
        return lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # As release(), without the checks that cannot fail here: a task does not change its pool or event loop.
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
            self._lease = lease = await lender.lease_for_feed(self._timeout, self._place)
        except BaseException:
            self._is_used = False
            raise
        return lease


class Done(Coroutine[Any, Any, None]):
    """An awaitable that is done: ``release(c)`` and ``await release(c)`` both work, and so does a task of it."""

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
