"""What this machine's programs hand to sendmail → drafts: names become addresses, and half headers whole
ones.

Promises: bare names are aliased (aliases(5), envelope only) and then get the domain ``origin``, in the
envelope and in the fields that hold addresses; Bcc never leaves; a missing From is written; a Received field
says which user of this machine sent it; no other byte changes.
Fails: `Refused`; an alias file that is in disorder is told in the log, and mail goes on without it. Does
not: store, or read ``:include:`` files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from outmail.accept.acceptance import Draft
from outmail.errors import Refused
from outmail.intake.deposit import Deposit
from outmail.mime import handed_in, headers, splice
from outmail.model import Dsn, keyed_id, new_id
from outmail.policy.aliases import MAX_INCLUDED, AliasError, Directory, parse
from outmail.smtp.syntax import AddressError, parse_mailbox, qualified

log = logging.getLogger("outmail.sendmail")


@dataclass(frozen=True, slots=True)
class Here:
    """This machine. ``origin``: the domain of bare names; ``masquerade``: the address that its own ones are
    written as, or "".
    """

    hostname: str
    origin: str
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    masquerade: str = ""

    def address(self, text: str) -> str:
        """A name or an address of this machine's programs → an address."""
        return qualified(text, self.origin)

    def shown(self, text: str) -> str:
        """How an author of this machine is written to the world."""
        address = self.address(text)
        domain = address.rpartition("@")[2].lower()
        own = domain in (self.origin.lower(), self.hostname.lower(), "localhost")
        return self.masquerade if self.masquerade and own else address

    def targets(self, name: str) -> list[str]:
        """Who gets mail for a recipient: one, or those that the aliases name."""
        if "@" in name:
            return [name]
        everybody = Directory(
            frozenset((self.origin.lower(), "localhost")), self.aliases, lambda user: True, _no_file
        )
        try:
            return [self.address(target) for target in everybody.expand(name) or [name]]
        except (AliasError, OSError) as problem:
            log.warning("the aliases of %s are not used: %s", name, problem)
            return [self.address(name)]


def _no_file(path: str) -> str:
    raise AliasError(f":include: {path} is read by the receiving server only")


def aliases(path: str) -> dict[str, tuple[str, ...]]:
    """An alias file → names. A file that cannot be meant so, or not be read, is told and not used: mail goes
    on without it. One that is missing has no aliases.
    """
    try:
        with open(path, "rb") as file:
            return parse(file.read(MAX_INCLUDED).decode("utf-8"), path)
    except FileNotFoundError:
        return {}
    except (AliasError, OSError, UnicodeDecodeError) as problem:
        log.warning("%s: none of its aliases are used until it is mended: %s", path, problem)
        return {}


def draft(
    deposit: Deposit, here: Here, *, uid: int, now: int, key: str | None = None, route: str | None = None
) -> Draft:
    """A deposit → a draft for the door; raises `Refused`. ``route``: the name of one, in the place of the
    configured ones.
    """
    try:
        message = handed_in.read(deposit.content)
    except handed_in.Unreadable as problem:
        raise Refused(str(problem), code="bad-content") from None
    message.without_bcc()
    me = deposit.user or f"uid-{uid}"
    sender = here.shown(me if deposit.sender is None else deposit.sender) if deposit.sender != "" else ""
    if not deposit.as_is:
        _rewrite(message, here)
    if not message.has("from") and not message.has("resent-from"):
        message.fields.append(("from", _author(deposit.name, sender or here.shown(me))))
    if sum(name == "received" for name, _ in message.fields) >= splice.MAX_HOPS:
        raise Refused(f"the message has passed {splice.MAX_HOPS} servers already: a loop", code="loop")
    id = keyed_id(key) if key else new_id(now)
    targets = [target for name in deposit.recipients for target in here.targets(name)]
    return Draft(
        message.content,
        sender,
        list(dict.fromkeys(targets)),
        key,
        route=route,
        dsn=Dsn(deposit.notify, deposit.ret, deposit.envid) if _asks(deposit) else None,
        id=id,
        trace=_received(here.hostname, uid, id, now),
    )


def _asks(deposit: Deposit) -> bool:
    return bool(deposit.notify or deposit.ret or deposit.envid)


def _rewrite(message: handed_in.HandedIn, here: Here) -> None:
    """Bare names get their domain; authors are masqueraded too."""
    authors = ("from", "sender", "reply-to")
    message.rewrite(lambda name, address: (here.shown if name in authors else here.address)(address))


def _author(name: str, address: str) -> bytes:
    try:
        return headers.addresses("From", [(name, parse_mailbox(address))])
    except (AddressError, headers.HeaderError) as problem:
        raise Refused(f"From: {problem}", code="bad-address") from None


def _received(hostname: str, uid: int, id: str, now: int) -> bytes:
    """RFC 5321 §4.4, as far as it applies to a message that came from no network."""
    return (
        f"Received: by {hostname} (outmail, from userid {uid})\r\n\tid {id};\r\n\t{headers.date(now)}\r\n"
    ).encode("ascii", "replace")
