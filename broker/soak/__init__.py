"""A soak: many sessions through several nodes under random faults, every context checked against the truth."""
