"""The engine: it leases due mail, gives it to sessions, and settles the outcomes."""
