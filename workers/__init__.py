"""Duties that run beside the edges: each a small step, run by one loop."""
