"""What tests of programs that use RethinkDB need: a stand-in server, and faults on demand.

What lives here: the public names. What must not: logic. Nothing in this package is meant for production.
"""

from .conformance import ConformanceError, SampleQueries, check_connector
from .faults import Fault, Faults
from .proxy import FaultProxy
from .scripted import ScriptedConnector
from .server import StandInServer
from .virtual_clock import VirtualClockLoop, cancel_at_every_step

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
