"""SMTP without I/O (RFC 5321, 2033, 2920, 1870, 6152, 6531, 3461, 2034, 3207, 4954, 9422).

Bytes go in; bytes and values come out. There are no sockets, no clock, no TLS library. `client` is a dialogue
written as a generator: `outmail.transport.smtp` runs it over a real connection, and tests run it over text
files, whole and byte by byte.
"""
