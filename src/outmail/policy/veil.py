"""The passwords that this process knows, masked literally wherever they stand: in dialogues, logs, reports
and the database.

Promises: never raises; nothing is looked for while nothing is known. Does not: guess what may be a secret
(`secrets` does).
"""

from __future__ import annotations

import re
from base64 import b64encode
from json import dumps
from urllib.parse import quote, urlsplit

MASK = "****"
#: Forms of secrets that one veil keeps; a password has up to six.
MOST = 2000


class Veil:
    """Literal secrets, masked wherever they stand, also in base64, in URLs and in JSON.

    A short one is masked only as a word of its own: a password ``mail`` may not black out every address.
    The newest `MOST` forms are kept: a program that goes through many passwords does not grow by them.
    """

    def __init__(self, *secrets: str) -> None:
        #: form → the same in bytes; the oldest first.
        self._forms: dict[str, bytes] = {}
        self.add(*secrets)

    def add(self, *secrets: str) -> None:
        """Mask these from now on."""
        self._add({form for secret in secrets if secret for form in _forms(secret)})

    def add_said(self, response: bytes) -> None:
        """Mask what was said in a dialogue, as it was said."""
        self._add({response.decode("utf-8", "surrogateescape")} if response else set())

    def _add(self, forms: set[str]) -> None:
        kept = {form: needle for form, needle in self._forms.items() if form not in forms}
        kept |= {form: form.encode("utf-8", "surrogateescape") for form in forms}
        for oldest in list(kept)[: len(kept) - MOST] if len(kept) > MOST else ():
            del kept[oldest]
        self._forms = kept  # another thread may be reading the old one

    def add_login(self, user: str, password: str) -> None:
        """A password, and the way AUTH PLAIN says it with its user."""
        if password:
            self._add({*_forms(password), _base64(f"\0{user}\0{password}"), _base64(f"{user}:{password}")})

    def add_url(self, url: str) -> None:
        """The password of a URL, if it has one."""
        try:
            self.add(urlsplit(url).password or "")
        except ValueError:
            pass  # no URL, so it holds nothing that would be used as one

    def over(self, text: str) -> str:
        found = [form for form in self._forms if form in text]
        if not found:
            return text
        found.sort(key=len, reverse=True)  # the longest first, lest a part of it be masked alone
        return re.sub("|".join(map(_literal, found)), MASK, text)

    def over_bytes(self, line: bytes) -> bytes:
        """The same for a line of a dialogue; a line that hides nothing comes back as it is."""
        if not any(map(line.__contains__, self._forms.values())):
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


#: The passwords of this process: those of its configuration, of relays given in code, of store URLs.
known = Veil()
