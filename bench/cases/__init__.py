"""Measurements beside the ratios of relays: each file is one, with the targets it has."""
