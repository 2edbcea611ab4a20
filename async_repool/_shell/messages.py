"""The text of every error and warning of the pool, from plain values. What is decided stands elsewhere."""

from __future__ import annotations

from typing import Any, Final

from ..errors import ConnectFailed

CALLS: Final = ("acquire()", "a query", "changes()")
"""By need: what the caller called."""


def describe(error: BaseException | None) -> str:
    """One line about an error. A bare ``TimeoutError`` has no text of its own."""
    if error is None:
        return "none"
    text = str(error)
    if text and isinstance(error, ConnectFailed):  # of the connector, which says more than its cause
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException | None) -> str:
    """The same, without what follows in an error of the driver: the query, which may hold a user's data."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0].removesuffix(' in:')}"


def sentence(error: BaseException | None) -> str:
    """The same as :func:`describe`, with a full stop."""
    text = describe(error)
    return text if text.endswith((".", "?", "!")) else f"{text}."


def cause(error: BaseException | None) -> BaseException | None:
    """What a connector's :class:`ConnectFailed` came from; any other error as it is."""
    return error.__cause__ if isinstance(error, ConnectFailed) and error.__cause__ is not None else error


def situation(census: Any) -> str:
    """The pool's counts."""
    shared = f"{census.shared} shared by {census.queries} queries, " if census.shared else ""
    return (
        f"{census.leased} of {census.max_size} leased, {shared}{census.idle} idle, "
        f"{census.opening + census.preparing} connecting, {census.closing} closing, {census.waiting} waiting"
    )


def status(census: Any) -> str:
    """The pool's counts, for its repr."""
    shared = f"{census.shared} shared by {census.queries} queries, " if census.shared else ""
    return f"{census.leased}/{census.max_size} leased, {shared}{census.waiting} waiting"


# ---- callers that are not served


def asked(need: int, endpoint: str, seconds: float) -> str:
    """What a caller asked for, and for how long it waited."""
    what = "a query was never sent, no connection" if CALLS[need] == "a query" else "no connection"
    return f"{what} to {endpoint} after waiting {seconds:.1f} s"


def timed_out(what: str, census: Any, held: str, failure: BaseException | None, *, is_deadlock: bool) -> str:
    """No connection became free in time. ``held`` names the holders."""
    advice = "Release leases sooner, or raise pool_size"
    if census.shared:
        advice = "Let leases and queries take less time, or raise pool_size or max_in_flight"
    if census.opening or census.preparing:
        advice = f"Connections were being opened or checked; the last failure: {describe(failure)}"
    if is_deadlock:
        advice = "It is a deadlock: each is held by a task that itself waits for one"
    return f"{what} ({situation(census)}). {advice}.{held and ' Leased to:'}{held}"


def unreachable(what: str, census: Any, failure: BaseException | None) -> str:
    """No connection could be opened."""
    return f"{what}, the last attempt failed: {describe(failure)} ({situation(census)})"


def too_many(need: int, max_waiting: int, census: Any) -> str:
    """``max_waiting`` callers wait already."""
    return f"{CALLS[need]} was refused, max_waiting={max_waiting} callers wait already ({situation(census)})"


def lane_full(limit: int) -> str:
    """No place is left in the feed lane."""
    return f"max_feed_connections={limit} connections serve feeds; end one, or raise max_feed_connections"


def closed_meanwhile() -> str:
    """The pool was closed under a caller in line."""
    return "the pool was closed while this caller waited for a connection"


def deadlock(leased: int, held: str) -> str:
    """Every lease is held by a task that waits."""
    return (
        f"deadlock: each of the {leased} leases is held by a task that itself waits for one.{held}\n"
        "Acquire one lease at a time in a task, or raise pool_size"
    )


# ---- queries


def never_sent(attempts: int, endpoint: str, error: BaseException) -> str:
    """Each connection that was tried had ended."""
    return (
        f"a query was never sent: {attempts} connections to {endpoint} in turn ended before it could be. "
        f"The last one: {error}"
    )


def lost(error: BaseException) -> str:
    """The answer of a query will not come."""
    return (
        "the connection ended before a query was answered, which may have been done or not: "
        f"{str(error).rstrip('.')}. Repeat it if that does no harm; retry=True does so"
    )


def no_answer(what: str, endpoint: str, seconds: float) -> str:
    """A query or feed ran out of time."""
    doubt = "; it may have been done or not" if what == "a query" else ""
    return f"{what} had no answer from {endpoint} within {seconds:g} s, and was stopped{doubt}"


# ---- pools that cannot be used


def could_not_open(min_size: int, endpoint: str, failure: BaseException | None) -> str:
    """``init_pool()`` has failed."""
    return (
        f"init_pool() could not open {min_size} connections to {endpoint}: {sentence(failure)} All are closed; "
        "init_pool() may be called again"
    )


def could_not_replace(endpoint: str, failure: BaseException | None) -> str:
    """``drain()`` has failed."""
    return (
        f"drain() closed the old connections, but could not open new ones to {endpoint}: {sentence(failure)} The pool "
        "goes on trying"
    )


def inherited(call: str) -> str:
    """The pool belongs to the parent process."""
    return (
        f"{call} on a pool that was inherited over fork(); its connections belong to the parent. Open a pool after the "
        "fork, in each process"
    )


def other_loop(call: str) -> str:
    """The pool belongs to another event loop."""
    return f"{call} outside the event loop in which the pool was opened; a pool serves one loop, open one in each"


def not_open(call: str, phase: str | None) -> str:
    """The pool is opening, closing or closed; ``phase`` is None if it was never open."""
    if phase == "opening":
        return f"{call} while init_pool() is still opening the pool; await that first"
    if phase == "closing":
        return f"{call} while the pool is closing; init_pool() opens it again after that"
    if phase == "closed":
        return f"{call} on a closed pool; init_pool() opens it again"
    return f"{call} on a pool that is not open yet; await init_pool(), or use `async with pool:`"


def in_use(leases: int, queries: int) -> str:
    """``release_pool()`` is refused."""
    return (
        f"release_pool() while {leases} connection(s) are still leased and {queries} queries are under way. Release "
        "them first, or use close(), which waits for them"
    )


def cannot_share(call: str, connector: object) -> str:
    """The connector runs no queries."""
    return (
        f"{call} needs a connector that runs queries, a QueryConnector; {connector!r} is none. Use acquire() or "
        "connect()"
    )


def outage_lasts(endpoint: str, seconds: float | None, failure: BaseException | None) -> str:
    """No connection could be opened for so long."""
    return f"no connection to {endpoint} for {seconds:g} s: {describe(failure)}"


# ---- leases


def no_lease(call: str, value: object) -> str:
    """What was given back is none."""
    return f"{call} takes a lease that this pool's acquire() gave, not {value!r}"


def of_another_pool(name: str) -> str:
    """It was given to the wrong pool."""
    return f"release() was given a lease of pool {name!r}; release it there"
