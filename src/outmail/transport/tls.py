"""TLS contexts for relays: verified by default, or with a certificate authority of your own, a pinned
fingerprint, or (on explicit request) no verification.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import Any

from outmail.policy.route import Relay
from outmail.transport import certificate

#: OpenSSL's reasons when the other side answers a handshake in clear text.
NOT_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")


class Untrusted(Exception):
    """The relay's certificate is not the pinned one."""


def context(relay: Relay) -> ssl.SSLContext:
    """A client context for the relay. Raises OSError or ssl.SSLError when its CA file cannot be used."""
    made = ssl.create_default_context(cafile=relay.ca or None)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if relay.fingerprint or not relay.verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def check_pin(relay: Relay, ssl_object: Any) -> None:
    """With a pinned fingerprint, check the certificate itself. Raises `Untrusted`."""
    if not relay.fingerprint:
        return
    seen = hashlib.sha256(ssl_object.getpeercert(binary_form=True) or b"").hexdigest()
    if seen != relay.fingerprint:
        raise Untrusted(f"the certificate's SHA-256 is {seen}, not the pinned one")


def described(ssl_object: Any) -> str:
    """The version and the certificate of an encrypted line, for people."""
    seen = certificate.read(ssl_object.getpeercert(binary_form=True) or b"")
    return f"{ssl_object.version()}, {seen}"
