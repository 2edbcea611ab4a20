"""The line: who waits, oldest first. It knows nothing of connections.

A ticket is opaque, but says whether it is done. A cancelled caller is done before it leaves the line.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from .slots import Need


class Ticket(Protocol):
    """One caller's place in the line."""

    def done(self) -> bool:
        """Whether this caller waits no more: served, refused or cancelled."""


class Line:
    """All who wait, whatever they need. Leaving from the middle costs the same as from the front."""

    def __init__(self) -> None:
        self._tickets: OrderedDict[Ticket, Need] = OrderedDict()
        self.waiting = [0] * len(Need)
        """How many wait, by need. Cancelled callers count until they leave, or until :meth:`oldest` meets them."""
        self.total = 0
        """How many wait. Each lease and query asks, so an attribute."""

    def join(self, ticket: Ticket, need: Need) -> None:
        """Stand at the end."""
        self._tickets[ticket] = need
        self.waiting[need] += 1
        self.total += 1

    def leave(self, ticket: Ticket) -> bool:
        """Leave, from any place. False if this ticket is not in line."""
        need = self._tickets.pop(ticket, None)
        if need is None:
            return False
        self.waiting[need] -= 1
        self.total -= 1
        return True

    def oldest(self, but: Need | None = None) -> tuple[Ticket, Need] | None:
        """The caller who has waited longest, can still be served, and has another need than ``but``."""
        done = []
        found = None
        for ticket, need in self._tickets.items():
            if ticket.done():
                done.append(ticket)
            elif need is not but:
                found = ticket, need
                break
        for ticket in done:
            self.leave(ticket)
        return found

    def all_who_need(self, need: Need) -> list[Ticket]:
        """All who need this and can still be served, oldest first."""
        if not self.waiting[need]:
            return []
        return [ticket for ticket, needed in self._tickets.items() if needed is need and not ticket.done()]

    def all(self) -> list[Ticket]:
        """All who can still be served, oldest first."""
        return [ticket for ticket in self._tickets if not ticket.done()]

    def connections_needed(self, room: int, most: int) -> int:
        """Connections that serve all: one for each lease, one for all feeds, and one for every ``most`` of the queries
        that exceed ``room``.
        """
        leases, queries, feeds = self.waiting
        return leases + (feeds > 0) + -(-max(0, queries - room) // most)

    def not_served_by(self, connections: int, most: int) -> int:
        """How many still wait if this many connections come. One serves a lease, ``most`` queries, or all feeds."""
        leases, queries, feeds = self.waiting
        left = connections - leases
        if feeds and left > 0:
            left, feeds = left - 1, 0
        return max(0, leases - connections) + feeds + max(0, queries - max(0, left) * most)

    def check(self) -> None:
        """Assert every invariant. For tests."""
        needs = list(self._tickets.values())
        assert self.waiting == [needs.count(need) for need in Need], (self.waiting, needs)
        assert self.total == len(needs), (self.total, needs)
