"""A vendor of the Responses API with faults, and clients that can tell when a context was altered."""

from broker.simulator.client import SessionClient, TurnResult
from broker.simulator.context import context_digest
from broker.simulator.control import serve
from broker.simulator.credentials import Application, SimCredential, SimOptions, parse_credentials
from broker.simulator.faults import Fault, FaultBoard, presets
from broker.simulator.http_client import HttpClient
from broker.simulator.manners import MANNERS, Manner, manner_of
from broker.simulator.record import Handshake, TurnRecord
from broker.simulator.script import Script
from broker.simulator.telemetry import Telemetry
from broker.simulator.upstream import Simulator

__all__ = [
    "MANNERS",
    "Application",
    "Fault",
    "FaultBoard",
    "Handshake",
    "HttpClient",
    "Manner",
    "Script",
    "SessionClient",
    "SimCredential",
    "SimOptions",
    "Simulator",
    "Telemetry",
    "TurnRecord",
    "TurnResult",
    "context_digest",
    "manner_of",
    "parse_credentials",
    "presets",
    "serve",
]
