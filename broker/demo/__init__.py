"""Shows the promise on a terminal: real processes, real sockets, and a verdict computed from verified contexts."""
