"""What comes to the loopback address: a copy of ours, or something else that is only counted.

Promises: a copy is believed by its token alone (`policy.loopback.read`); where the mail came from and what it
says in its body does not matter. Forged, foreign, expired and bounced tokens, and second ones, are counted
and change nothing else. Only the header block is read; whatever the mail is, nothing raises for it.
Fails: `StoreError` when the answer cannot be stored: then the mail should come again.
Does not: fetch mail (`returns.watching`, `returns.imap`, a listener, or a pipe does).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from outmail.clock import Clock
from outmail.mime import trace
from outmail.policy.loopback import Loopback, Token, read
from outmail.store import Store, Verb

#: Hops that are kept, newest last.
KEPT = 20


class Arrivals:
    """One store's, with the key that signs its tokens."""

    def __init__(self, store: Store, settings: Loopback, key: bytes, clock: Clock | None = None) -> None:
        self.settings = settings
        self._store = store
        self._key = key
        self._clock = clock or Clock()

    def takes(self, address: str) -> bool:
        """Is mail for this address ours to take? Without a token only where copies or canaries go there."""
        bare = self.settings.mode == "message-id" or self.settings.canary
        return self.settings.is_ours(address) and bool(bare or "+" in address.rpartition("@")[0])

    def take(self, content: bytes, recipients: Sequence[str] = (), sender: str | None = None) -> str:
        """Record one mail; what it was (`store.verbs.loopback.WORDS`). It is on disk when this returns."""
        return str(self._store.run(self.verb(content, recipients, sender)))

    def verb(self, content: bytes, recipients: Sequence[str] = (), sender: str | None = None) -> Verb[Any]:
        """`take` for whoever commits by himself. ``recipients``: for whom it came, where that is known beside
        its header; ``sender``: its envelope's, "" for the null sender, None where it is not known.
        """
        found = trace.read(content)
        now = self._clock.now()
        hops = json.dumps([[hop.name, hop.at] for hop in found.hops[-KEPT:]])
        bounce = found.bounce or sender == ""
        words = self.settings.words([*recipients, *found.texts])
        if not words:
            mark = self.settings.mode == "message-id"
            return self._store.verbs.came_home_by_id(found.message_id, now, hops, bounce, mark=mark)
        word, token = self._judged(words, now)
        if token is None:
            return self._counted(word)
        return self._store.verbs.came_home(token, now, hops, found.message_id, bounce)

    def _judged(self, words: Sequence[str], now: int) -> tuple[str, Token | None]:
        """The first token that is believed, or what the mail is counted as."""
        for word in words:
            token = read(self._key, word)
            if token is not None:
                return ("expired", None) if token.expired(now) else ("home", token)
        return "forged", None

    def _counted(self, word: str) -> Verb[str]:
        yield from self._store.verbs.loopback_count(word)
        return word
