"""The ground floor: what a session, a turn and a credential are. No I/O, no clock, no randomness, no logging."""
