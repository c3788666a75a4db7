"""The passwords that this process knows. They are masked wherever they appear literally: in dialogues, logs,
reports and the database.

Promises: never raises; costs nothing while no password is known. Does not: guess what may be a secret
(`secrets` does).
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import OrderedDict
from contextlib import suppress
from json import dumps
from urllib.parse import quote, urlsplit

MASK = "****"
#: How many forms of secrets one veil keeps; a password has up to six.
MOST = 2000


class Veil:
    """Literal secrets, masked wherever they appear, also in base64, in URLs and in JSON.

    A short secret is masked only as a whole word: a password ``mail`` must not black out every address.
    At most `MOST` forms are kept, so that a program which uses many passwords does not grow by them. The
    oldest one is dropped first; ``lasting`` ones (the configuration's) last.
    Threads may add and mask at the same time: each step on the dictionary is one atomic operation.
    """

    def __init__(self, *secrets: str) -> None:
        #: form → the same as bytes; the oldest first.
        self._forms: OrderedDict[str, bytes] = OrderedDict()
        self._lasting: set[str] = set()
        self.add(*secrets)

    def add(self, *secrets: str, lasting: bool = False) -> None:
        """Mask these from now on."""
        self._add({form for secret in secrets if secret for form in _forms(secret)}, lasting)

    def add_said(self, response: bytes) -> None:
        """Mask what was said in a dialogue, in the form in which it was said."""
        self._add({response.decode("utf-8", "surrogateescape")} if response else set())

    def _add(self, forms: set[str], lasting: bool = False) -> None:
        if lasting:
            self._lasting |= forms
        for form in forms:
            self._forms[form] = form.encode("utf-8", "surrogateescape")
            with suppress(KeyError):  # another thread was faster
                self._forms.move_to_end(form)
        while len(self._forms) > MOST:
            kept = list(self._forms)
            oldest = next((form for form in kept if form not in self._lasting), kept[0])
            self._forms.pop(oldest, None)
            self._lasting.discard(oldest)

    def add_login(self, user: str, password: str, *, lasting: bool = False) -> None:
        """Mask a password, also as AUTH PLAIN sends it with its user."""
        if password:
            said = {_base64(f"\0{user}\0{password}"), _base64(f"{user}:{password}")}
            self._add(_forms(password) | said, lasting)

    def add_url(self, url: str, *, lasting: bool = False) -> None:
        """The password of a URL, if it has one."""
        try:
            self.add(urlsplit(url).password or "", lasting=lasting)
        except ValueError:
            pass  # no URL, so nothing in it is used as a password

    def over(self, text: str) -> str:
        found = [form for form in list(self._forms) if form in text]
        if not found:
            return text
        # the longest first, because a part of it could otherwise be masked alone
        found.sort(key=len, reverse=True)
        return re.sub("|".join(map(_literal, found)), MASK, text)

    def over_bytes(self, line: bytes) -> bytes:
        """The same for a line of a dialogue. A line without secrets is returned as it is."""
        if not any(map(line.__contains__, tuple(self._forms.values()))):
            return line
        return self.over(line.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _base64(text: str) -> str:
    return b64encode(text.encode("utf-8", "surrogateescape")).decode()


def _forms(secret: str) -> set[str]:
    return {
        secret,
        _base64(secret),
        quote(secret.encode("utf-8", "surrogateescape"), safe=""),
        dumps(secret)[1:-1],
    }


def _literal(form: str) -> str:
    escaped = re.escape(form)
    return escaped if len(form) >= 8 else rf"(?<![\w.@-]){escaped}(?![\w@-])"


#: The passwords of this process: of its configuration, of relays given in code, of store URLs.
known = Veil()
