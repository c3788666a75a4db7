"""Who may hand in mail by SMTP, and how fast.

Promises: pure; addresses and times are passed in. A client is trusted when it comes over a unix socket, from
loopback or from a listed network, or has authenticated. Does not: look up names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """``10.0.0.0/8``, ``192.0.2.7``, ``2001:db8::/32`` → networks; ValueError with a sentence."""
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError:
            raise ValueError(
                f"{text!r} is not a network: write such as 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32"
            ) from None
    return tuple(found)


def is_trusted(peer: str, trusted: tuple[Network, ...]) -> bool:
    """True for loopback and the listed networks; ``peer`` is an address, or "" for a unix socket."""
    if not peer or peer == "127.0.0.1" or peer == "::1":
        return True
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_loopback or any(
        address in network for network in trusted if network.version == address.version
    )


def neighbourhood(peer: str) -> str:
    """The key by which a client is counted: its address. For IPv6 the first half of it, because whoever has
    one address there has 2^64.
    """
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return peer
    return str(address.ipv4_mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


@dataclass(slots=True)
class Meter:
    """A token bucket for each client: ``rate`` messages a minute, 0 for no limit. Idle clients are
    forgotten.
    """

    rate: int = 0
    buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, client: str, now: float) -> bool:
        """True when this client may hand in one more message now."""
        if not self.rate:
            return True
        tokens, at = self.buckets.get(client, (float(self.rate), now))
        tokens = min(float(self.rate), tokens + (now - at) * self.rate / 60)
        if len(self.buckets) > 10_000:
            self.buckets = {
                name: (left, since) for name, (left, since) in self.buckets.items() if now - since < 60
            }
        self.buckets[client] = (max(0.0, tokens - 1), now)
        return tokens >= 1
