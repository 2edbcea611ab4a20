"""Deliberate faults of the core. Each is one wrong line, put into a method while a ``with`` block lasts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from async_repool._core.core import Core
from async_repool._core.line import Line
from async_repool._core.servers import Server
from async_repool._core.shares import Shares
from async_repool._core.shelf import Shelf
from async_repool._core.slots import Slots


@dataclass(frozen=True)
class Fault:
    """``wrong`` stands in the source of ``method`` instead of ``right``."""

    name: str
    pool: str  # the one of SMALL that shows it
    method: Callable[..., Any]
    right: str
    wrong: str

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The core has this fault until the end of the block."""
        method = self.method
        owner = inspect.getmodule(method)
        name, attribute = method.__qualname__.split(".")
        source = inspect.getsource(method)
        assert source.count(self.right) == 1, f"{self.name}: {self.right!r} stands {source.count(self.right)} times"
        holder = getattr(owner, name)
        faulty: dict[str, Any] = {}
        head = "from __future__ import annotations\nif True:\n"  # for the indentation of a method
        exec(compile(head + source.replace(self.right, self.wrong), f"<{self.name}>", "exec"), vars(owner), faulty)
        setattr(holder, attribute, faulty[attribute])
        try:
            yield
        finally:
            setattr(holder, attribute, method)

    def __str__(self) -> str:
        return self.name


FAULTS = [
    Fault(
        "nobody is served after a release",
        "feeds",
        Core.release,
        "            self._shelf.put(slot)\n            if line.total:\n                self._settle(now)",
        "            self._shelf.put(slot)",
    ),
    Fault(
        "nobody is served after a reset",
        "hooks",
        Core.prepared,
        "slot.shares.add(slot)\n        self._settle(now)",
        "slot.shares.add(slot)",
    ),
    Fault(
        "nobody is served when a caller leaves the line",
        "leases and queries",
        Core.leave_line,
        "self._settle(now)",
        "pass",
    ),
    Fault(
        "nobody is served when the time of a caller is up",
        "leases and queries",
        Core.expire,
        "self._settle(now)",
        "pass",
    ),
    Fault("nobody is served when an opening has failed", "outages", Core.open_failed, "self._settle(now)", "pass"),
    Fault(
        "a newcomer gets a broken idle connection",
        "losses",
        Core.take,
        "if self._is_open(slot.connection) and now",
        "if now",
    ),
    Fault("a newcomer gets an expired connection", "time", Core.take, "now < slot.expires_at and now - ", "now - "),
    Fault(
        "a newcomer gets a connection that should be checked",
        "hooks",
        Core.take,
        "and now - slot.heard_at <= self._check_after",
        "",
    ),
    Fault("a newcomer overtakes those who wait", "leases and queries", Core.take, "if self._line.total:", "if False:"),
    Fault(
        "one in line gets a broken idle connection",
        "losses",
        Core._take_idle,
        "if not self._is_open(slot.connection):",
        "if False:",
    ),
    Fault("one in line gets an expired connection", "time", Core._take_idle, "slot.expires_at <= now", "False"),
    Fault(
        "the load is not decremented", "leases and queries", Shares.fewer, "slot.load = load - 1", "slot.load = load"
    ),
    Fault(
        "a connection carries one query too many",
        "leases and queries",
        Core.take,
        "first(self._most)",
        "first(self._most + 1)",
    ),
    Fault("a query joins an expired connection", "time", Core._find, "place.expires_at <= now", "False"),
    Fault("the slot of a failed opening is kept", "outages", Core.open_failed, "self._gone(slot)", "pass"),
    Fault(
        "a failed opening is no outage",
        "outages",
        Core.open_failed,
        "self._note_failure(now, is_hopeless=is_hopeless)",
        "pass",
    ),
    Fault(
        "one too many is opened",
        "hooks",
        Core._grow,
        "min(wanted, self._max_size - self.slots.size)",
        "min(wanted, self._max_size - self.slots.size + 1)",
    ),
    Fault(
        "one is opened beside those that are opening",
        "growth",
        Core._grow,
        "self._inside[OPENING] + self._inside[PREPARING]",
        "self._inside[PREPARING]",
    ),
    Fault(
        "nobody tries again after an outage",
        "outages",
        Core._grow,
        "self.wake_at = min(self.wake_at, server.retry_at)",
        "pass",
    ),
    Fault("a drained connection goes back to the shelf", "sizes", Core._home, "reason = slot.doom", "reason = None"),
    Fault(
        "a drain forgets those that are in use",
        "sizes",
        Core.drain,
        "slot.state is not CLOSING and slot.doom is None",
        "slot.state is OPENING and slot.doom is None",
    ),
    Fault("a doubted connection takes requests", "losses", Core.doubt, "self._unlist(slot)", "pass"),
    Fault(
        "a doubted connection that fails its check stays",
        "losses",
        Core.prepared,
        "self._abort(slot, Reason.UNFIT)",
        "pass",
    ),
    Fault("siblings of a lost connection are not checked", "losses", Core.lost, "self._check_idle_ones()", "pass"),
    Fault("a reset counts as a check", "hooks", Core.prepared, "if was_check or self._trusts_use:", "if True:"),
    Fault("a lease is not reset", "hooks", Core.release, "slot.needs_reset = True", "pass"),
    Fault("a cancelled caller is served", "leases and queries", Line.oldest, "if ticket.done():", "if False:"),
    Fault("a cancelled feed is served", "feeds", Line.all_who_need, "and not ticket.done()", ""),
    Fault("a cancelled caller is refused", "leases and queries", Line.all, " if not ticket.done()", ""),
    Fault(
        "the youngest is served first",
        "leases and queries",
        Line.oldest,
        "in self._tickets.items()",
        "in reversed(self._tickets.items())",
    ),
    Fault(
        "feeds in line do not join a feed's connection",
        "feeds",
        Core._serve_feeds,
        "for ticket in self._line.all_who_need(FEED):",
        "for ticket in ():",
    ),
    Fault(
        "readers are waited for twice",
        "readers",
        Core._home,
        "self.orders.append(AwaitReaders(slot, None))",
        "self.orders.extend([AwaitReaders(slot, None)] * 2)",
    ),
    Fault(
        "a connection that is still read is closed",
        "readers",
        Core._end,
        "elif self._has_streams(slot.connection):",
        "elif False:",
    ),
    Fault(
        "closing the pool forgets connections that are read on",
        "readers",
        Core.end_uses,
        "(PREPARING, LEASED, SHARED, READ_ON)",
        "(PREPARING, LEASED, SHARED)",
    ),
    Fault(
        "closing the pool forgets connections that are opening",
        "outages",
        Core.close,
        "if slot.state is OPENING:",
        "if False:",
    ),
    Fault("a closed pool goes on serving", "leases and queries", Core._settle, "if self._is_closing:", "if False:"),
    Fault(
        "a late connection of a closed pool stays open", "outages", Core.opened, "if slot.state is GONE:", "if False:"
    ),
    Fault("a feed's connection still counts", "feeds", Core.step_aside, "self._put_beside(slot, in_lane=True)", "pass"),
    Fault(
        "one that comes back from the lane is one too many",
        "readers",
        Core._home,
        "self.slots.size >= self._max_size",
        "False",
    ),
    Fault("a shrunk pool keeps what is too many", "sizes", Core._home, "self._excess() > 0", "False"),
    Fault(
        "idle connections come back in the wrong order",
        "order of use",
        Shelf.insert,
        "other.used_at <= slot.used_at",
        "True",
    ),
    Fault("a removed slot is still counted", "outages", Slots.remove, "self.size -= not slot.beside", "pass"),
    Fault(
        "a feed that waits for a doubted connection holds back others",
        "feeds",
        Core._settle,
        "steps_over_feeds = True  # they wait for a connection of the lane, and for nothing that others need\n"
        "                continue",
        "break",
    ),
    Fault("a connection is opened for a full lane", "lane", Core._wanted, "self._line.waiting[FEED] > 0", "False"),
    Fault("a doubted feed has no place in the lane", "lane", Core.has_lane, "slot.shares is self._feeds", "False"),
    Fault(
        "a connection that must be checked hides one that is fit",
        "order of checks",
        Core._take_idle,
        "self._prepare(slot)  # all",
        "self._prepare(slot)\n                break  # all",
    ),
    Fault(
        "the end of an outage is not reported",
        "ends of outages",
        Core.tick,
        "self.orders.append(Report(OutageStage.ENDED))",
        "pass",
    ),
    Fault(
        "a failure after an opening begins another outage",
        "ends of outages",
        Server.failed,
        "is_new = self._since is None",
        "is_new = not self.is_down",
    ),
    Fault(
        "closing the pool leaves drained connections in the lane",
        "lane",
        Core.close,
        "slot.in_lane and slot.state is not CLOSING",
        "slot.in_lane and slot.state is not CLOSING and slot.doom is None",
    ),
    Fault(
        "the end of an outage is not noticed",
        "outages",
        Server.succeeded,
        "self.is_down, False, False",
        "self.is_down, self.is_down, self.is_hopeless",
    ),
]
