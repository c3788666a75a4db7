"""mailqueue-runner's settings → outmail's `Config`.

Promises: a configuration that works there works here. What only outmail has (retries, limits, safety) comes
from outmail's own configuration, if there is one; ``OUTMAIL_RELAY`` replaces the server.
Fails: `ConfigError` with the file, the line and the key. Does not: connect.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from outmail.compat.drain import config_for
from outmail.compat.mailqueue.ini import KEYS, Ini
from outmail.compat.programs import teller
from outmail.compat.relays import relay_url
from outmail.config import Config
from outmail.errors import ConfigError
from outmail.policy.route import Relay, Tls, is_loopback, parse_relay
from outmail.policy.veil import known

Tell = Callable[[str], None]
tell_of_library: Tell = teller("outmail")

_SMTPS = 465
_YES_NO = {"yes": True, "true": True, "no": False, "false": False}


def config_of(
    ini: Ini, folder: str, env: Mapping[str, str] | None = None, tell: Tell = tell_of_library
) -> Config:
    """The configuration for the mail of a queue directory. ``tell`` is given what people should know, a line
    each.
    """
    env = os.environ if env is None else env
    sender = {"sender": ini.text("from")} if ini.text("from") else {}
    return config_for(folder, lambda: relay_of(ini, tell), env, source=ini.path, **sender)


def relay_of(ini: Ini, tell: Tell = tell_of_library) -> Relay:
    """The server that the ``smtp_`` settings name."""
    host = ini.text("smtp_hostname")
    if not host:
        raise ConfigError(f"{ini.path}: smtp_hostname is missing", hint="it names the mail server")
    port = _port(ini)
    tls = _tls(ini, port)
    user, password = ini.text("smtp_username"), ini.text("smtp_password")
    if bool(user) != bool(password):
        tell(f"{ini.path}: no login, because smtp_username and smtp_password belong together")
        user = password = ""
    try:
        relay = parse_relay(relay_url(host, port, "starttls", user, password), "default")
    except ValueError as problem:
        raise ini.wrong("smtp_hostname", str(problem)) from None
    timeout = ini.number("smtp_timeout", 0.1, 86_400)
    known.add_login(user, password, lasting=True)
    relay = replace(relay, tls=tls, verify=_verify(ini, tls, host))
    return replace(relay, timeout=timeout) if timeout is not None else relay


def _port(ini: Ini) -> int:
    found = ini.number("smtp_port", 1, 65535)
    if found is not None and found != int(found):
        raise ini.wrong("smtp_port", "it is a whole number")
    return 25 if found is None else int(found)


def _tls(ini: Ini, port: int) -> Tls:
    value = ini.text("smtp_tls").strip().lower()
    always: Tls = "implicit" if port == _SMTPS else "required"
    modes: dict[str, Tls] = {
        "": "implicit" if port == _SMTPS else "opportunistic",
        "yes": always,
        "implicit": "implicit",
        "opportunistic": "opportunistic",
    }
    if value not in modes:
        raise ini.wrong("smtp_tls", f"{value!r} is not yes, implicit or opportunistic")
    if port == _SMTPS and modes[value] == "opportunistic":
        raise ini.wrong("smtp_tls", f"port {_SMTPS} means TLS from the start: leave smtp_tls out")
    return modes[value]


def _verify(ini: Ini, tls: Tls, host: str) -> bool:
    """Without a setting: where TLS is required, and the server is not this machine."""
    value = ini.text("smtp_tls_verify").strip().lower()
    if not value:
        return tls != "opportunistic" and not is_loopback(host)
    if value not in _YES_NO:
        raise ini.wrong("smtp_tls_verify", f"{value!r} is not yes or no")
    return _YES_NO[value]


def advise(ini: Ini, tell: Tell) -> None:
    """Tell what is accepted and hardly meant."""
    import difflib

    for key, line in ini.unknown():
        near = difflib.get_close_matches(key, KEYS, 1)
        if near:
            tell(f"{ini.path}, line {line}: {key} means nothing; did you mean {near[0]}?")
