"""Redis at arm's length: keys, scripts and the records that live there."""
