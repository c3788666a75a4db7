"""Envelope addresses: a strict parser for the mailboxes of RFC 5321 §4.1.2, with the UTF-8 of RFC 6531.

Promises: an accepted address cannot end a command or smuggle another one in. Control characters, bare spaces,
brackets and everything that `parseaddr` tolerates (CVE-2023-27043) are refused with a sentence. Domains are
returned as A-labels (IDNA 2008). Only a local part outside ASCII needs SMTPUTF8.
Fails: `AddressError`, a ValueError. Does not: accept comments, source routes (``@a,@b:``) or folding; know
which addresses exist.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]"
_COMMON = re.compile(
    rf"({_ATEXT}+(?:\.{_ATEXT}+)*)@([A-Za-z0-9](?:[A-Za-z0-9\-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9\-]*[A-Za-z0-9])?)*)"
)
_DOT_STRING = re.compile(rf"(?:{_ATEXT}|[^\x00-\x7f])+(?:\.(?:{_ATEXT}|[^\x00-\x7f])+)*")
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~]|[^\x00-\x7f]|\\[ -~])*"')
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?")
_LITERAL = re.compile(r"\[(?:(IPv6:)([0-9a-f:.]+)|([0-9.]+))\]", re.ASCII | re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")

MAX_DOMAIN = 255
#: Octets of a whole address. RFC 5321 §4.5.3.1.1 requires support for local parts of 64 octets and asks for
#: as few limits as possible. VERP, SRS and reply tokens are longer, so only the limit of the path is applied.
MAX_PATH = 254


class AddressError(ValueError):
    """This text is not an address."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A parsed address: ``local`` as written, ``domain`` as A-labels (or an address literal)."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"


@lru_cache(4096)
def parse_mailbox(text: str) -> Mailbox:
    """``local@domain`` → Mailbox. Cached, because programs write to the same people."""
    if _CONTROL.search(text):
        raise AddressError(f"{printable(text)} contains a control character")
    common = _COMMON.fullmatch(text)
    if common and len(text) <= MAX_PATH and len(max(common[2].split("."), key=len)) < 64:
        return Mailbox(common[1], _domain(common[2], text) if "xn--" in text.lower() else common[2])
    local, domain = _split(text)
    mailbox = Mailbox(local, _domain(domain, text))
    if len(str(mailbox).encode()) > MAX_PATH:
        raise AddressError(f"{printable(text)} is longer than {MAX_PATH} octets")
    return mailbox


def qualified(text: str, origin: str) -> str:
    """``root`` → ``root@origin``. Text with an @, and text that is no local part, stays as it is, and so does
    everything where ``origin`` is "".
    """
    if "@" in text or not origin or not _DOT_STRING.fullmatch(text):
        return text
    return f"{text}@{origin}"


def printable(text: str) -> str:
    """Any text, made safe for one line of an error or a log."""
    return repr(text if len(text) <= 120 else text[:117] + "…")


def _split(text: str) -> tuple[str, str]:
    if text.startswith('"'):
        quoted = _QUOTED.match(text)
        if not quoted or text[quoted.end() : quoted.end() + 1] != "@":
            raise AddressError(f"{printable(text)}: the quoted part before the @ is malformed")
        return quoted[0], text[quoted.end() + 1 :]
    local, at, domain = text.rpartition("@")
    if not at:
        raise AddressError(f"{printable(text)} has no @: write name@domain")
    if not _DOT_STRING.fullmatch(local):
        raise AddressError(f"{printable(text)}: the part before the @ is malformed")
    return local, domain


def _domain(domain: str, text: str) -> str:
    if domain.startswith("["):
        return _literal(domain, text)
    plain = domain.removesuffix(".")
    if not plain.isascii() or "xn--" in plain.lower():
        plain = _alabels(plain, text)
    if not plain or len(plain) > MAX_DOMAIN or not all(_LABEL.fullmatch(label) for label in plain.split(".")):
        raise AddressError(f"{printable(text)}: the domain is malformed")
    return plain


def _alabels(domain: str, text: str) -> str:
    import idna

    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as problem:
        raise AddressError(f"{printable(text)}: the domain is not valid IDNA ({problem})") from None


def _literal(domain: str, text: str) -> str:
    """An address literal (RFC 5321 §4.1.3). Its characters are checked first, because `ipaddress` accepts a
    zone id with any text in it.
    """
    match = _LITERAL.fullmatch(domain)
    try:
        if match is None:
            raise ValueError
        return (
            f"[IPv6:{ipaddress.IPv6Address(match[2])}]"
            if match[1]
            else f"[{ipaddress.IPv4Address(match[3])}]"
        )
    except ValueError:
        raise AddressError(f"{printable(text)}: the address literal is malformed") from None


def valid_notify(text: str) -> bool:
    """NOTIFY of RFC 3461 §4.1: "never", or some of success, failure and delay, each once."""
    words = text.lower().split(",")
    return words == ["never"] or (
        len(set(words)) == len(words) and set(words) <= {"success", "failure", "delay"}
    )


_ORIGINAL = re.compile(r"[A-Za-z0-9-]{1,40};(?:[!-*,-<>-~]|\+[0-9A-F]{2}){1,500}", re.ASCII)


def valid_original(text: str) -> bool:
    """ORCPT of RFC 3461 §4.2: an address type and an address as xtext."""
    return _ORIGINAL.fullmatch(text) is not None


def valid_key(text: str) -> bool:
    """True for text without control characters, which may be used in a header, a tag or a key."""
    return _CONTROL.search(text) is None
