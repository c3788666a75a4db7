"""Translates the attributes of django-anymail's messages, so that a program that used an e-mail service can
use outmail without a change.

How: ``envelope_sender`` becomes the envelope's sender, ``send_at`` becomes ``at``, and the first of ``tags``
becomes the tag; all tags are put into an X-Tag field. ``metadata`` becomes an X-Metadata field in JSON.
Recipients can read both fields, as with anymail and Amazon SES. Attributes in `IGNORED` are ignored, because
the mail is the same without them. Attributes in `REFUSED` raise, because the text is at the service and not
in the message.
Fails: `outmail.Refused`. Does not: import anymail.

Source: https://anymail.dev/en/stable/sending/anymail_additions/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Any

from django.utils import timezone

from outmail import Refused

IGNORED = ("track_clicks", "track_opens", "esp_extra")
REFUSED = ("template_id", "merge_data", "merge_global_data", "merge_metadata", "merge_headers")


@dataclass(frozen=True, slots=True)
class Words:
    """What anymail's attributes of a message become: the envelope's sender, header fields, arguments of
    ``submit``.
    """

    sender: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)


def words(message: Any) -> Words:
    """Read the attributes of a Django message."""
    for name in REFUSED:
        if getattr(message, name, None):
            raise Refused(
                f"{name} fills in a template that an e-mail service keeps; outmail sends what the message "
                f"holds: render it with Django's templates",
                code="bad-argument",
            )
    tags, metadata, at = (getattr(message, name, None) for name in ("tags", "metadata", "send_at"))
    found: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if tags:
        names = [tags] if isinstance(tags, str) else [str(tag) for tag in tags]
        found["tag"] = names[0]
        headers["X-Tag"] = _folded("tags", ", ".join(names))
    if metadata:
        headers["X-Metadata"] = _folded("metadata", _as_json(metadata))
    if at is not None:
        found["at"] = _moment(at)
    return Words(str(getattr(message, "envelope_sender", None) or ""), headers, found)


def _folded(where: str, value: str) -> str:
    """A field's value, if its lines can be kept within 998 octets (RFC 5322, section 2.1.1)."""
    if value.isascii() and max(map(len, value.split()), default=0) > 900:
        raise Refused(f"{where} holds a word of more than 900 characters", code="bad-argument")
    return value


def _as_json(metadata: Any) -> str:
    if not isinstance(metadata, Mapping):
        raise Refused(f"metadata is a dictionary, not {metadata!r}", code="bad-argument")
    try:
        return json.dumps(dict(metadata), default=str, ensure_ascii=False)
    except (TypeError, ValueError) as problem:
        raise Refused(f"metadata cannot be written as JSON: {problem}", code="bad-argument") from None


def _moment(value: Any) -> datetime:
    """A datetime, a date (its midnight), or seconds since 1970. Without a time zone Django's is used."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(value, UTC)
        except (ValueError, OverflowError, OSError):
            raise Refused(f"send_at={value!r} is no time", code="bad-argument") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise Refused(
            f"send_at is a datetime, a date or seconds since 1970, not {value!r}", code="bad-argument"
        )
    return value if timezone.is_aware(value) else timezone.make_aware(value, timezone.get_current_timezone())
