"""The engine: leases what is due, hands it to sessions, and settles what became of it."""
