"""SASL for SMTP AUTH (RFC 4954): PLAIN (4616), LOGIN and CRAM-MD5 (2195), as pure functions.

Promises: `choose` prefers PLAIN where the connection is safe, and CRAM-MD5 where it is not. Answers are
base64, ready to be sent.
Does not: decide whether authentication is allowed (`client` refuses it without TLS), or keep secrets.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode, b64encode


def choose(offered: frozenset[str], *, safe: bool) -> str | None:
    """The mechanism to use, of those that the server offers; or None."""
    order = ("PLAIN", "LOGIN", "CRAM-MD5") if safe else ("CRAM-MD5", "PLAIN", "LOGIN")
    return next((name for name in order if name in offered), None)


def initial(mechanism: str, user: str, password: str) -> bytes | None:
    """The initial response, or None when the server speaks first."""
    if mechanism == "PLAIN":
        return b64encode(f"\0{user}\0{password}".encode())
    return None


def answer(mechanism: str, step: int, challenge: str, user: str, password: str) -> bytes:
    """The answer to the ``step``-th challenge (from 0). A malformed challenge raises ValueError."""
    if mechanism == "LOGIN":
        return b64encode((user if step == 0 else password).encode())
    if mechanism == "CRAM-MD5":
        try:
            nonce = b64decode(challenge, validate=True)
        except binascii.Error:
            raise ValueError("the CRAM-MD5 challenge is not base64") from None
        digest = hmac.new(password.encode(), nonce, hashlib.md5).hexdigest()
        return b64encode(f"{user} {digest}".encode())
    return initial(mechanism, user, password) or b""
