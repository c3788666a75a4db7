"""Messages as bytes: composing new ones, and cutting and prepending whole header fields of foreign ones.

Foreign mail is never parsed and written anew: CPython's email package does not give the same bytes back.
"""
