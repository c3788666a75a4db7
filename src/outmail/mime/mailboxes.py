"""Where addresses stand in an address list of a header field (RFC 5322 §3.4, with the obsolete forms).

Promises: quoted strings, comments, display names, encoded words, groups and source routes are told from
addresses by their syntax, never guessed; time is linear, whatever the nesting; no address is lost: what
cannot be one comes back as it stands, and whoever checks it says so. Neither `re` nor the email package is
loaded: `sendmail` starts in milliseconds.
Fails: never. Does not: check an address (`smtp.syntax` does), or read a whole header.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from collections.abc import Callable

#: (offset of the first character, offset behind the last one, address)
Span = tuple[int, int, str]

_SPACE = " \t\r\n"


def spans(value: str) -> list[Span]:
    """The addresses of a field's value, folded or not, and where each stands.

    >>> [address for _, _, address in spans('"Doe, J." <j@x.test>, root (me), team: a@x.test;')]
    ['j@x.test', 'root', 'a@x.test']
    """
    found: list[Span] = []
    at, first, last = 0, -1, -1  # the item: from its first character to behind its last one
    angle: Span | None = None
    end = len(value)
    while at < end:
        letter = value[at]
        if letter == '"':
            after = _quoted(value, at)
        elif letter == "(":
            at = _comment(value, at)
            continue
        elif letter == "[":
            after = _closed(value, at, "]")
        elif letter == "<":
            after = _closed(value, at, ">")
            angle = _inside(value, at + 1, after - 1)
        else:
            if letter in ",;":
                _item(found, value, first, last, angle)
                first, last, angle = -1, -1, None
            elif letter == ":":  # what came before it is the name of a group
                first, last, angle = -1, -1, None
            elif letter not in _SPACE:
                if first < 0:
                    first = at
                last = at + 1
            at += 2 if letter == "\\" else 1
            continue
        if first < 0:
            first = at
        last = at = after
    _item(found, value, first, last, angle)
    return found


def addresses(value: str) -> list[str]:
    """The addresses alone; an empty one (``<>``) is none."""
    return [address for _, _, address in spans(value) if address]


def rewritten(value: str, change: Callable[[str], str]) -> str:
    """The value with another address where ``change`` answers another one; all else stays."""
    for start, end, address in reversed(spans(value)):
        if address and (other := change(address)) != address:
            value = value[:start] + other + value[end:]
    return value


def _item(found: list[Span], value: str, first: int, last: int, angle: Span | None) -> None:
    if angle is not None:
        found.append(angle)
    elif first >= 0:
        found.append((first, min(last, len(value)), value[first:last]))


def _inside(value: str, start: int, end: int) -> Span:
    """What angle brackets hold, without white space and source route (``@a,@b:``)."""
    while start < end and value[start] in _SPACE:
        start += 1
    while end > start and value[end - 1] in _SPACE:
        end -= 1
    if value[start : start + 1] == "@" and (colon := value.find(":", start, end)) >= 0:
        start = colon + 1
    return start, end, value[start:end]


def _quoted(value: str, at: int) -> int:
    """Behind the quoted string that begins here, or the end."""
    at += 1
    while at < len(value):
        if value[at] == "\\":
            at += 1
        elif value[at] == '"':
            return at + 1
        at += 1
    return len(value)


def _closed(value: str, at: int, close: str) -> int:
    """Behind the bracket that closes this one; a quoted string may hold one. Without one: as if it stood at
    the end.
    """
    at += 1
    while at < len(value):
        if value[at] == close:
            return at + 1
        at = _quoted(value, at) if value[at] == '"' else at + 1
    return len(value) + 1


def _comment(value: str, at: int) -> int:
    """Behind the comment that begins here, however deep comments are nested in it."""
    depth = 0
    while at < len(value):
        letter = value[at]
        if letter == "\\":
            at += 1
        elif letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return len(value)
