"""Working on a queue from outside: moving it, backups, the delivery log. These are given the store, and never
open it.
"""
