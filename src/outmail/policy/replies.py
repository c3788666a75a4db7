"""A server's reply in plain words: what it means, whose text it is, and what to do.

Promises: pure, and works offline. `explained` always answers for a code that RFC 5321 or IANA's registry
knows, and for an unknown one says what its digits say. A text that is known tells more than a code, an
enhanced code more than a basic one.
Does not: know what a failure means for a message (`policy.retry` decides that), or ask anybody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from outmail.model import Reply
from outmail.policy.reply_codes import BASIC, CLASSES, ENHANCED, SUBJECTS
from outmail.policy.reply_texts import HERE, SERVERS, Known

_CODE = re.compile(r"([2-5]\d\d)?[ -]*([245]\.\d{1,3}\.\d{1,3})?[ -]*(.*)", re.DOTALL)
#: What the first digit of a basic code says (RFC 5321 §4.2.1).
_FIRST = {
    2: "The server did what was asked.",
    3: "The server waits for more.",
    4: "The server refuses for now; another try may succeed.",
    5: "The server refuses for good.",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """``cause`` and ``remedy`` are sentences (``remedy`` may be ""); ``who``: whose text it is, or ""."""

    cause: str
    remedy: str = ""
    who: str = ""


def parsed(text: str) -> Reply:
    """What somebody types or pastes: ``550``, ``5.1.1``, ``550 5.1.1 user unknown``. Code 0 where none is
    there.
    """
    match = _CODE.fullmatch(" ".join(text.split()))
    assert match is not None  # every part may be missing
    return Reply(int(match[1] or 0), match[3], match[2] or "")


def explained(reply: Reply) -> Explanation | None:
    """What a reply means; None for one that holds nothing that is known."""
    known = _known(reply)
    if known is not None:
        return Explanation(_sentence(known.cause), known.remedy, known.who)
    if reply.enhanced.endswith(".0.0"):  # it says nothing that the code does not say better
        return _by_code(reply.code) or _by_enhanced(reply.enhanced)
    return _by_enhanced(reply.enhanced) or _by_code(reply.code)


def trouble(text: str) -> tuple[str, str] | None:
    """(what is the matter with a next hop, as the end of "…: ", what to do) of the words that stand where no
    server answered; None for what is not known.
    """
    found = _told(HERE, text)
    return (found.cause, found.remedy) if found else None


def _known(reply: Reply) -> Known | None:
    if not reply.text:
        return None
    return _told(SERVERS if reply.code else HERE, str(reply))


def _told(texts: Sequence[Known], text: str) -> Known | None:
    """The first that is found, with the groups of its pattern written into its cause."""
    for known in texts:
        if match := known.pattern.search(text):
            return known._replace(cause=match.expand(known.cause))
    return None


def _by_enhanced(code: str) -> Explanation | None:
    if not code:
        return None
    first, _, rest = code.partition(".")
    if rest in ENHANCED:
        return Explanation(*ENHANCED[rest])
    subject = SUBJECTS.get(rest.partition(".")[0])
    return Explanation(f"It is about {subject}. {CLASSES[first]}") if subject else None


def _by_code(code: int) -> Explanation | None:
    if code in BASIC:
        return Explanation(*BASIC[code])
    return Explanation(_FIRST[code // 100]) if code // 100 in _FIRST else None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
