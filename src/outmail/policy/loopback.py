"""The loopback copy: for which mail it is sent, to what address, and what its token says when it comes home.

A token is a word of 48 letters and digits (base32 in lower case) in the local part of the copy's address:
``loop+TOKEN@example.org``. It names one transaction of one store: message, engine, lease, the transaction's
number in that delivery, and the minute in which it was made.
Promises: without the key nobody makes a token that is believed (HMAC-SHA256, 88 bits, compared in constant
time), and nobody reads one: what it says is enciphered with a key stream that depends on its signature, as in
SIV (RFC 5297's idea). Upper and lower case mean the same, because relays change it. Pure: key and time are
passed in.
Fails: `read` answers None for what is no token of this key; `parse_sample` raises ValueError with a sentence.
Does not: keep the key (`returns.key`), or know what became of a copy.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple

from outmail.clock import DAY, MINUTE

#: How long (ms) a token is believed after it was made.
LIFE = 7 * DAY
#: Octets of a local part (RFC 5321 §4.5.3.1.1), of a token, and what is left for the name before the plus.
LOCAL_PART = 64
LENGTH = 48
LONGEST_NAME = LOCAL_PART - LENGTH - 1
#: So many words that look like tokens are tried in one message.
MOST_TRIED = 16
#: The tag of canaries: they always have a copy.
CANARY = "outmail-canary"
#: Added to the number of a transaction in which each recipient has an answer of its own (LMTP): the copy says
#: nothing about the others.
APART = 0x80

_SIGNED, _SAID = 11, 19
#: base32 in lower case, two letters at a time: a third faster than `base64.b32encode`.
_PAIRS = ["".join(pair) for pair in product("abcdefghijklmnopqrstuvwxyz234567", repeat=2)]
_SHIFTS = range(8 * (_SIGNED + _SAID) - 10, -1, -10)
#: Minutes are counted from 2020 on in 24 bits: until 2051.
_MINUTES, _FIRST_MINUTE = 1 << 24, 26_297_280


class Token(NamedTuple):
    """One transaction: the store's number of the message, who leased it and as what, and which transaction of
    that delivery it was (from 1; with `APART` for LMTP). ``minute``: when, in minutes since 1970.
    """

    message: int
    owner: int
    lease: int
    part: int
    minute: int

    def expired(self, now: int) -> bool:
        """True when it is too old at ``now`` (ms), or comes from the future of a clock that was wrong."""
        age = now - self.minute * MINUTE
        return age > LIFE or age < -DAY


def mint(key: bytes, token: Token) -> str:
    """The word for a transaction."""
    said = (
        token.message << 96
        | (token.owner & 0xFFFFFFFF) << 64
        | (token.lease & 0xFFFFFFFF) << 32
        | token.part << 24
        | (token.minute - _FIRST_MINUTE) % _MINUTES
    ).to_bytes(_SAID, "big")
    signature = _signature(key, said)
    number = int.from_bytes(signature + _enciphered(key, signature, said), "big")
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def read(key: bytes, word: str) -> Token | None:
    """What a token of this key says; None for anything else."""
    if len(word) != LENGTH or not word.isascii():
        return None
    try:
        raw = base64.b32decode(word.upper())
    except ValueError:
        return None
    signature = raw[:_SIGNED]
    said = _enciphered(key, signature, raw[_SIGNED:])
    if not hmac.compare_digest(signature, _signature(key, said)):
        return None
    number = int.from_bytes(said, "big")
    return Token(
        number >> 96,
        number >> 64 & 0xFFFFFFFF,
        number >> 32 & 0xFFFFFFFF,
        number >> 24 & 0xFF,
        number % _MINUTES + _FIRST_MINUTE,
    )


def _signature(key: bytes, said: bytes) -> bytes:
    found = _begun(key, b"outmail loopback: signature").copy()
    found.update(said)
    return found.digest()[:_SIGNED]


def _enciphered(key: bytes, signature: bytes, said: bytes) -> bytes:
    """The same turns it back."""
    stream = _begun(key, b"outmail loopback: key stream").copy()
    stream.update(signature)
    number = int.from_bytes(stream.digest()[:_SAID], "big") ^ int.from_bytes(said, "big")
    return number.to_bytes(_SAID, "big")


@lru_cache(8)
def _begun(key: bytes, purpose: bytes) -> hmac.HMAC:
    """An HMAC that has read its key: copies of it are cheaper than new ones."""
    return hmac.new(key, purpose, "sha256")


@dataclass(frozen=True, slots=True)
class Loopback:
    """``[loopback]``. ``address`` "" means that no copies are sent. ``share``: of all mail, 0 to 1; ``tag``
    selects by tag instead. ``canary`` and ``within`` are ms, 0 for no canary. ``renames``: selected mail gets
    a Message-ID of outmail's own at acceptance.
    """

    address: str = ""
    mode: Literal["token", "message-id"] = "token"
    share: float = 1.0
    tag: str = ""
    canary: int = 0
    within: int = 10 * MINUTE
    renames: bool = False

    @property
    def name(self) -> str:
        return self.address.rpartition("@")[0]

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]

    def wants(self, id: str, tag: str | None) -> bool:
        """Has this message a copy? The same answer for each attempt."""
        if tag == CANARY:
            return True
        if self.tag:
            return tag == self.tag
        return self.share >= 1 or zlib.crc32(id.encode()) < self.share * (1 << 32)

    def to(self, word: str) -> str:
        """The address of the copy with this token."""
        return f"{self.name}+{word}@{self.domain}"

    def is_ours(self, address: str) -> bool:
        """True for the loopback address, with or without a token."""
        local, _, domain = address.rpartition("@")
        return domain.lower() == self.domain.lower() and (
            local.partition("+")[0].lower() == self.name.lower() or local.lower() == self.name.lower()
        )

    def words(self, texts: Sequence[str]) -> list[str]:
        """What looks like a token for our address in these texts, at most `MOST_TRIED`, each once."""
        found: dict[str, None] = {}
        pattern = _pattern(self.name, self.domain)
        for text in texts:
            for match in pattern.finditer(text):
                found[match[1].lower()] = None
                if len(found) == MOST_TRIED:
                    return list(found)
        return list(found)


def _pattern(name: str, domain: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?<![^\s<>:,;]){re.escape(name)}\+([a-z2-7]{{{LENGTH}}})@{re.escape(domain)}(?![\w.-])",
        re.IGNORECASE | re.ASCII,
    )


def parse_sample(value: str | float) -> tuple[float, str]:
    """``sample`` → (share, tag): a number from 0 to 1, or "tag:NAME"."""
    if isinstance(value, str):
        word, colon, tag = value.partition(":")
        if word != "tag" or not colon or not tag.strip():
            raise ValueError(f'sample = {value!r}: write a number from 0 to 1, or "tag:NAME"')
        return 0.0, tag.strip()
    if not 0 <= value <= 1:
        raise ValueError(f"sample = {value!r}: it is a share of the mail, from 0 to 1")
    return float(value), ""


def statistics(
    copies: Sequence[tuple[str, int, int | None, int, str | None]], counts: Mapping[str, int], now: int
) -> dict[str, Any]:
    """How copies fare, from (route, sent, home or None, missed, hops): ``routes``, one dict each with sent,
    home, away, missing, missing_since, p50_ms, p90_ms, p99_ms, and the hop where they wait longest;
    ``counts`` of all that came. Percentiles are of those that are home (nearest rank), None where none is.
    """
    routes = []
    for route in sorted({copy[0] for copy in copies}):
        mine = [copy for copy in copies if copy[0] == route]
        took = sorted(max(0, home - sent) for _, sent, home, *_ in mine if home is not None)
        missing = [sent for _, sent, home, late, _ in mine if home is None and late]
        routes.append(
            {
                "route": route,
                "sent": len(mine),
                "home": len(took),
                "away": len(mine) - len(took),
                "missing": len(missing),
                "missing_since": min(missing, default=None),
                **{f"p{share}_ms": _rank(took, share) for share in (50, 90, 99)},
                "slow_hop": _slow_hop([hops for *_, hops in mine if hops]),
            }
        )
    return {"v": 1, "at": now, "routes": routes, "counts": dict(counts)}


def _rank(ordered: Sequence[int], share: int) -> int | None:
    """The nearest-rank percentile: the smallest value that so many in a hundred do not exceed."""
    return ordered[-(-len(ordered) * share // 100) - 1] if ordered else None


def _slow_hop(kept: Sequence[str]) -> str | None:
    """The server that most often was the slowest hop, of the latest hundred."""
    slowest: Counter[str] = Counter()
    for text in kept[:100]:
        hops = json.loads(text)
        waits = [
            (later[1] - earlier[1], later[0])
            for earlier, later in pairwise(hops)
            if earlier[1] is not None and later[1] is not None
        ]
        if waits:
            slowest[max(waits)[1]] += 1
    return slowest.most_common(1)[0][0] if slowest else None
