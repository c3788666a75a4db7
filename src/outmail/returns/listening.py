"""Loopback copies that come by SMTP or LMTP: the listeners of `outmail run` and `outmail receive` recognise
them.

How: a listener is wrapped. Recipients whose address has a token of ours are taken out of a message before the
listener's own policy and queue see them.
Promises: the answer to a copy comes after the commit that records it. When the store is in trouble the answer
is 4xx, so that the copy comes again. The message's other recipients are treated as usual.
Does not: decide who may connect, or accept mail for the address without a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from outmail.intake.smtp import ClientConnection, Listener
from outmail.model import Reply
from outmail.returns.arrivals import Arrivals
from outmail.smtp import server as protocol

Then = Callable[[Sequence[Reply]], None]

HOME = Reply(250, "Noted", "2.0.0")
LATER = Reply(451, "The store is in trouble: come back later", "4.3.0")


class LoopbackPolicy:
    """A listener's policy that also accepts copies, from everybody who may send at all."""

    def __init__(self, inner: protocol.Policy, arrivals: Arrivals) -> None:
        self._inner = inner
        self._arrivals = arrivals

    def mail(self, session: protocol.Server, sender: str) -> Reply | None:
        return self._inner.mail(session, sender)

    def rcpt(self, session: protocol.Server, address: str) -> Reply | None:
        return None if self._arrivals.takes(address) else self._inner.rcpt(session, address)


def listens_for_copies(listener: Listener, arrivals: Arrivals) -> Listener:
    """The same listener; it accepts loopback copies, too."""
    inner = listener.take

    def take(line: ClientConnection, session: protocol.Server, request: protocol.Deliver, then: Then) -> None:
        copies = [arrivals.takes(address) for address in request.recipients]
        if not any(copies):
            inner(line, session, request, then)
            return
        lmtp = listener.settings.dialogue.lmtp
        homes = [address for address, copy in zip(request.recipients, copies) if copy]
        rest = _others(request, copies)

        def recorded(answer: object) -> None:
            reply = LATER if isinstance(answer, BaseException) else HOME
            if not rest.recipients:
                then([reply] * (len(homes) if lmtp else 1))
            elif lmtp or reply is HOME:
                inner(line, session, rest, lambda replies: then(_woven(copies, reply, replies, lmtp=lmtp)))
            else:
                then([reply])  # one answer for all, so everything comes again

        listener.door.ask(arrivals.verb(request.content, homes, request.sender), recorded)

    listener.policy = LoopbackPolicy(listener.policy, arrivals)
    listener.take = take  # type: ignore[method-assign]
    return listener


def _others(request: protocol.Deliver, copies: Sequence[bool]) -> protocol.Deliver:
    """The same message for the recipients that are no copies."""

    def rest(values: list[str]) -> list[str]:
        return [value for value, copy in zip(values, copies) if not copy]

    return replace(
        request,
        recipients=rest(request.recipients),
        notify=rest(request.notify),
        originals=rest(request.originals),
    )


def _woven(copies: Sequence[bool], reply: Reply, replies: Sequence[Reply], *, lmtp: bool) -> list[Reply]:
    """The answers, in the order of the recipients."""
    if not lmtp:
        return list(replies)
    others = iter(replies)
    return [reply if copy else next(others) for copy in copies]
