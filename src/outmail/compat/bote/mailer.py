"""`Mailer` of the package bote: a dictionary of settings, and plain-text mails with them.

The same as in bote: the settings, their defaults, what is refused and with which exception; the attributes,
which may be changed until a mail is sent; `Mailer.send_mail` and `Mailer.send_mail_to_admin`. Better than
bote: a mail is stored on disk and delivered by an engine in the program, so a server that is down raises
nothing; Date and Message-ID are set; long URLs are not broken; addresses that bote's pattern does not know
(``dev@localhost``) are accepted.
Fails: ValueError, TypeError and `err` as in bote; `outmail.NotStored` when the queue cannot be written. Does
not: send with wrong settings; everything is checked in the constructor.
"""

from __future__ import annotations

import logging
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any, NoReturn, cast

from outmail.compat.bote import err
from outmail.compat.relays import Encryption, outbox, relay_url
from outmail.errors import Refused
from outmail.model import Receipt
from outmail.outbox.outbox import Outbox
from outmail.smtp.syntax import AddressError, parse_mailbox

#: bote's own logger, so that programs which have configured it get the warning there.
log = logging.getLogger("bote.mailer")

KEYS = (
    "server",
    "server_port",
    "encryption",
    "username",
    "passphrase",
    "recipient",
    "sender",
    "wrap_width",
    "timeout",
)
#: Setting names of older versions of exoskeleton.
ALIASES = {"mail_admin": "recipient", "mail_sender": "sender"}
LOCAL = ("localhost", "127.0.0.1", "::1")


class Mailer:
    """``Mailer(settings)``. ``store``: where the queue is (default: the configured store). ``exit_wait``:
    seconds that the program's end waits for deliveries.
    """

    def __init__(
        self, mail_settings: Mapping[str, Any], *, store: str | None = None, exit_wait: float = 5.0
    ) -> None:
        settings = _known(mail_settings)
        self.server: str = settings.get("server", "localhost")
        self.is_local = self.server in LOCAL
        self.encryption: Encryption = _encryption(settings.get("encryption", "off"), self.server)
        self.server_port: int | None = _port(settings.get("server_port"), self.is_local)
        self.username, self.passphrase = _credentials(settings)
        self.recipient: str | dict[str, str] = settings["recipient"]
        self.default_recipient = _default_recipient(self.recipient)
        self.sender: str = settings["sender"]
        if not is_address(self.sender):
            raise err.NotAnEmail(f"mail_settings: sender is not a valid email! It is {self.sender!r}")
        self.wrap_width = _width(settings.get("wrap_width", 80))
        self.timeout = _timeout(settings.get("timeout", 60.0))
        self._store, self._exit_wait = store, exit_wait
        self._outbox()

    @property
    def context(self) -> NoReturn:
        """bote's TLS context; it does not exist here."""
        raise AttributeError(
            "this Mailer has no TLS context; say which certificates to trust in outmail's configuration: "
            "[relay] ca, fingerprint or verify"
        )

    def send_mail(
        self, message_subject: str, message_text: str, overwrite_recipient: str | None = None
    ) -> Receipt:
        """Queue a plain-text mail to the default recipient or to another address."""
        recipient = overwrite_recipient or self.default_recipient
        if not is_address(recipient):
            raise ValueError(
                f"Recipient is not valid: {recipient!r}; give an address, or a default in mail_settings"
            )
        subject, text = _text("subject", message_subject), _text("text", message_text)
        if not subject:
            raise err.MissingSubject("no subject: such mail is classified as spam")
        if "\r" in subject or "\n" in subject:
            raise ValueError("Subject must be a single line: a line break would begin another header field")
        if not text:
            raise err.MissingMailContent("No mail content supplied.")
        try:
            return self._outbox().send(recipient, subject, self._wrapped(text), sender=self.sender)
        except Refused as problem:
            raise ValueError(str(problem)) from None

    def send_mail_to_admin(self, message_subject: str, message_text: str) -> Receipt:
        """Queue a mail to the recipient named ``admin``."""
        if not isinstance(self.recipient, Mapping) or "admin" not in self.recipient:
            raise ValueError("mail_settings: recipient names no address for admin")
        return self.send_mail(message_subject, message_text, self.recipient["admin"])

    def close(self) -> None:
        """Deliver for a few seconds; the rest stays queued."""
        self._outbox().close()

    def relay(self) -> str:
        """The relay URL for the present attributes. Without encryption bote does not log in."""
        login = (self.username, self.passphrase) if self.encryption != "off" else ("", "")
        return relay_url(self.server, self.server_port, self.encryption, *login)

    def _outbox(self) -> Outbox:
        return outbox(self.relay(), self._store, self._exit_wait)

    def _wrapped(self, text: str) -> str:
        wrapper = textwrap.TextWrapper(self.wrap_width, break_long_words=False, break_on_hyphens=False)
        return "\n".join(wrapper.fill(line) for line in text.splitlines()) + "\n"


def is_address(value: Any) -> bool:
    """True for the text of a mailbox with a domain."""
    try:
        return isinstance(value, str) and bool(parse_mailbox(value))
    except AddressError:
        return False


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under their present names. Raises for unknown and missing ones."""
    if not isinstance(given, Mapping):
        raise err.WrongType("mail_settings must be a dictionary")
    for old, new in ALIASES.items():
        if old in given and new in given:
            raise ValueError(f"mail_settings has {old} and {new}, which mean the same; write {new}")
        if old in given:
            warnings.warn(f"mail_settings: {old} is the old name of {new}", DeprecationWarning, stacklevel=3)
    settings = {ALIASES.get(key, key): value for key, value in given.items()}
    for key in settings:
        if key not in KEYS:
            raise ValueError(f"mail_settings: unknown key {key!r}; known are {', '.join(KEYS)}")
    for key in ("recipient", "sender"):
        if key not in settings:
            raise ValueError(f"mail_settings: {key} is missing (Necessary key)")
    return settings


def _encryption(value: Any, server: Any) -> Encryption:
    if not isinstance(server, str):
        raise err.WrongType(f"mail_settings: server must be text, not {server!r}")
    if value not in ("off", "ssl", "starttls"):
        raise ValueError(
            f"mail_settings: Invalid value for the encryption parameter: {value!r}; write off, ssl or "
            f"starttls"
        )
    if value == "off" and server not in LOCAL:
        raise err.UnencryptedRemoteConnection(
            f"mail_settings: Connection is not local, but unencrypted: write encryption='starttls' (port "
            f"587) or 'ssl' (465) for {server}"
        )
    return cast(Encryption, value)


def _port(port: Any, local: bool) -> int | None:
    if port:
        if not isinstance(port, int) or isinstance(port, bool):
            raise err.WrongType(f"mail_settings: Port has to be an integer, not {port!r}")
        if not 0 <= port <= 65535:
            raise ValueError(f"mail_settings: Port must be integer (0 to 65535), not {port}")
    elif not local:
        raise ValueError("mail_settings: Provide a port for a remote server: 587 for starttls, 465 for ssl")
    return cast("int | None", port)


def _credentials(settings: Mapping[str, Any]) -> tuple[str | None, str | None]:
    user, password = (_text(key, settings.get(key)) or None for key in ("username", "passphrase"))
    if bool(user) != bool(password):
        raise ValueError(
            "mail_settings: Both username and passphrase must be provided together, or none of them"
        )
    return user, password


def _text(name: str, value: Any) -> str:
    """The text without white space at its ends; None becomes empty."""
    if value is not None and not isinstance(value, str):
        raise err.WrongType(f"the {name} must be text, not {value!r}")
    return (value or "").strip()


def _default_recipient(value: Any) -> str:
    if isinstance(value, str):
        if not is_address(value):
            raise err.NotAnEmail(f"mail_settings: recipient is not a valid email! It is {value!r}")
        return value
    if not isinstance(value, Mapping):
        raise err.WrongType(
            "mail_settings: recipient must be an address or a dictionary of names and addresses"
        )
    if not value:
        raise ValueError("mail_settings: Dictionary recipient is empty")
    for name, address in value.items():
        if not is_address(address):
            raise err.NotAnEmail(f"mail_settings: recipient is not a valid email! {name!r} is {address!r}")
    if "default" not in value:
        log.warning("No default key in recipient dictionary: every mail has to name its recipient")
    return str(value.get("default", ""))


def _width(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise err.WrongType(f"mail_settings: wrap_width is not an integer! It is {value!r}")
    return value if 1 <= value <= 998 else 80


def _timeout(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise err.WrongType(f"mail_settings: timeout must be a number of seconds, not {value!r}")
    if not value > 0:
        raise ValueError("mail_settings: timeout must be a positive number of seconds")
    return float(value)
