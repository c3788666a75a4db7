"""Messages as bytes: composing new ones, and cutting and prepending whole header fields of messages from
outside.

Messages from outside are never parsed and written again, because CPython's email package does not give back
the same bytes.
"""
