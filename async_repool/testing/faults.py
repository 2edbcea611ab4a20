"""Faults on demand: what can go wrong, and the controls of it.

What lives here: which faults are in force, which are still to come, and which have happened. What must not: sockets.
The connections of an endpoint ask here what to do.
"""

from __future__ import annotations

import enum
import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from ._endpoint import Endpoint


class Fault(enum.StrEnum):
    """What can go wrong, as ``Faults.happened`` counts it."""

    REFUSE = "refuse"  #: the port was closed (counted once each time; attempts to connect leave no trace)
    MUTE = "mute"  #: a connection was accepted that will never be answered
    FREEZE = "freeze"  #: everything was frozen
    DELAY = "delay"  #: an answer was held back
    RESET = "reset"  #: a connection was reset
    EOF = "eof"  #: a connection was ended in good order
    GARBAGE = "garbage"  #: random bytes were sent instead of an answer
    BAD_JSON = "bad json"  #: an answer's header was followed by as many bytes that are no JSON
    HALF_ANSWER = "half answer"  #: half an answer was sent, then the connection was ended
    WRONG_TOKEN = "wrong token"  #: an answer came with another token


Injectable = Literal[Fault.GARBAGE, Fault.BAD_JSON, Fault.HALF_ANSWER, Fault.WRONG_TOKEN]
_INJECTABLE: Final = frozenset({Fault.GARBAGE, Fault.BAD_JSON, Fault.HALF_ANSWER, Fault.WRONG_TOKEN})
_NEED_A_FRAME: Final = frozenset({Fault.BAD_JSON, Fault.WRONG_TOKEN})
When = Literal["now", "next connection", "after next answer"]


class Faults:
    """The fault controls of a ``StandInServer`` or a ``FaultProxy``. Nothing here waits; a fault begins at once.

    An answer is whatever the server sends in one piece: a message of the log-in, or one response to a query. What is
    injected applies to the next answers on any connection, once each and in the order given.
    """

    def __init__(self) -> None:
        self._endpoints: set[Endpoint] = set()
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
        """Seconds by which each answer is late; 0 for none."""
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"delay must be 0 or more seconds, not {seconds!r}")
        self._delay = seconds

    @property
    def is_frozen(self) -> bool:
        """Whether ``freeze`` is in force."""
        return self._is_frozen

    @property
    def is_mute(self) -> bool:
        """Whether connections are accepted that will never be answered."""
        return self._is_mute

    @property
    def is_refusing(self) -> bool:
        """Whether the listening port is closed."""
        return self._is_refusing

    @property
    def pending(self) -> int:
        """Faults injected, or cuts asked for later, that have not happened yet."""
        return len(self._answers) + len(self._connections)

    def happened(self, fault: Fault) -> int:
        """How often a fault has happened. ``clear`` does not reset it."""
        return self._counts[fault]

    def refuse(self, on: bool = True) -> None:
        """Close the listening port, so that connecting is refused, or open it again. Open connections live on."""
        if on and not self._is_refusing:
            self.count(Fault.REFUSE)
        self._is_refusing = on
        self._update()

    def mute(self, on: bool = True) -> None:
        """Accept connections and never answer them. One that was accepted so stays mute after ``mute(False)``."""
        self._is_mute = on

    def freeze(self) -> None:
        """Stop accepting, reading and answering. The kernel still completes connections, as for a stopped process."""
        if not self._is_frozen:
            self.count(Fault.FREEZE)
        self._is_frozen = True
        self._update()

    def thaw(self) -> None:
        """End ``freeze``: what has piled up is accepted, read and answered."""
        self._is_frozen = False
        self._update()

    def cut(self, *, orderly: bool = False, when: When = "now") -> int:
        """Cut connections: reset, or with ``orderly`` ended (what is already written is still sent).

        ``"now"`` cuts all that are open and returns their number. ``"next connection"`` cuts the next one as it is
        accepted, ``"after next answer"`` the one that gets the next answer, behind it; both return 0.
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
        """Spoil the next answer, or the next ``times``.

        ``GARBAGE``: 64 random bytes instead (the same in every run). ``BAD_JSON``: its header, then as many bytes
        that are no JSON. ``HALF_ANSWER``: its first half, then end of file. ``WRONG_TOKEN``: its token plus 1,000,000.
        ``BAD_JSON`` and ``WRONG_TOKEN`` let messages of the log-in pass, which have no header.
        """
        if fault not in _INJECTABLE:
            raise ValueError(f"{fault!r} cannot be injected; use {', '.join(sorted(_INJECTABLE))}")
        self._answers.extend([(fault, fault in _NEED_A_FRAME)] * times)

    def clear(self) -> None:
        """End every lasting fault and forget what has not happened yet. The counts stay."""
        self._delay = 0.0
        self._is_frozen = self._is_mute = self._is_refusing = False
        self._answers.clear()
        self._connections.clear()
        self._update()

    # For the endpoints and their connections:

    @property
    def is_calm(self) -> bool:
        """Whether answers may pass untouched."""
        return not (self._delay or self._is_frozen or self._answers)

    def count(self, fault: Fault) -> None:
        """Note that a fault has happened."""
        self._counts[fault] += 1

    def for_answer(self, is_frame: bool) -> Fault | None:
        """The fault, counted, that the next answer must suffer."""
        if not self._answers or (self._answers[0][1] and not is_frame):
            return None
        fault, _ = self._answers.popleft()
        self.count(fault)
        return fault

    def for_connection(self) -> Fault | None:
        """The fault, counted, that the connection accepted now must suffer."""
        fault = self._connections.popleft() if self._connections else Fault.MUTE if self._is_mute else None
        if fault is not None:
            self.count(fault)
        return fault

    def random_bytes(self, size: int) -> bytes:
        """The next bytes of garbage: the same in every run."""
        return self._random.randbytes(size)

    def attach(self, endpoint: Endpoint) -> None:
        """Govern an endpoint."""
        self._endpoints.add(endpoint)

    def detach(self, endpoint: Endpoint) -> None:
        """Govern an endpoint no more."""
        self._endpoints.discard(endpoint)

    def _update(self) -> None:
        for endpoint in list(self._endpoints):
            endpoint.update()
