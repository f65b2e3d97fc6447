"""session-broker: keeps long-lived LLM agent sessions alive across credentials, sockets and nodes."""

__version__ = "0.1.0"
