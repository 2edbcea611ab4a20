"""The core of a pool: every rule, and nothing that waits.

Facts and ``now`` go in: a caller asks, gives up or is done; a connection was opened, was lost, was checked; time has
passed. Orders come out, in :attr:`Core.orders`; the shell carries them out, and whatever it starts ends in one fact. A
connection is opaque here. The core asks two questions about it, both answered at once: ``is_open`` and ``has_streams``.

Four decisions are made here and nowhere else. Read each from top to bottom: ``_find`` (what serves this need now),
``_home`` (what becomes of a connection that nobody uses any more), ``_end`` (how one is closed) and ``_grow`` (how many
to open). Each fact is one step: it leaves every invariant intact. :meth:`Core.check` asserts them.

No asyncio, threads, clock, randomness or log is known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from ..config import PoolConfig
from .backoff import NEVER, Random, expiry
from .census import Census, take_census
from .line import Line, Ticket
from .orders import AwaitReaders, Close, Open, Order, OutageStage, Prepare, Refusal, Refuse, Report, Serve
from .servers import PROBATION_SECONDS, Server
from .shares import Shares
from .shelf import Shelf, Stack
from .slots import (
    CLOSING,
    FEED,
    GONE,
    IDLE,
    LEASE,
    LEASED,
    OPENING,
    PREPARING,
    QUERY,
    READ_ON,
    SHARED,
    Need,
    Reason,
    Slot,
    Slots,
)

CROWDED: Final = 2
"""The pool opens another connection for queries if every shared one carries this many. An idle one is used before that:
one thread of the server serves one connection, so two long queries take half the time on two connections."""


Ask: TypeAlias = Callable[[Any], bool]
"""A question about a connection, answered at once."""


class Core:
    """The book of one pool, from its opening to its end."""

    def __init__(self, config: PoolConfig, random: Random, queue: Stack, *, is_open: Ask, has_streams: Ask) -> None:
        self._random = random
        self._is_open, self._has_streams = is_open, has_streams
        self.slots = Slots()
        self._inside = self.slots.inside
        self._shelf = Shelf(queue)
        self._queries, self._feeds = Shares(), Shares()
        self._line = Line()
        self._server = Server(random, config.reconnect_timeout)
        self._is_closing = False
        self.orders: deque[Order] = deque()
        self.wake_at = NEVER  # when the shell has to call tick(), at the latest
        self._set_options(config)

    def _set_options(self, config: PoolConfig) -> None:
        self._config = config
        self._max_size, self._min_size = config.pool_size, config.smallest_size
        self._most = config.max_in_flight
        self._resets = config.reset is not None
        self._trusts_use = config.check is None  # else a connection is checked before each lease
        self._check_after = (config.check_idle or NEVER) if config.check is None else 0.0  # seconds since heard_at
        self._note_plain()

    # ---- facts: callers

    def take(self, need: Need, now: float) -> Slot | None:
        """A caller asks. Serves it at once if nobody waits and a connection is ready. Orders nothing. If None is
        returned, the caller may :meth:`join` the line, where everything else is tried.
        """
        if self._line.total:
            return None
        inside = self._inside
        if inside[IDLE] and need is not FEED:
            slot = self._shelf.take()
            if self._is_open(slot.connection) and now < slot.expires_at and now - slot.heard_at <= self._check_after:
                inside[IDLE] -= 1  # as _take_idle(), without a call for each lease
                if need is LEASE:
                    slot.state = LEASED
                    inside[LEASED] += 1
                else:
                    slot.state = SHARED
                    inside[SHARED] += 1
                    self._share(slot, self._queries)
                return slot
            self._shelf.put(slot)
        if need is QUERY:
            place = self._queries.first(self._most)
            if place is None or now >= place.expires_at or not self._is_open(place.connection):
                return None
            if place.load < CROWDED or not self._can_help_crowd():
                return self._queries.more(place)
        return None

    def join(self, need: Need, ticket: Ticket, now: float) -> None:
        """A caller joins the line. It may be served, or refused, at once."""
        if self._is_closing:
            self.orders.append(Refuse(ticket, Refusal.CLOSED))
            return
        line = self._line
        line.join(ticket, need)
        if need is FEED or self._inside[IDLE] or line.total - line.waiting[FEED] == 1:
            self._settle(now)
        else:
            self._grow(now)  # it has to wait: others do, and no idle connection can be checked for it
        most = self._config.max_waiting
        if most and self._not_served_soon() > most and self._line.leave(ticket):
            self.orders.append(Refuse(ticket, Refusal.TOO_MANY))

    def leave_line(self, ticket: Ticket, now: float) -> None:
        """A caller gave up. Does nothing if it was served or refused before."""
        if self._line.leave(ticket):
            self._settle(now)  # the callers behind it may need something else

    def expire(self, ticket: Ticket, now: float, *, is_deadlock: bool = False) -> None:
        """The time of a caller is up. Does nothing if it was served or refused before."""
        if self._line.leave(ticket):
            if not ticket.done():  # it may have been cancelled at this very moment
                why = Refusal.DEADLOCK if is_deadlock else Refusal.TIMED_OUT
                if self._server.is_down and self.slots.size - self._inside[OPENING] < self._max_size:
                    why = Refusal.UNREACHABLE
                self.orders.append(Refuse(ticket, why))
            self._settle(now)

    def release(self, slot: Slot, now: float, *, was_used: bool = True, is_read_on: bool = False) -> None:
        """A use of this connection has ended: a lease, a query or a feed. Does nothing if the pool has ended that use.
        ``was_used``: false if the caller never got it. ``is_read_on``: a feed on it may still be read, beside the size.
        """
        if slot.state is SHARED:
            if slot.doom is None and not slot.is_doubted:  # as takes_more, without a call for each query
                slot.shares.fewer(slot)
            else:
                slot.load -= 1
        elif slot.state is not LEASED:
            return
        elif is_read_on:
            self._put_beside(slot, in_lane=True)
        if slot.state is LEASED and self._resets and was_used:
            slot.needs_reset = True
        if was_used:
            slot.is_new = False
            slot.used_at = now
            slot.heard_at = now if self._trusts_use else -NEVER
        if slot.state is SHARED:
            if slot.load or slot.is_doubted:
                if self._line.total:
                    self._settle(now)
                return
            slot.needs_reset = self._resets and slot.shares is self._feeds
            slot.shares = None
        if self._is_plain and was_used and slot.doom is None and not slot.beside and self._is_open(slot.connection):
            inside, line = self._inside, self._line
            if (
                line.total  # asked first: most releases find nobody waiting
                and line.total == line.waiting[LEASE]
                and (slot.state is LEASED and self._trusts_use and now < slot.expires_at and not inside[IDLE])
                and (oldest := line.oldest()) is not None
            ):
                # As _home() and _settle(), without the shelf: a hand-over takes a tenth less.
                self.orders.append(Serve(oldest[0], slot))
                line.leave(oldest[0])
                self._grow(now)
                return
            inside[slot.state] -= 1  # as _home(), without a call for each release
            inside[IDLE] += 1
            slot.state = IDLE
            self._shelf.put(slot)
            if line.total:
                self._settle(now)
            return
        self._home(slot, now)
        self._settle(now)

    def step_aside(self, slot: Slot, now: float) -> bool:
        """It serves a feed from now on, outside the size. False if the feed lane is full: then nothing has changed."""
        if slot.state is LEASED and not slot.beside and not self.has_lane():
            return False
        if slot.state in (LEASED, SHARED):
            self._put_beside(slot, in_lane=True)
            self._settle(now)
        return True

    def doubt(self, slot: Slot, now: float) -> None:
        """A request on it had no answer in time: it is checked, and takes no new requests meanwhile."""
        if slot.state is SHARED and slot.takes_more:
            self._unlist(slot)
            slot.is_doubted = True
            self.orders.append(Prepare(slot, is_reset=False))
            self._settle(now)

    # ---- facts: connections

    def opened(self, slot: Slot, connection: Any, now: float) -> None:
        """The connection that was ordered is open."""
        slot.connection = connection
        slot.opened_at = slot.used_at = now
        if slot.state is GONE:
            self.orders.append(Close(slot, Reason.POOL_CLOSED, politely=False))
            return
        if self._server.succeeded(now):
            self.wake_at = min(self.wake_at, now + PROBATION_SECONDS)  # to report the end of an outage
        slot.heard_at = now if self._trusts_use else -NEVER
        slot.expires_at = expiry(now, self._config.connection_ttl, self._random)
        self._home(slot, now)
        self._settle(now)

    def open_failed(self, slot: Slot, now: float, *, is_hopeless: bool = False) -> None:
        """It could not be opened. ``is_hopeless``: trying again cannot help, as with a wrong password."""
        if slot.state is GONE:
            return
        self._gone(slot)
        self._note_failure(now, is_hopeless=is_hopeless)
        if is_hopeless:
            self._refuse_all(Refusal.HOPELESS)
        self._settle(now)

    def prepared(self, slot: Slot, now: float, *, is_fit: bool) -> None:
        """Its check or reset is over."""
        if slot.state is PREPARING:
            was_check, slot.needs_reset = not slot.needs_reset, False
            if was_check or self._trusts_use:
                slot.heard_at = now
            if is_fit:
                slot.is_new = False
                self._home(slot, now)
            else:
                self._note_early_end(slot, now)
                self._end(slot, Reason.UNFIT if self._is_open(slot.connection) else Reason.BROKEN)
                if was_check:
                    self._check_idle_ones()
        elif slot.state is SHARED and slot.is_doubted:
            if not is_fit:
                self._abort(slot, Reason.UNFIT)  # its requests fail now, instead of waiting for ever
                self._check_idle_ones()
            else:
                slot.is_doubted, slot.heard_at = False, now
                if not slot.load:
                    slot.shares = None
                    self._home(slot, now)
                elif slot.doom is None:
                    slot.shares.add(slot)
        self._settle(now)

    def lost(self, slot: Slot, now: float) -> None:
        """It died. The others may have died too: idle ones are checked before anybody gets them."""
        if slot.state is IDLE:
            self._shelf.remove((slot,))
            self._note_early_end(slot, now)
            self._abort(slot, Reason.BROKEN)
        elif slot.state is SHARED and slot.shares is self._feeds:
            self._abort(slot, Reason.BROKEN)  # its feeds notice by themselves, and its place in the lane is free
        elif slot.state is CLOSING or slot.state is GONE:
            return
        # In any other state, it is closed when that state ends.
        self._check_idle_ones()
        self._settle(now)

    def read_out(self, slot: Slot, now: float) -> None:
        """Nobody reads from it any more, or the time to read is over."""
        if slot.state is not READ_ON:
            return
        if slot.doom is None:
            self._home(slot, now)
        else:
            self._close(slot, slot.doom, politely=self._is_open(slot.connection))
        self._settle(now)

    def closed(self, slot: Slot, now: float) -> None:
        """It is closed, politely or not."""
        if slot.state is CLOSING:
            self._gone(slot)
            self._settle(now)

    # ---- facts: the pool

    def tick(self, now: float) -> None:
        """Time has passed: see what that changes, and when to look again. The first call opens ``min_size``."""
        self.wake_at = NEVER
        if not self._is_closing:
            self._close_surplus(now)
            self._ping(now)
            is_over, over_at = self._server.is_over(now)
            self.wake_at = min(self.wake_at, over_at)
            if is_over:
                self.orders.append(Report(OutageStage.ENDED))
        self._settle(now)

    def drain(self, now: float, reason: Reason = Reason.DRAINED) -> None:
        """Replace every connection: idle ones now, the others when nobody uses them any more."""
        self._shelf.take_all()
        for slot in self.slots:
            if slot.state is IDLE:
                self._end(slot, reason)
            elif slot.state is not CLOSING and slot.doom is None:
                self._doom(slot, reason)
        self._settle(now)

    def resize(self, config: PoolConfig, now: float) -> None:
        """The sizes have changed. Idle connections that are too many are closed now, others when nobody uses them."""
        self._set_options(config)
        if not self._is_closing:
            for slot in self._shelf.oldest_first()[: max(0, self._excess())]:
                self._shelf.remove((slot,))
                self._end(slot, Reason.SURPLUS)
            for slot in list(self._queries)[: max(0, self._excess())]:
                self._doom(slot, Reason.SURPLUS)  # else a steady load would use it for ever
        self.tick(now)

    def close(self, now: float) -> int:
        """The pool ends. Callers in line are refused; feeds end now; leases and queries may go on until
        :meth:`end_uses`. Returns how many feeds that ends.
        """
        self._is_closing = True
        self._refuse_all(Refusal.CLOSED)
        feeds = 0
        for slot in self.slots:
            if slot.state is OPENING:
                self._abort(slot, Reason.POOL_CLOSED)
            elif slot.in_lane and slot.state is not CLOSING:
                feeds += slot.load if slot.state is SHARED else 1  # a doubted one may carry none any more
                self._close(slot, Reason.POOL_CLOSED)
        self.drain(now, Reason.POOL_CLOSED)
        return feeds

    def end_uses(self, now: float) -> None:
        """While closing: the time that users had is over."""
        for slot in self.slots:
            if slot.state in (PREPARING, LEASED, SHARED, READ_ON):
                self._abort(slot, Reason.POOL_CLOSED)

    def forget(self) -> None:
        """Nothing of this pool exists any more, as after a fork, or after its event loop was closed."""
        self.slots.forget()
        self._is_closing = True

    # ---- decisions

    def _find(self, need: Need, now: float) -> Slot | None:
        """What serves this need now; one more use of it has begun. None if the caller has to wait."""
        if need is FEED:
            # 1. Beside other feeds. On an idle connection if those of the lane are full, and it takes one more.
            place = self._feed_place()
            if place is not None and (place.load < self._most or not self._inside[IDLE] or not self.has_lane()):
                return self._feeds.more(place)
            return self._take_idle(need, now) if self.has_lane() else None
        while True:
            # 2. An idle one.
            if (slot := self._take_idle(need, now)) is not None or need is LEASE:
                return slot
            # 3. Beside other queries, on the connection that carries fewest.
            if (place := self._queries.first(self._most)) is None:
                return None
            if not self._is_open(place.connection):
                self._doom(place, Reason.BROKEN)
            elif place.expires_at <= now:
                self._doom(place, Reason.EXPIRED)
            else:
                if place.load >= CROWDED and self._can_help_crowd():
                    # This helps those that come later: what was sent cannot move.
                    if self._inside[IDLE]:  # it has to be checked first, or it would have been taken
                        self._prepare(self._shelf.take())
                    else:
                        self._grow(now, is_crowded=True)
                return self._queries.more(place)

    def _take_idle(self, need: Need, now: float) -> Slot | None:
        """Put to use the idle one that was used last. Those that cannot be used as they are, are closed or checked."""
        found: Slot | None = None
        passed_over: list[Slot] = []  # have to be checked, but enough others are
        while len(self._shelf) and found is None:
            slot = self._shelf.take()
            if not self._is_open(slot.connection):
                self._note_early_end(slot, now)
                self._abort(slot, Reason.BROKEN)
            elif slot.expires_at <= now:
                self._end(slot, Reason.EXPIRED)
            elif now - slot.heard_at <= self._check_after:
                found = slot
            elif self._trusts_use or self._inside[PREPARING] < self._wanted():
                self._prepare(slot)  # all that were unused for long; with a check hook, only as many as are needed
            else:
                passed_over.append(slot)
        for slot in reversed(passed_over):
            self._shelf.put(slot)
        if found is not None and need is LEASE:
            self.slots.move(found, LEASED)
        elif found is not None:
            self.slots.move(found, SHARED)
            self._share(found, self._queries if need is QUERY else self._feeds)
        return found

    def _home(self, slot: Slot, now: float) -> None:
        """What becomes of a connection that nobody uses: it is new, was released, prepared, or read to the end."""
        reason = slot.doom
        if reason is None and not self._is_open(slot.connection):
            reason = Reason.BROKEN
            self._note_early_end(slot, now)
        if reason is None and slot.beside:
            if slot.state is not READ_ON and self._has_streams(slot.connection):
                self.slots.move(slot, READ_ON)
                self.orders.append(AwaitReaders(slot, None))
                return
            if self.slots.size >= self._max_size or slot.expires_at <= now:
                reason = Reason.FEED_ENDED
        elif reason is None and self._excess() > 0:
            reason = Reason.SURPLUS
        if reason is not None:
            self._end(slot, reason)
            return
        slot.in_lane = False
        self.slots.put_inside(slot)
        if slot.needs_reset:
            self._prepare(slot)
        else:
            self.slots.move(slot, IDLE)
            self._shelf.insert(slot)

    def _end(self, slot: Slot, reason: Reason) -> None:
        """Close this connection: now, or outside the size when it was read to the end."""
        if not self._is_open(slot.connection):
            self._abort(slot, reason)
        elif self._has_streams(slot.connection):
            slot.doom = reason
            self._put_beside(slot, in_lane=False)
            self.slots.move(slot, READ_ON)
            self.orders.append(AwaitReaders(slot, self._config.cursor_grace))
        else:
            self._close(slot, reason)

    def _grow(self, now: float, *, is_crowded: bool = False) -> None:
        """Open as many as the callers in line or ``min_size`` need, or one for crowded queries; in an outage, one."""
        if self.slots.size >= self._max_size and not self._server.is_down:
            return  # nothing may be opened; the steps below would find that too, but count all who wait first
        on_the_way = self._inside[OPENING] + self._inside[PREPARING]
        live = self.slots.size - self._inside[CLOSING]
        wanted = max(self._wanted() - on_the_way, self._min_size - live, int(is_crowded))
        wanted = min(wanted, self._max_size - self.slots.size)
        server = self._server
        if server.is_down:
            if wanted <= 0 and not self._inside[OPENING]:
                server.rest()
            elif self._inside[OPENING]:
                wanted = 0  # the attempt that is under way decides
            elif now < server.retry_at and not (server.is_hopeless and self._line.total):
                self.wake_at = min(self.wake_at, server.retry_at)
                wanted = 0
            else:
                wanted = 1
            has_lasted, lasts_at = server.lasts(now)
            self.wake_at = min(self.wake_at, lasts_at)
            if has_lasted:
                self.orders.append(Report(OutageStage.LASTS))
        for _ in range(wanted):
            self.orders.append(Open(self.slots.new()))

    def _settle(self, now: float) -> None:
        """After each fact: serve the caller who has waited longest, then the next, until one cannot be served."""
        if self._is_closing:
            return
        line = self._line
        steps_over_feeds = False
        while line.total and (oldest := line.oldest(FEED if steps_over_feeds else None)) is not None:
            ticket, need = oldest
            if need is LEASE and not self._inside[IDLE]:
                break  # _find() would find nothing; this saves the call at each join and hand-over
            if (slot := self._find(need, now)) is not None:
                self.orders.append(Serve(ticket, slot))
            elif need is FEED and not self.has_lane():
                steps_over_feeds = True  # they wait for a connection of the lane, and for nothing that others need
                continue
            else:
                break
            line.leave(ticket)
        if line.waiting[FEED]:
            self._serve_feeds()
        if self._config.max_idle == 0 and not line.total:
            self._close_surplus(now)
        self._grow(now)

    def _serve_feeds(self) -> None:
        """Feeds may go ahead of others: a place beside other feeds is nothing that anybody else waits for."""
        for ticket in self._line.all_who_need(FEED):
            if (place := self._feed_place()) is not None:
                self.orders.append(Serve(ticket, self._feeds.more(place)))
            elif not self._has_feed_place():
                self.orders.append(Refuse(ticket, Refusal.LANE_FULL))
            else:
                break
            self._line.leave(ticket)

    # ---- what the decisions ask

    def _wanted(self) -> int:
        """Connections that those in line need. Feeds need none while the lane is full."""
        needed = self._line.connections_needed(self._queries.room(self._most), min(CROWDED, self._most))
        return needed - (self._line.waiting[FEED] > 0 and not self.has_lane())

    def _not_served_soon(self) -> int:
        """Those in line for whom no connection is idle or on its way, and none can be opened."""
        coming = max(0, self._max_size - self.slots.size)
        coming += sum(self._inside[state] for state in (OPENING, PREPARING, IDLE))
        return self._line.not_served_by(coming, self._most)

    def _can_help_crowd(self) -> bool:
        """Whether another connection can be had for queries, and none is on its way."""
        inside = self._inside
        if inside[OPENING] or inside[PREPARING] or self._config.max_idle == 0:  # 0: it would be closed before they come
            return False
        return self.slots.size < self._max_size or inside[IDLE] > 0

    def has_lane(self) -> bool:
        """Whether the feed lane takes one more connection. One that is to be closed takes no place there."""
        staying = (slot for slot in self.slots if slot.state is not CLOSING and slot.doom is None)
        return sum(slot.in_lane or slot.shares is self._feeds for slot in staying) < self._config.feed_limit

    def _feed_place(self) -> Slot | None:
        """The connection of the lane that carries fewest feeds. Those that are found broken are aborted."""
        while (place := self._feeds.first()) is not None and not self._is_open(place.connection):
            self._abort(place, Reason.BROKEN)
        return place

    def _has_feed_place(self) -> bool:
        """Whether the lane will take one more feed, on a connection that it has or on another."""
        return self.has_lane() or any(slot.shares is self._feeds and slot.doom is None for slot in self.slots)

    def _excess(self) -> int:
        """How many connections exceed ``pool_size``, without those that are to be closed."""
        staying = (slot for slot in self.slots if not slot.beside and slot.state is not CLOSING and slot.doom is None)
        return sum(1 for _ in staying) - self._max_size if self.slots.size > self._max_size else 0

    @property
    def is_leased_out(self) -> bool:
        """Whether nothing but the release of a lease can serve a caller."""
        return self._inside[LEASED] >= self._max_size

    def census(self) -> Census:
        """How many there are now of what."""
        return take_census(
            self.slots, self._line, self._queries, (self._min_size, self._max_size), self._server.is_down
        )

    # ---- time

    def _close_surplus(self, now: float) -> None:
        """Close idle connections above ``min_size`` that were not used for ``max_idle``."""
        max_idle = self._config.max_idle
        if max_idle is not None and self._min_size < self._max_size:
            surplus = self.slots.size - self._inside[CLOSING] - self._min_size
            due, again_at = self._shelf.take_surplus(surplus, now, max_idle)
            for slot in due:
                self._end(slot, Reason.SURPLUS)
            if max_idle:
                self.wake_at = min(self.wake_at, again_at)

    def _ping(self, now: float) -> None:
        """Check idle connections that were silent for ``ping_interval``."""
        if self._config.ping_interval:
            due, again_at = self._shelf.take_silent(now, self._config.ping_interval)
            for slot in due:
                self._prepare(slot)
            self.wake_at = min(self.wake_at, again_at)

    # ---- outages

    def _note_failure(self, now: float, *, is_hopeless: bool = False, was_open: bool = False) -> None:
        if self._server.failed(now, is_hopeless=is_hopeless):
            self.orders.append(Report(OutageStage.BEGAN, was_open))

    def _note_early_end(self, slot: Slot, now: float) -> None:
        """An unused connection is bad. If it is new, that counts as a failure to open it."""
        if slot.is_new and now < slot.opened_at + PROBATION_SECONDS:
            self._note_failure(now, was_open=True)

    # ---- moves

    def _note_plain(self) -> None:
        # Whether each released connection that is open and not doomed becomes idle.
        self._is_plain = not self._resets and self._config.max_idle != 0 and self.slots.size <= self._max_size

    def _put_beside(self, slot: Slot, *, in_lane: bool) -> None:
        slot.in_lane = in_lane
        self.slots.put_beside(slot)
        self._note_plain()

    def _share(self, slot: Slot, shares: Shares) -> None:
        slot.shares, slot.load = shares, 1
        shares.add(slot)

    def _unlist(self, slot: Slot) -> None:
        """It takes no more requests beside those that it carries."""
        if slot.shares is not None and slot.takes_more:
            slot.shares.remove(slot)

    def _doom(self, slot: Slot, reason: Reason) -> None:
        self._unlist(slot)
        slot.doom = reason

    def _prepare(self, slot: Slot) -> None:
        self.slots.move(slot, PREPARING)
        self.orders.append(Prepare(slot, is_reset=slot.needs_reset))

    def _check_idle_ones(self) -> None:
        for slot in self._shelf.take_all():
            if self._is_open(slot.connection):
                self._prepare(slot)
            else:
                self._abort(slot, Reason.BROKEN)

    def _close(self, slot: Slot, reason: Reason, *, politely: bool = True) -> None:
        self._unlist(slot)
        slot.shares, slot.load, slot.is_doubted = None, 0, False
        if politely:
            self.slots.move(slot, CLOSING)
        else:
            self._gone(slot)
        self.orders.append(Close(slot, reason, politely))

    def _abort(self, slot: Slot, reason: Reason) -> None:
        self._close(slot, reason, politely=False)

    def _gone(self, slot: Slot) -> None:
        self.slots.remove(slot)
        self._note_plain()

    def _refuse_all(self, why: Refusal) -> None:
        for ticket in self._line.all():
            self._line.leave(ticket)
            self.orders.append(Refuse(ticket, why))

    # ---- for tests

    def check(self) -> None:
        """Assert every invariant. Looks at every connection."""
        self.slots.check(self._queries, self._feeds)
        assert set(self._shelf.oldest_first()) == {slot for slot in self.slots if slot.state is IDLE}
        assert all(slot.load <= self._most for slot in self.slots if slot.shares is self._queries)
        for part in (self._shelf, self._line, self._queries, self._feeds):
            part.check()
