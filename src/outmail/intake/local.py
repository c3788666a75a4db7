"""What this machine's programs hand to sendmail → drafts: names become addresses, and half headers whole
ones.

Promises: bare names are aliased (aliases(5), envelope only) and then get the domain ``origin``, in the
envelope and in the fields that hold addresses; Bcc never leaves; a missing From is written; a Received field
says which user of this machine sent it; no other byte changes.
Fails: `Refused`; an alias file that is in disorder is told in the log, in one short line for each message,
and mail goes on without it. A message with too many recipients is refused before they are looked up, or as
soon as the aliases have named too many. Does not: store, or read ``:include:`` files.
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
from outmail.policy.aliases import MAX_INCLUDED, MAX_TARGETS, AliasError, Directory, parse
from outmail.policy.plain import plain_line
from outmail.smtp.syntax import AddressError, parse_mailbox, printable, qualified

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

    def targets(self, *names: str, most: int = MAX_TARGETS) -> list[str]:
        """Who gets mail for these recipients, each once: they, or those that the aliases name. Raises
        `Refused` when they are more than ``most``.
        """
        everybody = Directory(
            frozenset((self.origin.lower(), "localhost")), self.aliases, lambda user: True, _no_file
        )
        found: dict[str, None] = {}
        #: What was looked up → why its aliases are not used, or "".
        troubles: dict[str, str] = {}
        for name in _few(dict.fromkeys(names), most):
            if "@" in name:
                found[name] = None
                continue
            known = everybody.known_as(name)
            if known not in troubles:
                people, troubles[known] = self._led_to(everybody, name)
                found.update(dict.fromkeys(people))
            if troubles[known]:
                found[self.address(name)] = None
            _few(found, most)
        if told := [trouble for trouble in troubles.values() if trouble]:
            more = f" (and {len(told) - 1} more like this)" if len(told) > 1 else ""
            log.warning("%s%s", told[0], more)
        return list(_few(found, most))

    def is_alias(self, name: str) -> bool:
        """Whether a bare name is looked up in the aliases, and found."""
        return (
            Directory(frozenset(), self.aliases, lambda user: False, _no_file).known_as(name) in self.aliases
        )

    def _led_to(self, everybody: Directory, name: str) -> tuple[list[str], str]:
        """Whom the aliases name; or why they are not used, as one short line."""
        try:
            return [self.address(target) for target in everybody.expand(name) or [name]], ""
        except (AliasError, OSError) as problem:
            why = plain_line(str(problem)[:500])
            return [], f"the aliases of {printable(name)} are not used: {why}"


def _few(recipients: dict[str, None], most: int) -> dict[str, None]:
    if len(recipients) > most:
        raise Refused(
            f"the message has more than {most} recipients ([limits] recipients)", code="too-many-recipients"
        )
    return recipients


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
    deposit: Deposit,
    here: Here,
    *,
    uid: int,
    now: int,
    most: int,
    key: str | None = None,
    route: str | None = None,
) -> Draft:
    """A deposit → a draft for the door; raises `Refused`. ``most``: how many recipients a message may have.
    ``route``: the name of one, in the place of the configured ones.
    """
    targets = here.targets(*deposit.recipients, most=most)
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
    return Draft(
        message.content,
        sender,
        targets,
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
        return headers.addresses("From", [(_printable(name), parse_mailbox(address))])
    except (AddressError, headers.HeaderError) as problem:
        raise Refused(f"From: {problem}", code="bad-address") from None


def _printable(name: str) -> str:
    """A full name as programs take it from the password file, which may be Latin-1: no mail fails for it."""
    given = name.encode("utf-8", "surrogateescape")
    try:
        text = given.decode("utf-8")
    except UnicodeDecodeError:
        text = given.decode("latin-1")
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def _received(hostname: str, uid: int, id: str, now: int) -> bytes:
    """RFC 5321 §4.4, as far as it applies to a message that came from no network."""
    return (
        f"Received: by {hostname} (outmail, from userid {uid})\r\n\tid {id};\r\n\t{headers.date(now)}\r\n"
    ).encode("ascii", "replace")
