"""What a server's certificate says of itself, for people: names, issuer, from when until when.

Why not `SSLSocket.getpeercert`: it tells nothing of a certificate that was not verified, and that is the one
that needs words. The form is DER (X.690); the fields are those of RFC 5280 §4.1.
Promises: pure; what cannot be read is left out. Fails: never. Does not: decide about trust, as OpenSSL does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

_SEQUENCE, _SET, _OID = 0x30, 0x31, 0x06
_VERSION, _EXTENSIONS, _DNS_NAME = 0xA0, 0xA3, 0x82
_UTC_TIME = 0x17
_COMMON_NAME, _ORGANISATION, _ALTERNATIVES = b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x1d\x11"
#: Characters of a name that are shown; whoever made the certificate chose the names.
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Certificate:
    """``begins`` and ``ends`` are aware, or None; ``issuer`` is a name for people."""

    names: tuple[str, ...] = ()
    issuer: str = ""
    begins: datetime | None = None
    ends: datetime | None = None

    def __str__(self) -> str:
        """As in "certificate for mail.example.org by Example CA, valid until 3 Feb 2027"."""
        ends = f", valid until {day(self.ends)}" if self.ends else ""
        return f"certificate {self.for_whom}{self.by_whom}{ends}"

    @property
    def for_whom(self) -> str:
        """As in "for a.example.org, b.example.org, c.example.org and 2 more"."""
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        return f"for {', '.join(map(_short, self.names[:3])) or 'nobody'}{more}"

    @property
    def by_whom(self) -> str:
        """As in " by Example CA", or ""."""
        return f" by {_short(self.issuer)}" if self.issuer else ""


def distrusted(said: str, seen: Certificate, now: datetime) -> str:
    """Why OpenSSL does not trust a server (``said``), with what the server's certificate says of itself:
    "certificate has expired (valid until 24 Nov 2025, for mail.example.org by Example CA)".

    `policy.reply_texts` reads this text. An expired certificate need not be the server's own: each that
    vouches for it has dates, too.
    """
    said = said.rstrip(".")
    if seen.begins is None or seen.ends is None:
        return said
    if "has expired" in said and seen.ends > now:
        said += ", though not the server's own"
    begins = f"from {day(seen.begins)} " if seen.begins > now else ""
    return f"{said} (valid {begins}until {day(seen.ends)}, {seen.for_whom}{seen.by_whom})"


def day(moment: datetime) -> str:
    """As in 3 Feb 2027."""
    return f"{moment.day} {moment:%b %Y}"


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else name[: _SHOWN - 1] + "…"


def read(der: bytes) -> Certificate:
    """What the certificate in ``der`` says; empty where it cannot be read."""
    try:
        return _read(der)
    except (ValueError, IndexError, StopIteration):
        return Certificate()


def _read(der: bytes) -> Certificate:
    body = next(_inside(next(_inside(der))[1]))[1]
    fields = [field for field in _inside(body) if field[0] != _VERSION]
    _, _, issuer, validity, subject = (content for _, content in fields[:5])
    extensions = next((content for tag, content in fields if tag == _EXTENSIONS), b"")
    names = _alternatives(extensions) or _named(subject, _COMMON_NAME)
    begins, ends = (_time(tag, content) for tag, content in _inside(validity))
    by = _named(issuer, _ORGANISATION) + _named(issuer, _COMMON_NAME)
    return Certificate(tuple(names), " ".join(dict.fromkeys(by)), begins, ends)


def _inside(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of each element that ``data`` holds."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise ValueError("cut short")
        yield tag, data[at : at + length]
        at += length


def _named(name: bytes, wanted: bytes) -> list[str]:
    """The attributes of one kind in a distinguished name."""
    found = []
    for _, several in _inside(name):
        for _, pair in _inside(several):
            (_, kind), (_, value) = _inside(pair)
            if kind == wanted:
                found.append(value.decode("utf-8", "replace"))
    return found


def _alternatives(extensions: bytes) -> list[str]:
    """The host names of subjectAltName."""
    for _, extension in _inside(next(_inside(extensions))[1]) if extensions else ():
        parts = list(_inside(extension))
        if parts[0] == (_OID, _ALTERNATIVES):
            names = next(_inside(parts[-1][1]))[1]
            return [value.decode("ascii", "replace") for tag, value in _inside(names) if tag == _DNS_NAME]
    return []


def _time(tag: int, content: bytes) -> datetime:
    """UTCTime has two digits for the year, 50 and above for 19xx (RFC 5280 §4.1.2.5.1)."""
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
