"""mailqueue-runner's configuration file: the section ``[mqrunner]`` of an ini file, read as its own parser
(Python's `configparser`) reads it, and some files on which that parser fails.

Promises: the same names, comments, continuation lines and ``%(other)s`` as there; a lone ``%`` is a percent
sign, so any password can be written; a byte order mark is passed over. What is wrong is named with its line.
Neither `re` nor `configparser` is loaded: `mq-sendmail` starts in milliseconds.
Fails: `ConfigError`. Does not: change anything.
"""

from __future__ import annotations

import os

from outmail.errors import ConfigError
from outmail.system import trust

SECTION = "mqrunner"
#: The keys that mailqueue-runner 1.0.0 knows. Its README has ``logging_conf`` in one place.
SMTP_KEYS = (
    "smtp_hostname",
    "smtp_port",
    "smtp_username",
    "smtp_password",
    "smtp_tls",
    "smtp_tls_verify",
    "smtp_timeout",
)
KEYS = (
    *SMTP_KEYS,
    "from",
    "queue_dir",
    "delivery_log",
    "queue_log",
    "logging_config",
    "logging_conf",
    "plugins",
)
_SYSTEM = "/etc/mailqueue-runner.conf"
#: How deep ``%(other)s`` may lead, as in configparser.
_DEEPEST = 10


class Ini:
    """The settings of a file: key in lower case → text."""

    def __init__(self, path: str, values: dict[str, str], lines: dict[str, int]) -> None:
        self.path = path
        self._values = values
        self._lines = lines

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, default: str = "") -> str:
        """The value; ``default`` where it is missing or empty."""
        return self._values.get(key) or default

    def place(self, key: str) -> str:
        """A path, absolute; relative ones mean the current folder, as in mailqueue-runner. "" for none."""
        value = self.text(key)
        return os.path.abspath(value) if value else ""

    def number(self, key: str, least: float, most: float) -> float | None:
        """Raises `ConfigError` for what is no number, or out of bounds."""
        value = self.text(key)
        if not value:
            return None
        try:
            found = float(value)
        except ValueError:
            raise self.wrong(key, f"{value!r} is no number") from None
        if not least <= found <= most:
            raise self.wrong(key, f"{value} is not between {least:g} and {most:g}")
        return found

    def wrong(self, key: str, why: str) -> ConfigError:
        """The error for a value that cannot be meant."""
        return ConfigError(f"{self.path}, line {self._lines.get(key, 0)}: {key}: {why}")

    def names(self) -> list[str]:
        """The keys that are there."""
        return list(self._values)

    def unknown(self) -> list[tuple[str, int]]:
        """(key, line) of the keys that mean nothing."""
        return [(key, line) for key, line in self._lines.items() if key not in KEYS]


def find(named: str | None) -> str | None:
    """The file that holds the configuration: the one that was named, the user's, or the system's; None where
    there is none.
    """
    if named:
        return named
    for path in (os.path.expanduser("~/.mailqueue-runner.conf"), _SYSTEM):
        if os.path.exists(path):
            return path
    return None


def read(path: str, *, named: bool = True) -> Ini:
    """The settings of a file. ``named`` False: it was found, so it must be one that nobody else wrote."""
    try:
        file = trust.read(path) if named else trust.read_found(path)
        text = file.content.decode("utf-8-sig")
    except OSError as problem:
        raise ConfigError(
            f"{path} cannot be read: {problem.strerror}", hint="name an existing, readable ini file"
        ) from None
    except UnicodeDecodeError as problem:
        line = problem.object[: problem.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: this is no UTF-8 text") from None
    if not named and file.doubt:
        raise ConfigError(
            f"{path} was found but is not read, because {file.doubt}",
            hint=f"if it is yours, name it: -C {path}",
        )
    return parse(text, path)


def parse(text: str, path: str) -> Ini:
    """The text of a file → its settings. Raises `ConfigError` with the line."""
    defaults, own, lines = _sections(text, path)
    raw = {**defaults, **own}
    values = {key: _filled(value, raw, path, lines.get(key, 0)) for key, value in raw.items()}
    found = Ini(path, values, {key: lines[key] for key in own})
    for key, line in found.unknown():
        if key.startswith("smtp_"):
            raise ConfigError(f"{path}, line {line}: unknown key {key}{_near(key)}")
    return found


def _near(key: str) -> str:
    import difflib

    near = difflib.get_close_matches(key, KEYS, 1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(SMTP_KEYS)}"


def _sections(text: str, path: str) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """(settings of [DEFAULT], settings of [mqrunner], key → line)."""
    sections: dict[str, dict[str, str]] = {"DEFAULT": {}}
    lines: dict[str, int] = {}
    section, key, indent = "", "", 0
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}, line {number}: "
        plain = line.strip()
        if not plain or plain[0] in "#;":
            continue
        depth = len(line) - len(line.lstrip())
        if depth > indent and key:
            sections[section][key] += "\n" + plain
            continue
        indent = depth
        if plain[0] == "[" and "]" in plain:
            section, key = plain[1 : plain.rindex("]")], ""
            if section in sections and section != "DEFAULT":
                raise ConfigError(f"{where}the section [{section}] is there twice")
            sections.setdefault(section, {})
            continue
        if not section:
            raise ConfigError(f"{where}a setting stands before the first section", hint=f"add [{SECTION}]")
        name, value = _split(plain)
        if not name:
            raise ConfigError(f"{where}this is no setting: write name = value")
        key = name.lower()
        if key in sections[section]:
            raise ConfigError(f"{where}{key} is there twice in [{section}]")
        sections[section][key] = value
        if section == SECTION or (section == "DEFAULT" and key not in lines):
            lines[key] = number
    if SECTION not in sections:
        raise ConfigError(f"{path} has no section [{SECTION}]")
    return sections["DEFAULT"], sections[SECTION], lines


def _split(line: str) -> tuple[str, str]:
    """``name = value`` or ``name: value``, whichever sign comes first; ("", "") for neither."""
    found = [at for at in (line.find("="), line.find(":")) if at > 0]
    if not found:
        return "", ""
    return line[: min(found)].rstrip(), line[min(found) + 1 :].strip()


def _filled(value: str, raw: dict[str, str], path: str, line: int, depth: int = 0) -> str:
    """``%%`` becomes ``%``, ``%(name)s`` the value of that setting, and any other ``%`` stays."""
    parts, at = [], 0
    while (percent := value.find("%", at)) >= 0:
        parts.append(value[at:percent])
        end = value.find(")s", percent)
        name = value[percent + 2 : end].lower() if value[percent + 1 : percent + 2] == "(" else ""
        if value[percent + 1 : percent + 2] == "%":
            parts.append("%")
            at = percent + 2
        elif end > 0 and name in raw:
            if depth >= _DEEPEST:
                raise ConfigError(f"{path}, line {line}: %({name})s leads to itself")
            parts.append(_filled(raw[name], raw, path, line, depth + 1))
            at = end + 2
        else:
            parts.append("%")
            at = percent + 1
    return "".join(parts) + value[at:]
