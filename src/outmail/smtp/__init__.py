"""SMTP without I/O (RFC 5321, 2033, 2920, 1870, 6152, 6531, 3461, 2034, 3207, 4954, 9422).

Bytes in, bytes and values out: no sockets, no clock, no TLS library. `client` is a dialogue written as a
generator; `outmail.transport.smtp` runs it over a real connection, the tests run it over text files, whole
and byte by byte.
"""
