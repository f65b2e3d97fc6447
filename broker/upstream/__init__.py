"""The connection to a vendor."""
