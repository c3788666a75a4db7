"""Certificates: a signed statement of what is on record about a message, to be checked elsewhere and offline.

A certificate is JSON: ``statement`` (who, when, the content's hash, every reply and transcript, events, the
way home of loopback copies), ``key`` (which key signed it), ``signature`` (Ed25519, RFC 8032, over the
statement in one fixed form of writing: sorted keys, no white space, ASCII).
The key pair is one's own: ``<store>.certify.key`` (its owner's alone) and ``<store>.certify.pub``, made on
first use beside a SQLite store, or where this host keeps the files of a PostgreSQL store. Who checks needs
the public key by a way he trusts: the certificate does not bring one.
Promises: one changed byte of a certificate makes the check fail, also one that would not change its meaning.
Fails: `ConfigError` without the package cryptography, or with a key that cannot be used; `Refused`
(``bad-certificate``) for what does not check.
Does not: say that a statement is true; only that whoever has the key made it so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any

from outmail.clock import rfc3339
from outmail.errors import ConfigError, Refused
from outmail.store import Store
from outmail.system.lockfile import write_once

_CONTEXT = b"outmail certificate 1\n"
#: A certificate that is longer is none.
LONGEST = 64 * 1024 * 1024


def paths(store: Store) -> tuple[str, str]:
    """Where the private and the public key are."""
    base = store.spool.removesuffix(".spool")
    return f"{base}.certify.key", f"{base}.certify.pub"


def certificate(store: Store, statement: dict[str, Any]) -> str:
    """The text of a certificate for a statement (what JSON can hold), signed with the store's key."""
    key = _private(*paths(store))
    public = _raw(key.public_key())
    signature = key.sign(_CONTEXT + _written(statement))
    return _form(statement, public, signature)


def check(text: bytes, public_key: bytes) -> dict[str, Any]:
    """The statement of a certificate that the holder of this public key (PEM) signed; raises `Refused`."""
    Ed25519, serialization, InvalidSignature = _library()
    try:
        key = serialization.load_pem_public_key(public_key)
    except ValueError as problem:
        raise _bad(f"the public key cannot be read: {problem}") from None
    if not isinstance(key, Ed25519.Ed25519PublicKey):
        raise _bad("the public key is not one for Ed25519")
    try:
        found = json.loads(text.decode("ascii"))
        signature = base64.b64decode(found["signature"], validate=True)
        statement = found["statement"]
        named = str(found["key"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _bad("this is no certificate of outmail") from None
    if named != fingerprint(_raw(key)):
        raise _bad(f"it was signed with another key ({named[:80]})")
    try:
        key.verify(signature, _CONTEXT + _written(statement))
    except InvalidSignature:
        raise _bad(
            "the signature is wrong: the statement was changed, or is not by the holder of this key"
        ) from None
    if _form(statement, _raw(key), signature).encode("ascii") != text:
        raise _bad("it was changed around the statement")
    return dict(statement)


def fingerprint(raw: bytes) -> str:
    """For people, and to tell keys apart."""
    return f"ed25519:{hashlib.sha256(raw).hexdigest()[:32]}"


def _written(statement: Any) -> bytes:
    return json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _form(statement: Any, public: bytes, signature: bytes) -> str:
    """The only text that these three have."""
    found = {
        "outmail": "certificate",
        "v": 1,
        "statement": statement,
        "key": fingerprint(public),
        "signature": base64.b64encode(signature).decode(),
    }
    return json.dumps(found, sort_keys=True, indent=1, ensure_ascii=True) + "\n"


def _raw(public: Any) -> bytes:
    _, serialization, _ = _library()
    raw: bytes = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return raw


def _library() -> tuple[Any, Any, Any]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError(
            'certificates need the package cryptography: pip install "outmail[certify]"'
        ) from None
    return ed25519, serialization, InvalidSignature


def _private(path: str, public_path: str) -> Any:
    Ed25519, serialization, _ = _library()
    try:
        if not os.path.lexists(path):
            _make(path, Ed25519.Ed25519PrivateKey.generate(), serialization)
        with open(path, "rb") as file:
            if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(
                    f"{path} is not used: others may read it, and sign with it", hint=f"chmod go= {path}"
                )
            key = serialization.load_pem_private_key(file.read(), None)
        if not os.path.exists(public_path):
            encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            write_once(public_path, key.public_key().public_bytes(encoding, form), 0o644)
    except (OSError, ValueError, TypeError) as problem:
        raise ConfigError(
            f"the key of certificates, {path}, cannot be used: "
            f"{getattr(problem, 'strerror', None) or problem}"
        ) from None
    return key


def _make(path: str, key: Any, serialization: Any) -> None:
    words = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    write_once(path, key.private_bytes(*words), 0o600)


def _bad(why: str) -> Refused:
    return Refused(f"the certificate does not hold: {why}", code="bad-certificate")


def statement(
    status: dict[str, Any],
    attempts: list[dict[str, Any]],
    events: list[dict[str, Any]],
    copies: list[dict[str, Any]],
    *,
    host: str,
    now: int,
) -> dict[str, Any]:
    """What is on record, as a certificate says it."""
    return {
        "v": 1,
        "made_at": rfc3339(now),
        "made_on": host,
        "message": status,
        "attempts": attempts,
        "events": events,
        "loopback": copies,
    }
