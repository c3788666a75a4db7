"""What mailqueue-runner's programs begin with: the settings, the logs, the plugins, the mailer."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from outmail.compat.mailqueue import ini as inis
from outmail.compat.mailqueue.delivery_log import open_logs
from outmail.compat.mailqueue.mailer import SMTPMailer, is_local_host
from outmail.compat.mailqueue.plugins import active
from outmail.compat.mailqueue.settings import relay_of
from outmail.errors import ConfigError

_log = logging.getLogger("mailqueue")
_NAMES = {"implicit": "implicit", "required": "starttls", "opportunistic": "opportunistic"}


def guess_config_path(cfg_path: str | None) -> Path | None:
    """The ini file that was named, or that is found."""
    found = inis.find(cfg_path)
    return Path(found) if found else None


def parse_config(config_path: Any, section_name: str = "mqrunner") -> dict[str, Any]:
    """The settings of an ini file. Raises `outmail.ConfigError`."""
    ini = inis.read(str(config_path))
    return {key: ini.text(key) for key in ini.names()}


def init_app(
    config_path: Any = None, options: dict[str, Any] | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The settings, with the logs open and the plugins (``plugin_loader``) active."""
    if (config_path is None) == (settings is None):
        raise ValueError("init_app() needs either config_path or settings=")
    settings = parse_config(config_path) if settings is None else settings
    if not settings.get("basic_logging_configured"):
        for problem in open_logs(_ini(settings)):
            _log.error("%s", problem)
    settings["plugin_loader"] = active(settings.get("plugins", "*"))
    return settings


def init_smtp_mailer(settings: dict[str, Any], smtp_log: Any = None) -> SMTPMailer:
    """The mailer of the ``smtp_`` settings. Ends the program as there: 30 without a server, 31 for what is
    wrong.
    """
    ini = _ini(settings)
    try:
        relay = relay_of(ini)
    except ConfigError as problem:
        _log.error("%s", problem)
        sys.exit(31 if ini.text("smtp_hostname") else 30)
    if relay.tls == "opportunistic" and not ini.text("smtp_tls") and not is_local_host(relay.host):
        _log.warning(
            "smtp_tls is not set: the message goes out in clear where the server offers no STARTTLS; set it "
            "to yes, or to opportunistic to hear no more of it"
        )
    timeout = ini.number("smtp_timeout", 0.1, 86_400)
    return SMTPMailer(
        relay.host,
        port=relay.port,
        tls=_NAMES[relay.tls],
        tls_verify=relay.verify,
        username=relay.user or None,
        password=relay.password or None,
        smtp_log=smtp_log or logging.getLogger("mailqueue.smtp"),
        **({"timeout": timeout} if timeout is not None else {}),
    )


def _ini(settings: dict[str, Any]) -> inis.Ini:
    values = {key: str(value) for key, value in settings.items() if value is not None}
    return inis.Ini("the settings", values, {})
