"""The text of every error and warning of the pool, from plain values. Nothing is decided here."""

from __future__ import annotations

from typing import Any, Final

from ..config import PoolConfig
from ..errors import ConnectFailed

CALLS: Final = ("acquire()", "a query", "changes()")
"""By need: what the caller called."""


def describe(error: BaseException | None) -> str:
    """An error as text: its class too, because a bare ``TimeoutError`` has no text."""
    if error is None:
        return "none"
    text = str(error)
    if text and isinstance(error, ConnectFailed):  # the connector's text says more than its class
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException | None) -> str:
    """Its first line. In an error of the driver the query follows, which may hold a user's data."""
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
    return (
        f"{census.leased} of {census.max_size} leased, {_shared(census)}{census.idle} idle, "
        f"{census.opening + census.preparing} connecting, {census.closing} closing, {census.waiting} waiting"
    )


def status(census: Any) -> str:
    """The pool's counts, for its repr."""
    return f"{census.leased}/{census.max_size} leased, {_shared(census)}{census.waiting} waiting"


def _shared(census: Any) -> str:
    return f"{census.shared} shared by {census.queries} queries, " if census.shared else ""


# ---- callers that are not served


def refusal(
    why: str,
    need: int,
    waited: float,
    endpoint: str,
    census: Any,
    config: PoolConfig,
    held: str,
    failure: BaseException | None,
) -> str:
    """Why a caller is not served. ``held`` names the holders of the leases."""
    counts = situation(census)
    what = "a query was never sent, no connection" if CALLS[need] == "a query" else "no connection"
    asked = f"{what} to {endpoint} after waiting {waited:.1f} s"
    match why:
        case "closed":
            return "the pool was closed while this caller waited for a connection"
        case "lane full":
            limit = config.feed_limit
            return f"max_feed_connections={limit} connections serve feeds; end one, or raise max_feed_connections"
        case "too many waiters":
            limit = config.max_waiting
            return f"{CALLS[need]} was refused, max_waiting={limit} callers wait already ({counts})"
        case "unreachable" | "hopeless":
            return f"{asked}, the last attempt failed: {describe(failure)} ({counts})"
    if why == "deadlock" and config.debug:
        return deadlock(census.leased, held)
    advice = "Release leases sooner, or raise pool_size"
    if census.shared:
        advice = "Let leases and queries take less time, or raise pool_size or max_in_flight"
    if census.opening or census.preparing:
        advice = f"Connections were being opened or checked; the last failure: {describe(failure)}"
    if why == "deadlock":
        advice = "It is a deadlock: each is held by a task that itself waits for one"
    return f"{asked} ({counts}). {advice}.{held and ' Leased to:'}{held}"


def deadlock(leased: int, held: str) -> str:
    """Every lease is held by a task that waits."""
    return (
        f"deadlock: each of the {leased} leases is held by a task that itself waits for one.{held}\n"
        "Acquire one lease at a time in a task, or raise pool_size"
    )


# ---- queries


def never_sent(what: str, attempts: int, endpoint: str, error: BaseException) -> str:
    """Each connection ended before the query was sent."""
    return (
        f"{what} was never sent: {attempts} connections to {endpoint} ended before that, one after another. "
        f"The last error: {error}"
    )


def lost(error: BaseException, *, was_retried: bool) -> str:
    """The answer of a query will not come."""
    advice = "A retry failed too" if was_retried else "Repeat it if that does no harm; retry=True does so"
    return (
        "the connection ended before a query was answered; the query may have been done or not: "
        f"{str(error).rstrip('.')}. {advice}"
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
    """The connector cannot run queries."""
    return (
        f"{call} needs a connector that runs queries, a QueryConnector; {connector!r} is none. Use acquire() or "
        "connect()"
    )


def outage_lasts(endpoint: str, seconds: float | None, failure: BaseException | None) -> str:
    """No connection could be opened for this long."""
    return f"no connection to {endpoint} for {seconds:g} s: {describe(failure)}"


# ---- leases


def no_lease(call: str, value: object) -> str:
    """What was released is no lease."""
    return f"{call} takes a lease that this pool's acquire() gave, not {value!r}"


def of_another_pool(name: str) -> str:
    """A lease was released to the wrong pool."""
    return f"release() was given a lease of pool {name!r}; release it there"
