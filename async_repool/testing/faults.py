"""Faults on demand: what can go wrong, and the controls that make it happen.

This module knows which faults are active, which are pending, and which have happened. It has no sockets: an endpoint
and its connections ask it what to do.
"""

from __future__ import annotations

import enum
import random
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final, Literal, Protocol


class Fault(enum.StrEnum):
    """What can go wrong, as ``Faults.happened`` counts it."""

    REFUSE = "refuse"  #: the port was closed (attempts to connect are not counted)
    MUTE = "mute"  #: a connection was accepted and will never be answered
    FREEZE = "freeze"  #: everything was frozen
    DELAY = "delay"  #: an answer was held back
    RESET = "reset"  #: a connection was reset
    EOF = "eof"  #: a connection was closed in good order
    GARBAGE = "garbage"  #: random bytes were sent instead of an answer
    BAD_JSON = "bad json"  #: the body of an answer was replaced by bytes that are not JSON
    HALF_ANSWER = "half answer"  #: half an answer was sent, then the connection was closed
    WRONG_TOKEN = "wrong token"  #: an answer was sent with another token


Injectable = Literal[Fault.GARBAGE, Fault.BAD_JSON, Fault.HALF_ANSWER, Fault.WRONG_TOKEN]
_INJECTABLE: Final = frozenset({Fault.GARBAGE, Fault.BAD_JSON, Fault.HALF_ANSWER, Fault.WRONG_TOKEN})
_NEED_A_FRAME: Final = frozenset({Fault.BAD_JSON, Fault.WRONG_TOKEN})
When = Literal["now", "next connection", "after next answer"]


class FaultyConnection(Protocol):
    """What ``Faults`` needs of a connection."""

    def cut(self, *, orderly: bool = False) -> None:
        """End the connection at once: reset it, or close it if ``orderly``."""


class FaultyEndpoint(Protocol):
    """What ``Faults`` needs of a listening port."""

    @property
    def open_connections(self) -> Sequence[FaultyConnection]:
        """The connections that are open now."""

    def update(self) -> None:
        """Apply the active faults now."""


class Faults:
    """The fault controls of a ``StandInServer`` or a ``FaultProxy``. No method waits. A fault begins at once.

    An answer is one message of the server: a message of the login, or one response to a query. An injected fault
    applies to the next answer on any connection. Several injected faults apply to one answer each, in order.
    """

    def __init__(self) -> None:
        self._endpoints: set[FaultyEndpoint] = set()
        self._delay = 0.0
        self._is_frozen = False
        self._is_mute = False
        self._is_refusing = False
        self._answers: deque[tuple[Fault, bool]] = deque()
        self._connections: deque[Fault] = deque()
        self._counts: Counter[Fault] = Counter()
        self._random = random.Random(0)

    def __repr__(self) -> str:
        states = {"frozen": self._is_frozen, "mute": self._is_mute, "refusing": self._is_refusing}
        active = [name for name, is_on in states.items() if is_on]
        active += [f"delay {self._delay:g} s"] * bool(self._delay) + [f"{self.pending} pending"] * bool(self.pending)
        return f"<Faults {', '.join(active) or 'none'}>"

    @property
    def delay(self) -> float:
        """Seconds by which each answer is delayed. 0: no delay."""
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"delay must be 0 or more seconds, not {seconds!r}")
        self._delay = seconds

    @property
    def is_frozen(self) -> bool:
        """Whether the endpoint is frozen."""
        return self._is_frozen

    @property
    def is_mute(self) -> bool:
        """Whether new connections will never be answered."""
        return self._is_mute

    @property
    def is_refusing(self) -> bool:
        """Whether the listening port is closed."""
        return self._is_refusing

    @property
    def pending(self) -> int:
        """The number of injected faults and later cuts that have not happened yet."""
        return len(self._answers) + len(self._connections)

    def happened(self, fault: Fault) -> int:
        """How often a fault has happened. ``clear`` does not reset this count."""
        return self._counts[fault]

    def refuse(self, on: bool = True) -> None:
        """Close the listening port, which refuses new connections; ``refuse(False)`` opens it again.

        Open connections stay open.
        """
        if on and not self._is_refusing:
            self.count(Fault.REFUSE)
        self._is_refusing = on
        self._update()

    def mute(self, on: bool = True) -> None:
        """Accept new connections and never answer them. A mute connection stays mute after ``mute(False)``."""
        self._is_mute = on

    def freeze(self) -> None:
        """Stop accepting, reading and answering. The kernel still completes connections, as for a stopped process."""
        if not self._is_frozen:
            self.count(Fault.FREEZE)
        self._is_frozen = True
        self._update()

    def thaw(self) -> None:
        """End ``freeze``: accept, read and answer everything that has arrived meanwhile."""
        self._is_frozen = False
        self._update()

    def cut(self, *, orderly: bool = False, when: When = "now") -> int:
        """Reset connections. If ``orderly``, close them instead: bytes that are already written are still sent.

        ``"now"`` cuts all open connections and returns their number. ``"next connection"`` cuts the next connection
        when it is accepted. ``"after next answer"`` sends the next answer and then cuts its connection. Both return 0.
        """
        fault = Fault.EOF if orderly else Fault.RESET
        if when == "next connection":
            self._connections.append(fault)
        elif when == "after next answer":
            self._answers.append((fault, False))
        elif when == "now":
            cut = [connection for endpoint in self._endpoints for connection in endpoint.open_connections]
            for connection in cut:
                self.count(fault)
                connection.cut(orderly=orderly)
            return len(cut)
        else:
            raise ValueError(f"when must be 'now', 'next connection' or 'after next answer', not {when!r}")
        return 0

    def inject(self, fault: Injectable, times: int = 1) -> None:
        """Spoil the next answer, or the next ``times`` answers.

        ``GARBAGE`` sends 64 random bytes instead of the answer (the same bytes in every run). ``BAD_JSON`` sends the
        header, then bytes that are not JSON instead of the body. ``HALF_ANSWER`` sends the first half, then closes the
        connection. ``WRONG_TOKEN`` adds 1,000,000 to the token. ``BAD_JSON`` and ``WRONG_TOKEN`` skip the messages of
        the login, because these have no header.
        """
        if fault not in _INJECTABLE:
            raise ValueError(f"{fault!r} cannot be injected; use {', '.join(sorted(_INJECTABLE))}")
        self._answers.extend([(fault, fault in _NEED_A_FRAME)] * times)

    def clear(self) -> None:
        """End every lasting fault and drop all pending ones. The counts stay."""
        self._delay = 0.0
        self._is_frozen = self._is_mute = self._is_refusing = False
        self._answers.clear()
        self._connections.clear()
        self._update()

    # For the endpoints and their connections:

    @property
    def is_calm(self) -> bool:
        """Whether answers pass unchanged."""
        return not (self._delay or self._is_frozen or self._answers)

    def count(self, fault: Fault) -> None:
        """Count a fault that has happened."""
        self._counts[fault] += 1

    def for_answer(self, is_frame: bool) -> Fault | None:
        """Take and count the fault for the next answer, if there is one."""
        if not self._answers or (self._answers[0][1] and not is_frame):
            return None
        fault, _ = self._answers.popleft()
        self.count(fault)
        return fault

    def for_connection(self) -> Fault | None:
        """Take and count the fault for a new connection, if there is one."""
        fault = self._connections.popleft() if self._connections else Fault.MUTE if self._is_mute else None
        if fault is not None:
            self.count(fault)
        return fault

    def random_bytes(self, size: int) -> bytes:
        """The next garbage bytes. They are the same in every run."""
        return self._random.randbytes(size)

    def attach(self, endpoint: FaultyEndpoint) -> None:
        """Control an endpoint from now on."""
        self._endpoints.add(endpoint)

    def detach(self, endpoint: FaultyEndpoint) -> None:
        """Stop controlling an endpoint."""
        self._endpoints.discard(endpoint)

    def _update(self) -> None:
        for endpoint in list(self._endpoints):
            endpoint.update()
