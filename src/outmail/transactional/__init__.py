"""The transactional outbox: a table in an application's own database, written in the application's
transaction.
"""
