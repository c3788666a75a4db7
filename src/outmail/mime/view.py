"""What a message shows its reader: text, HTML and attachments, taken out of the stored bytes, for people who
look after the queue.

Promises: any bytes give a view; what cannot be decoded is shown with replacement characters; `sealed` HTML
loads nothing from elsewhere, and in a sandboxed frame runs nothing. Fails: never; a message that is too large
or too deeply nested says so instead. Does not: change the message, or judge it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message

from outmail.mime import splice

#: Bytes of a message that is taken apart, and of images that come along in its HTML.
MOST = 20_000_000
MOST_IMAGES = 5_000_000
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"
_HEAD = (
    f'<!doctype html><meta charset="utf-8"><base target="_blank"><meta http-equiv="Content-Security-Policy" '
    f'content="{_POLICY}"><meta name="referrer" content="no-referrer">'
)


@dataclass(frozen=True, slots=True)
class Part:
    """An attachment; ``size`` in bytes after decoding."""

    name: str
    type: str
    size: int


@dataclass(frozen=True, slots=True)
class View:
    """``text`` and ``html`` are "" where the message has none; lines end with LF. Images that came along
    stand in ``html`` themselves.
    """

    text: str = ""
    html: str = ""
    attachments: tuple[Part, ...] = ()


def view(content: bytes) -> View:
    """The first text and the first HTML, and whatever else there is as attachments."""
    if len(content) > MOST:
        return View(f"(a message of {len(content):,} bytes is not shown)")
    try:
        return _view(message_from_bytes(content))
    except RecursionError:
        return View("(this message is nested too deeply to be shown)")


def _view(message: Message) -> View:
    bodies: dict[str, str] = {}
    images: dict[str, str] = {}
    attachments: list[Part] = []
    room = MOST_IMAGES
    for part in message.walk():
        if part.is_multipart():
            continue
        kind = part.get_content_type()
        data = part.get_payload(decode=True)
        raw = data if isinstance(data, bytes) else b""
        if kind in ("text/plain", "text/html") and kind not in bodies and not part.get_filename():
            bodies[kind] = _decoded(raw, part).replace("\r\n", "\n")
            continue
        cid = str(part.get("Content-ID", "")).strip().strip("<>")
        if cid and kind in _IMAGES and len(raw) <= room:
            room -= len(raw)
            images[cid] = f"data:{kind};base64,{b64encode(raw).decode()}"
        attachments.append(Part(part.get_filename() or "(without a name)", kind, len(raw)))
    html = re.sub(
        r"\bcid:([^\"'\s)>]+)", lambda found: images.get(found[1], found[0]), bodies.get("text/html", "")
    )
    return View(bodies.get("text/plain", ""), html, tuple(attachments))


def _decoded(raw: bytes, part: Message) -> str:
    try:
        return raw.decode(part.get_content_charset("utf-8"), "replace")
    except (LookupError, ValueError):  # no charset of that name
        return raw.decode("latin-1")


_SHOWN = ("From", "To", "Cc", "Date", "Subject")


def shown_fields(content: bytes) -> list[tuple[str, str]]:
    """(name, value) of the fields that mail programs show, in this order."""
    found: dict[str, str] = {}
    for name, field in splice.fields(content):
        if name.title() in _SHOWN:
            found.setdefault(name.title(), splice.readable(field.partition(b":")[2].strip()))
    return [(name, found[name]) for name in _SHOWN if name in found]


def sealed(html: str) -> str:
    """A document for ``<iframe sandbox srcdoc=…>``: no network, no script, and links lead nowhere."""
    return _HEAD + html
