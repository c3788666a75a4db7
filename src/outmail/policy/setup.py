"""What `outmail init` does to a machine, as data: the steps, in order, and the texts that it writes.

Promises: pure. `plan` says everything that will be done before anything is done, and each step says what it
is in a sentence (`told`). No step holds a password but the one that writes the password file, and that one
never shows it. Steps are ordered so that an interrupted set-up is harmless: folders, secret, configuration,
then whoever uses them.
Fails: `ValueError` with what is missing on this machine. Does not: look at the machine, or change it
(`unix.setup` does).
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from outmail.policy.discovery import Server

Scope = Literal["user", "system"]
Service = Literal["systemd", "timer", "cron", "none"]

#: The system's service: its user, and its folders.
USER = "outmail"
HOME = "/var/lib/outmail"
SPOOL = "/var/spool/outmail"
DROP = f"{SPOOL}/drop"
SOCKET = "/run/outmail/submit"
CONFIG = "/etc/outmail/config.toml"
UNITS = "/etc/systemd/system"
CRONTAB = "/etc/cron.d/outmail"
ALIASES = "/etc/aliases"
#: The names that become outmail's on a whole machine, and what each is called as.
NAMES = {"/usr/sbin/sendmail": "sendmail", "/usr/bin/mailq": "mailq", "/usr/bin/newaliases": "newaliases"}
#: Where what was there before is kept.
ASIDE = ".before-outmail"
_MINUTES = 5
#: What crontab(5) and systemd.unit(5) read as ``%``.
_CRON, _SYSTEMD = "\\%", "%%"


@dataclass(frozen=True, slots=True)
class MakeUser:
    """A user of this machine without a login. Nothing is done where there is one of that name."""

    name: str
    home: str

    @property
    def told(self) -> str:
        return f"make the system user {self.name}"


@dataclass(frozen=True, slots=True)
class MakeFolder:
    """A folder with its missing parents (mode 0755, or ``mode`` in a user's home). ``exact``: one that exists
    must have this owner and mode.
    """

    path: str
    mode: int
    owner: str = ""
    exact: bool = False

    @property
    def told(self) -> str:
        whose = f", owner {self.owner}" if self.owner else ""
        return f"make the folder {self.path} (mode {self.mode:04o}{whose})"


@dataclass(frozen=True, slots=True)
class GiveFolder:
    """A folder that root has used, and the files in it, get another owner."""

    path: str
    owner: str

    @property
    def told(self) -> str:
        return f"give {self.path}, which root has used, and the files in it to {self.owner}"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A file. ``group``: of the group of that user; "" leaves owner and group to whoever runs. One that
    exists is kept as a copy. ``secret``: its content could be guessed from a fast hash.
    """

    path: str
    text: str = field(repr=False)
    mode: int = 0o644
    group: str = ""
    what: str = ""
    secret: bool = False

    @property
    def told(self) -> str:
        group = f", group {self.group}" if self.group else ""
        return f"write {self.path} (mode {self.mode:04o}{group}): {self.what}"


@dataclass(frozen=True, slots=True)
class TakeName:
    """A program's path becomes outmail's. What is there is kept: diverted by dpkg, or moved aside."""

    path: str
    text: str = field(repr=False)
    diverted: bool = False

    @property
    def aside(self) -> str:
        return self.path + ASIDE

    @property
    def told(self) -> str:
        how = "divert it by dpkg-divert" if self.diverted else "move it aside"
        return f"make {self.path} outmail's ({how} to {self.aside})"


@dataclass(frozen=True, slots=True)
class AddCronLine:
    """A line in this user's crontab."""

    line: str

    @property
    def told(self) -> str:
        return f"add to your crontab: {self.line}"


@dataclass(frozen=True, slots=True)
class AddLine:
    """A line at the end of a file, which is made where it is missing."""

    path: str
    line: str
    why: str

    @property
    def told(self) -> str:
        return f"add to {self.path}: {self.line} ({self.why})"


@dataclass(frozen=True, slots=True)
class Run:
    """A command, and the one that takes it back. ``late``: that one runs when our files are gone."""

    words: tuple[str, ...]
    undo: tuple[str, ...]
    late: bool = False

    @property
    def told(self) -> str:
        return f"run {' '.join(self.words)}"


Step = MakeUser | MakeFolder | GiveFolder | WriteFile | TakeName | AddCronLine | AddLine | Run


@dataclass(frozen=True, slots=True)
class Machine:
    """What plan must know of the machine. ``offline``: a root file system that is not running.
    ``root_alias``: mail to root goes to somebody; ``roots_home``: the service's folder is root's so far.
    """

    systemd: bool = False
    crontab: bool = False
    cron_d: bool = False
    dpkg: bool = False
    root_alias: bool = False
    roots_home: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the person wants. ``command``: how outmail is called; ``program``: the text of the script that is
    sendmail; ``units``: the folder of a user's units; ``store``: the queue's file.
    """

    scope: Scope
    config: str
    text: str
    password: str = field(default="", repr=False)
    service: Service = "none"
    sendmail: bool = False
    command: tuple[str, ...] = ("outmail",)
    program: str = ""
    unit_texts: Mapping[str, str] = field(default_factory=dict)
    units: str = UNITS
    given_config: bool = False
    to: str = ""

    @property
    def password_file(self) -> str:
        return posixpath.join(posixpath.dirname(self.config), "password")


def config_text(
    server: Server,
    *,
    sender: str,
    to: str,
    store: str = "",
    ca: str = "",
    socket: str = "",
    login: bool = True,
) -> str:
    """The configuration file; the password is in a file of its own beside it. Who logs in may mostly send
    with the account's address only, so it replaces those of this machine's users.
    """
    lines = ["# Written by outmail init, and yours from now on."]
    if store:
        lines.append(f"store = {toml(store)}")
    lines += [f"from = {toml(sender)}", f"to = [{toml(to)}]", "", "[relay]"]
    lines.append(f"url = {toml(relay_url(server, login=login))}")
    if server.tls == "starttls" and login:
        lines.append('tls = "required"')
    if ca:
        lines.append(f"ca = {toml(ca)}")
    if login:
        lines.append('password_file = "password"')
        lines += ["", "[accept]", f"masquerade = {toml(sender)}"]
    if socket:
        lines += ["", "[listen]", f"lmtp = [{toml(f'unix:{socket}')}]"]
    return "\n".join(lines) + "\n"


def relay_url(server: Server, *, login: bool = True) -> str:
    """The server's URL, with the login."""
    from urllib.parse import quote

    if not login or not server.user:
        return server.url
    scheme, _, rest = server.url.partition("://")
    return f"{scheme}://{quote(server.user, safe='')}@{rest}"


def toml(text: str) -> str:
    """A TOML basic string: JSON's escapes are among TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def plan(wanted: Wanted, machine: Machine) -> list[Step]:
    """The steps, in order. ValueError: what is wished for cannot be had here."""
    _check(wanted, machine)
    steps: list[Step] = _folders(wanted, machine)
    system = wanted.scope == "system"
    if wanted.password:
        mode, group = (0o640, USER) if system else (0o600, "")
        text, what = wanted.password + "\n", "the password, alone"
        steps.append(WriteFile(wanted.password_file, text, mode, group, what, secret=True))
    steps.append(WriteFile(wanted.config, wanted.text, 0o644 if system else 0o600, "", "the configuration"))
    steps += _service(wanted, machine)
    if wanted.sendmail:
        steps += [
            TakeName(path, wanted.program.replace("@NAME@", name), machine.dpkg)
            for path, name in NAMES.items()
        ]
        if wanted.to and not machine.root_alias:
            steps.append(AddLine(ALIASES, f"root: {wanted.to}", "who reads root's mail"))
    return steps


def _check(wanted: Wanted, machine: Machine) -> None:
    if wanted.sendmail and wanted.scope != "system":
        raise ValueError("--sendmail is for a whole machine: it needs --system (as root)")
    if wanted.service in ("systemd", "timer") and not machine.systemd:
        raise ValueError("this machine does not run systemd: choose --service cron or none")
    if wanted.service == "cron" and not (machine.cron_d if wanted.scope == "system" else machine.crontab):
        raise ValueError("this machine has no cron: choose --service systemd or none")


def _folders(wanted: Wanted, machine: Machine) -> list[Step]:
    folder = posixpath.dirname(wanted.config)
    if wanted.scope == "user":
        return [MakeFolder(folder, 0o700)]
    return [
        MakeUser(USER, HOME),
        MakeFolder(folder, 0o755),
        GiveFolder(HOME, USER) if machine.roots_home else MakeFolder(HOME, 0o750, USER),
        MakeFolder(SPOOL, 0o755, "root", exact=True),  # who owns it could exchange the drop folder
        MakeFolder(DROP, 0o3777, USER, exact=True),
    ]


def _service(wanted: Wanted, machine: Machine) -> list[Step]:
    if wanted.service == "cron":
        line = f"*/{_MINUTES} * * * * {{}}{_called(wanted, _CRON)} run --once{_config(wanted, _CRON)}"
        if wanted.scope == "user":
            return [AddCronLine(line.format(""))]
        text = f"# Mail that waits is tried again. Written by outmail init.\n{line.format(USER + ' ')}\n"
        return [WriteFile(CRONTAB, text, 0o644, "", "an attempt every five minutes")]
    if wanted.service == "none":
        return []
    names = _unit_names(wanted)
    steps: list[Step] = [] if wanted.scope == "system" else [MakeFolder(wanted.units, 0o755)]
    steps += [
        WriteFile(posixpath.join(wanted.units, name), _unit(text, wanted), 0o644, "", "a unit of systemd")
        for name, text in names.items()
    ]
    return [*steps, *_enabled(wanted, list(names)[-1], machine)]


def _unit_names(wanted: Wanted) -> dict[str, str]:
    """Name of the unit → its text; the last one is enabled."""
    texts = wanted.unit_texts
    if wanted.service == "systemd":
        kept = "outmail.service" if wanted.scope == "system" else "outmail-user.service"
        return {"outmail.service": texts[kept]}
    once = texts["outmail-once.service"]
    if wanted.scope == "system":
        once = once.replace("Type=oneshot\n", f"Type=oneshot\n{_confinement(texts['outmail.service'])}\n")
    return {"outmail-once.service": once, "outmail-once.timer": texts["outmail-once.timer"]}


def _confinement(service: str) -> str:
    """The lines of the service's unit that say as whom it runs, and what it may do."""
    return service[service.index("User=") :].partition("\n[Install]")[0].rstrip("\n")


def _unit(text: str, wanted: Wanted) -> str:
    """A unit's text with this outmail's command and configuration."""
    call, ending = _called(wanted, _SYSTEMD), _config(wanted, _SYSTEMD)
    text = text.replace("@OUTMAIL@ config", f"{call} config{ending}").replace("@OUTMAIL@", call)
    lines = text.splitlines()
    return "".join(line + (ending if line.startswith("ExecStart=") else "") + "\n" for line in lines)


def _enabled(wanted: Wanted, name: str, machine: Machine) -> list[Step]:
    user = () if wanted.scope == "system" else ("--user",)
    if machine.offline:
        return [Run(("systemctl", *user, "enable", name), ("systemctl", *user, "disable", name))]
    reload = ("systemctl", *user, "daemon-reload")
    on, off = ("systemctl", *user, "enable", "--now", name), ("systemctl", *user, "disable", "--now", name)
    return [Run(reload, reload, late=True), Run(on, off)]


def _called(wanted: Wanted, percent: str) -> str:
    return " ".join(_quoted(word).replace("%", percent) for word in wanted.command)


def _config(wanted: Wanted, percent: str) -> str:
    """The option that names a configuration that would not be found."""
    return f" --config {_quoted(wanted.config).replace('%', percent)}" if wanted.given_config else ""


def _quoted(word: str) -> str:
    """As systemd and sh both read it."""
    plain = word and all(c.isalnum() or c in "/._-+=:@,%" for c in word)
    if plain:
        return word
    if any(c in word for c in "\"'\\`$\n"):
        raise ValueError(f"{word!r} has characters that a service's command cannot have")
    return f'"{word}"'
