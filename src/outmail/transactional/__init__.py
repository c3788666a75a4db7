"""The transactional outbox: a table in somebody else's database, written in the caller's transaction."""
