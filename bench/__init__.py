"""The benchmark: what relaying a session costs, beside HAProxy and beside the relay that one would write first."""
