"""Tools to test programs that use RethinkDB: a stand-in server, faults, a scripted connector and a virtual clock.

Only public names are here. Nothing in this package is meant for production.
"""

from typing import TYPE_CHECKING

from async_repool._lazy import lazy_names

__all__ = [
    "ConformanceError",
    "Fault",
    "FaultProxy",
    "Faults",
    "SampleQueries",
    "ScriptedConnector",
    "StandInServer",
    "VirtualClockLoop",
    "cancel_at_every_step",
    "check_connector",
]

# Each name stands twice: for type checkers, and for the first use at run time. A test compares the two.
if TYPE_CHECKING:
    from .conformance import ConformanceError, SampleQueries, check_connector
    from .faults import Fault, Faults
    from .proxy import FaultProxy
    from .scripted import ScriptedConnector
    from .standin import StandInServer
    from .virtual_clock import VirtualClockLoop, cancel_at_every_step
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "conformance": ("ConformanceError", "SampleQueries", "check_connector"),
            "faults": ("Fault", "Faults"),
            "proxy": ("FaultProxy",),
            "scripted": ("ScriptedConnector",),
            "standin": ("StandInServer",),
            "virtual_clock": ("VirtualClockLoop", "cancel_at_every_step"),
        },
    )
