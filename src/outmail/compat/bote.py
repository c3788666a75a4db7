"""`Mailer` with the public methods of the package bote: a dictionary of settings, and plain-text mails from
them.

What stays: the keys, their defaults, what is refused and with which exception (ValueError, TypeError). What
is better: a mail is queued on disk and delivered by an engine in the program, so a server that is down raises
nothing; Date and Message-ID are set; ``encryption`` left out with a remote server is an error that says what
to write; ``"off"`` written out is honoured, but credentials are then refused off loopback; certificates of
this machine itself need not be signed by a known authority.
Does not: send when the settings are wrong (everything is checked in the constructor).
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from outmail.config import load
from outmail.errors import Refused
from outmail.model import Receipt
from outmail.outbox.outbox import Outbox
from outmail.policy.route import is_loopback
from outmail.smtp.syntax import AddressError, parse_mailbox

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
ALIASES = {"mail_admin": "recipient", "mail_sender": "sender"}


class Mailer:
    """``Mailer(settings)``; ``store`` says where the queue is (default: the configured store)."""

    def __init__(
        self, mail_settings: Mapping[str, Any], *, store: str | None = None, exit_wait: float = 5.0
    ) -> None:
        settings = checked(mail_settings)
        self.settings = settings
        self._wrap = settings["wrap_width"]
        self._recipients = _recipients(settings["recipient"])
        self.sender = settings["sender"]
        self._box = Outbox(store, relay=relay_url(settings), config=load(), exit_wait=exit_wait)

    def send_mail(
        self, message_subject: str, message_body: str, overwrite_recipient: str | None = None
    ) -> Receipt:
        """Queue a plain-text mail to the recipient, to one of a recipient dictionary by its key, or to
        another address.
        """
        for name, value in (("subject", message_subject), ("body", message_body)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"the {name} of the mail is empty")
        if "\r" in message_subject or "\n" in message_subject:
            raise ValueError("the subject holds a line break")
        try:
            return self._box.send(
                self._recipient(overwrite_recipient),
                message_subject.strip(),
                self._wrapped(message_body),
                sender=self.sender,
            )
        except Refused as problem:
            raise ValueError(str(problem)) from None

    def send_mail_to_admin(self, message_subject: str, message_body: str) -> Receipt:
        """Queue a mail to the recipient named ``admin``."""
        if "admin" not in self._recipients:
            raise ValueError("no recipient is named 'admin'")
        return self.send_mail(message_subject, message_body, "admin")

    def close(self) -> None:
        """Deliver what can be delivered in a few seconds; the rest stays queued."""
        self._box.close()

    def _recipient(self, given: str | None) -> str:
        if given is None:
            if "default" not in self._recipients:
                raise ValueError("no recipient was given, and none is named 'default'")
            return self._recipients["default"]
        return self._recipients.get(given, given)

    def _wrapped(self, body: str) -> str:
        lines = body.strip().splitlines()
        return (
            "\n".join(
                textwrap.fill(line, self._wrap, break_long_words=False, break_on_hyphens=False)
                if line.strip()
                else ""
                for line in lines
            )
            + "\n"
        )


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their defaults, every value checked; ValueError or TypeError with a sentence."""
    if not isinstance(given, Mapping):
        raise TypeError("mail_settings must be a dictionary")
    settings = {ALIASES.get(key, key): value for key, value in given.items()}
    for key in given:
        if key in ALIASES and ALIASES[key] in given:
            raise ValueError(
                f"mail_settings has {key} and {ALIASES[key]}, which mean the same; write {ALIASES[key]}"
            )
        if key in ALIASES:
            warnings.warn(
                f"mail_settings: {key} is the old name of {ALIASES[key]}", DeprecationWarning, stacklevel=3
            )
    for key in settings:
        if key not in KEYS:
            raise ValueError(f"mail_settings: unknown key {key!r}; known are {', '.join(KEYS)}")
    for key in ("recipient", "sender"):
        if settings.get(key) in (None, ""):
            raise ValueError(f"mail_settings: {key} is missing")
    server = settings.get("server") or "localhost"
    if not isinstance(server, str):
        raise TypeError("mail_settings: server must be text")
    local = is_loopback(server.strip())
    encryption = _encryption(settings, server, local)
    user, password = _credentials(settings)
    if user and encryption == "off" and not local:
        raise ValueError(
            f"mail_settings: credentials are not sent to {server} in clear; write encryption='starttls' or "
            f"'ssl'"
        )
    return {
        "server": server.strip(),
        "server_port": _port(settings, local),
        "encryption": encryption,
        "username": user,
        "passphrase": password,
        "recipient": _recipients(settings["recipient"]),
        "sender": _address(settings["sender"], "sender"),
        "wrap_width": _width(settings.get("wrap_width", 80)),
        "timeout": _timeout(settings.get("timeout", 60)),
    }


def relay_url(settings: Mapping[str, Any]) -> str:
    """Checked settings → a relay's URL."""
    scheme = {"off": "smtp+plain", "starttls": "smtp", "ssl": "smtps"}[settings["encryption"]]
    user = (
        quote(settings["username"], safe="") + ":" + quote(settings["passphrase"], safe="") + "@"
        if settings["username"]
        else ""
    )
    host = f"[{settings['server']}]" if ":" in settings["server"] else settings["server"]
    port = (
        settings["server_port"]
        or {"off": 25, "starttls": 587 if user else 25, "ssl": 465}[settings["encryption"]]
    )
    return f"{scheme}://{user}{host}:{port}"


def _encryption(settings: Mapping[str, Any], server: str, local: bool) -> str:
    value = settings.get("encryption")
    if value is None:
        if not local:
            raise ValueError(
                f"mail_settings: how to encrypt the way to {server} is not said; write encryption='starttls' "
                f"(port 587), 'ssl' (465), or 'off'"
            )
        return "off"
    if value not in ("off", "ssl", "starttls"):
        raise ValueError(f"mail_settings: encryption must be off, ssl or starttls, not {value!r}")
    return str(value)


def _credentials(settings: Mapping[str, Any]) -> tuple[str, str]:
    user, password = settings.get("username"), settings.get("passphrase")
    if bool(user) != bool(password):
        raise ValueError("mail_settings: username and passphrase go together")
    if not user:
        return "", ""
    if not isinstance(user, str) or not isinstance(password, str):
        raise TypeError("mail_settings: username and passphrase must be text")
    return user.strip(), password.strip()


def _port(settings: Mapping[str, Any], local: bool) -> int:
    port = settings.get("server_port")
    if port is None:
        if not local:
            raise ValueError(
                "mail_settings: server_port is needed for a remote server (587 for starttls, 465 for ssl)"
            )
        return 0
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"mail_settings: server_port must be a whole number, not {port!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"mail_settings: port {port} does not exist")
    return port


def _recipients(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": _address(value, "recipient")}
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            "mail_settings: recipient must be an address, or a dictionary of names and addresses that is not "
            "empty"
        )
    return {str(name): _address(address, f"recipient {name!r}") for name, address in value.items()}


def _address(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"mail_settings: {where} must be an address, not {text!r}")
    try:
        return str(parse_mailbox(text.strip()))
    except AddressError as problem:
        raise ValueError(f"mail_settings: {where}: {problem}") from None


def _width(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("mail_settings: wrap_width must be a whole number")
    return value if 1 <= value <= 998 else 80


def _timeout(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError("mail_settings: timeout must be a number of seconds")
    if value <= 0:
        raise ValueError("mail_settings: timeout must be greater than zero")
    return float(value)
