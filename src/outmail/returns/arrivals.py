"""Mail that arrives at the loopback address: a copy of ours, or something else, which is only counted.

Promises: a copy is believed because of its token alone (`policy.loopback.read`); its origin and its body do
not matter. Tokens that are forged, foreign, expired, bounced or repeated are counted and change nothing else.
Only the header is read. No mail makes this raise.
Fails: `StoreError` when the result cannot be stored: then the mail should be offered again.
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

#: How many Received hops are kept; the newest is the last.
KEPT = 20


class Arrivals:
    """The arrivals of one store, with the key that signs its tokens."""

    def __init__(self, store: Store, settings: Loopback, key: bytes, clock: Clock | None = None) -> None:
        self.settings = settings
        self._store = store
        self._key = key
        self._clock = clock or Clock()

    def takes(self, address: str) -> bool:
        """True when mail for this address is for us. Without a token only if copies or canaries go to the
        address.
        """
        bare = self.settings.mode == "message-id" or self.settings.canary
        return self.settings.is_ours(address) and bool(bare or "+" in address.rpartition("@")[0])

    def take(self, content: bytes, recipients: Sequence[str] = (), sender: str | None = None) -> str:
        """Record one mail. Returns what it was (`store.verbs.loopback.WORDS`); it is on disk when this
        returns.
        """
        return str(self._store.run(self.verb(content, recipients, sender)))

    def verb(self, content: bytes, recipients: Sequence[str] = (), sender: str | None = None) -> Verb[Any]:
        """`take`, for callers that commit by themselves. ``recipients``: the envelope's, if known.
        ``sender``: the envelope's, "" for the null sender, None if unknown.
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
        """The first valid token, or the word under which the mail is counted."""
        for word in words:
            token = read(self._key, word)
            if token is not None:
                return ("expired", None) if token.expired(now) else ("home", token)
        return "forged", None

    def _counted(self, word: str) -> Verb[str]:
        yield from self._store.verbs.loopback_count(word)
        return word
