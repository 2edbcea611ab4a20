"""The orders: what the core wants the shell to do. Each ``Open``, ``Prepare``, ``AwaitReaders`` and polite ``Close``
ends in one fact. The others are done at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from .slots import Reason, Slot


class Refusal(StrEnum):
    """Why a caller is not served."""

    TIMED_OUT = "timed out"
    DEADLOCK = "deadlock"  # timed out, and every lease is held by a task that itself waits for one
    UNREACHABLE = "unreachable"  # timed out, and no connection could be opened
    HOPELESS = "hopeless"  # waiting cannot help, as with a wrong password
    TOO_MANY = "too many waiters"
    LANE_FULL = "lane full"
    CLOSED = "closed"


class OutageStage(StrEnum):
    """What happened to an outage."""

    BEGAN = "began"
    LASTS = "lasts"  # for reconnect_timeout; reported once
    ENDED = "ended"


@dataclass(slots=True)  # not frozen, which would make each hand-over slower
class Serve:
    """Give this caller a use of the connection; :meth:`Core.release` ends it."""

    ticket: Any
    slot: Slot


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell this caller that it is not served."""

    ticket: Any
    why: Refusal


@dataclass(frozen=True, slots=True)
class Open:
    """Open a connection. Ends in :meth:`Core.opened` or :meth:`Core.open_failed`."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Prepare:
    """Check the connection, or reset it. Ends in :meth:`Core.prepared`."""

    slot: Slot
    is_reset: bool


@dataclass(frozen=True, slots=True)
class AwaitReaders:
    """Wait until nobody reads from the connection any more, for up to ``grace`` seconds (None: as long as it takes).
    Ends in :meth:`Core.read_out`.
    """

    slot: Slot
    grace: float | None


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection; ends in :meth:`Core.closed`. Or abort it now, and cancel what the shell does with it: it is
    gone already, and no fact follows.
    """

    slot: Slot
    reason: Reason
    politely: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """Report a stage of the outage. ``was_open``: it began because a connection was lost as soon as it was open."""

    stage: OutageStage
    was_open: bool = False


Order: TypeAlias = Serve | Refuse | Open | Prepare | AwaitReaders | Close | Report
