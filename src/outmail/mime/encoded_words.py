"""Encoded words (RFC 2047) in text that a program reads: the addresses of an envelope.

Promises: what comes back can be stored: UTF-8, with the surrogates of `os.fsdecode` for bytes that are none.
Fails: `ValueError`. Does not: make a text for people, which `splice.readable` does.
"""

from __future__ import annotations


def decoded(text: str) -> str:
    """The text with its encoded words decoded. Raises ValueError with a clause, also for a charset that is no
    charset of text, and for one that gives code points which no text has (RFC 3629, section 3).
    """
    if "=?" not in text:
        return text
    from email.errors import MessageError
    from email.header import decode_header, make_header

    try:
        found = str(make_header(decode_header(text)))
        found.encode("utf-8", "surrogateescape")
    except (MessageError, LookupError, ValueError, OverflowError):
        raise ValueError("has an envelope that cannot be decoded") from None
    return found
