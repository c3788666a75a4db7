"""``outmail init``: address and password in, a working set-up out; ``init --undo`` takes it back.

Order: who and where (questions or options), the plan, a live test with a message to oneself, and only then
the steps. So a wrong password, a wrong server or Ctrl-C leave nothing behind.
Promises: no secret on the command line, on the screen, in a log or in the configuration file. Nothing of
somebody else is overwritten: a copy is kept. Whatever happens, the last lines say what was done, how to go
on, and how to take it back.
Fails: 64 for an answer that is missing, 65 for a wrong address, 69 and 75 as `outmail test`, 77 without the
right, 70 for a step that failed, 130 for Ctrl-C. Does not: decide (`policy.setup`, `policy.discovery`), or do
(`unix.setup`, `unix.undo`).
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from outmail.cli import lookup, trial
from outmail.cli.asking import Asker, Missing
from outmail.cli.exits import EX_DATAERR, EX_NOPERM, EX_SOFTWARE, EX_USAGE
from outmail.config import from_toml
from outmail.policy import setup as planning
from outmail.policy.discovery import Server, of_provider
from outmail.policy.providers import Tls, by_key
from outmail.policy.route import parse_relay
from outmail.policy.setup import HOME, SOCKET, Machine, Service, Wanted
from outmail.policy.veil import known
from outmail.smtp.syntax import AddressError, parse_mailbox
from outmail.system.place import user_store
from outmail.unix import setup
from outmail.unix.manifest import SUFFIX, Manifest
from outmail.unix.undo import Undoer


class Stop(Exception):
    """The end, with a sentence and an exit status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Login:
    """Who logs in at the server; ``password`` "" where no login is wanted."""

    server: Server
    password: str = ""

    @property
    def wanted(self) -> bool:
        return bool(self.server.user)


def init(arguments: argparse.Namespace) -> int:
    """Set up, or take back."""
    asker = Asker(yes=arguments.yes)
    if not hasattr(os, "geteuid"):
        asker.tell("outmail init: this is for Unix systems; elsewhere write outmail.toml by hand")
        return EX_USAGE
    setting_up = _SetUp(arguments, asker)
    try:
        return setting_up.undo() if arguments.undo else setting_up.run()
    except Stop as end:
        asker.tell(f"outmail init: {end}")
        return end.status
    except Missing as problem:
        asker.tell(f"outmail init: {problem}")
        return EX_USAGE
    except setup.Failure as problem:
        asker.tell(f"outmail init: {problem}")
        return EX_SOFTWARE
    except KeyboardInterrupt:
        asker.tell()
        asker.tell(f"outmail init: stopped. {setting_up.state()}")
        return 130


class _SetUp:
    """One call of `outmail init`."""

    def __init__(self, arguments: argparse.Namespace, asker: Asker) -> None:
        self.arguments, self.asker = arguments, asker
        self.place = setup.Place(arguments.root or "")
        system = arguments.system or bool(arguments.root) or (os.geteuid() == 0 and not arguments.user)
        self.scope: planning.Scope = "system" if system else "user"
        self.config = os.path.abspath(arguments.config) if arguments.config else self._usual()
        self.began = False

    def _usual(self) -> str:
        """Where the configuration is looked for."""
        if self.scope == "system":
            return planning.CONFIG
        return os.path.join(_config_home(), "outmail", "config.toml")

    def state(self) -> str:
        """What stands now, for somebody whom we leave in the middle."""
        if not self.began:
            return "Nothing was changed."
        return f"To go on: outmail init, again. To take back what was done: {self._undo_call()}"

    def _undo_call(self) -> str:
        options = [("--user", self.arguments.user), ("--system", self.arguments.system)]
        words = ["outmail init --undo", *(name for name, given in options if given)]
        for name in ("config", "root"):
            if getattr(self.arguments, name):
                words.append(f"--{name} {getattr(self.arguments, name)}")
        return " ".join(words)

    def _need_root(self) -> None:
        if self.scope == "system" and os.geteuid() != 0 and not (self.place.root or self.arguments.dry_run):
            raise Stop(EX_NOPERM, "a whole machine is set up by root: sudo outmail init --system")

    # -- setting up ------------------------------------------------------------------------------------------

    def run(self) -> int:
        self._need_root()
        whose = "this machine" if self.scope == "system" else "your account"
        self.asker.tell(
            f"outmail init: sets up outgoing mail for {whose}. Nothing is changed before you agree."
        )
        if self._manifest() is not None:
            self.asker.tell(
                f"It was set up before. What is not set up anew stays; {self._undo_call()} ends it."
            )
        address = self._address()
        login = self._login(address)
        machine = setup.machine(self.place)
        wanted = self._wanted(address, login, machine)
        self._show(wanted, machine)
        if self.arguments.dry_run:
            return 0
        if not self.asker.agrees("Test it, and do this?", "--yes"):
            raise Stop(0, "nothing was changed")
        if not self.arguments.no_test:
            self._test(wanted, login, address)
        return self._carry_out(wanted, planning.plan(replace(wanted, password=login.password), machine))

    def _address(self) -> str:
        given = self.arguments.email or ""
        return _mailbox(given) if given else self.asker.text("Your e-mail address:", "--email", "", _checked)

    # -- the server ------------------------------------------------------------------------------------------

    def _login(self, address: str) -> Login:
        server = self._server(address)
        server = self._with_user(server, address)
        self.asker.tell(f"  server   {server.host}, port {server.port}, {_TLS[server.tls]}")
        self.asker.tell(f"  found    {server.found}")
        if not server.sure:
            self._confirm_foreign(server, address)
        if server.user:
            self.asker.tell(f"  login    {server.user}")
        if server.note:
            self.asker.tell(f"  note     {server.note}")
        return Login(server, self._password(server) if server.user else "")

    def _server(self, address: str) -> Server:
        if self.arguments.relay:
            return _of_url(self.arguments.relay)
        if self.arguments.provider:
            return _of_word(self.arguments.provider, address)
        if not self.arguments.no_lookup:
            self.asker.tell(f"Looking for the server that takes mail of {address} …")
            found = lookup.find(address)
            if found.server is not None:
                return found.server
            for missed in found.missed:
                self.asker.tell(f"  {missed}")
        question = "No server was found. Its host name, or the name of your provider (gmail, ses:REGION, …):"
        return _of_word(self.asker.text(question, "--relay", "", _host_or_provider), address)

    def _confirm_foreign(self, server: Server, address: str) -> None:
        """RFC 6186 §6: DNS alone must not decide that a password goes to another domain's server."""
        domain = address.rpartition("@")[2]
        self.asker.tell(f"  caution  {server.host} is not of {domain}, and DNS is not signed: is it right?")
        if not self.asker.agrees("Send your password there?", "--relay", default=False):
            raise Stop(EX_USAGE, f"then name the server: --relay {server.url}")

    def _with_user(self, server: Server, address: str) -> Server:
        """The server with the login name, and the port for those who log in where none was named."""
        server = self._user(server, address)
        unsaid = self.arguments.relay and urlsplit(self.arguments.relay).port is None
        return server._replace(port=587) if server.user and server.port == 25 and unsaid else server

    def _user(self, server: Server, address: str) -> Server:
        if self.arguments.login:
            return server._replace(user=_utf8(self.arguments.login, "--login"))
        has_password = bool(self.arguments.password_file or self.arguments.password_stdin)
        if server.user or (self.arguments.relay and not has_password and not self.asker.can_ask):
            return server
        default = address if self.arguments.relay and has_password else ""
        if self.arguments.relay and not default:
            text = self.asker.text("User name at this server (- for none):", "--login", "-")
            return server._replace(user="" if text == "-" else text)
        return server._replace(user=self.asker.text("User name at this server:", "--login", default))

    def _password(self, server: Server) -> str:
        password = self._given_password()
        if password is None and self.arguments.dry_run:
            return "(not asked for)"
        if password is None:
            password = self.asker.secret(f"Password for {server.user}", _PASSWORD_OPTIONS)
        _utf8(password, "the password")
        if not password or "\n" in password or "\0" in password:
            raise Stop(EX_DATAERR, "the password is empty, or has more than one line")
        known.add_login(server.user, password, lasting=True)
        return password

    def _given_password(self) -> str | None:
        if self.arguments.password_stdin:
            try:
                return sys.stdin.readline().rstrip("\r\n")
            except UnicodeDecodeError:
                raise Stop(EX_DATAERR, _NOT_UTF8.format("the password")) from None
        if self.arguments.password_file:
            try:
                with open(self.arguments.password_file, encoding="utf-8") as file:
                    return file.read(10_000).rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as problem:
                why = getattr(problem, "strerror", None) or problem
                raise Stop(EX_DATAERR, f"{self.arguments.password_file}: {why}") from None
        return os.environ.get("OUTMAIL_PASSWORD") or None

    # -- the plan --------------------------------------------------------------------------------------------

    def _wanted(self, address: str, login: Login, machine: Machine) -> Wanted:
        service, sendmail = self._service(machine), self._sendmail()
        system = self.scope == "system"
        text = planning.config_text(
            login.server,
            sender=_mailbox(self.arguments.sender) if self.arguments.sender else address,
            to=address,
            store=self._store() if system or os.geteuid() == 0 else "",
            ca=os.path.abspath(self.arguments.ca) if self.arguments.ca else "",
            socket=SOCKET if system and service == "systemd" else "",
            login=login.wanted,
        )
        _utf8(text + self.config, "--config, --from, --to or --ca")
        self._check_installation(service, sendmail)
        return Wanted(
            self.scope,
            self.config,
            text,
            login.password,
            service,
            sendmail,
            command=setup.command(),
            program=self._program() if sendmail else "",
            unit_texts=setup.unit_texts(),
            units=planning.UNITS if system else os.path.join(_config_home(), "systemd", "user"),
            given_config=bool(self.arguments.config),
            to=address,
        )

    def _store(self) -> str:
        """The queue's file. In root's own set-up the configuration must name it: without a name root's queue
        is the machine's.
        """
        return f"{HOME}/queue.db" if self.scope == "system" else user_store(os.environ)

    def _service(self, machine: Machine) -> Service:
        if self.arguments.service:
            return self.arguments.service  # type: ignore[no-any-return]
        cron = machine.cron_d if self.scope == "system" else machine.crontab
        choices = [
            *([("systemd", "a service: mail goes out at once")] if machine.systemd else []),
            *([("timer", "systemd tries what waits every five minutes")] if machine.systemd else []),
            *([("cron", "cron tries what waits every five minutes")] if cron else []),
            ("none", "nothing: you run outmail run, or outmail run --once"),
        ]
        return self.asker.choice(  # type: ignore[return-value]
            "What shall send the mail that waits?", "--service", choices, choices[0][0]
        )

    def _sendmail(self) -> bool:
        if self.arguments.sendmail is not None or self.scope == "user":
            return bool(self.arguments.sendmail)
        return self.asker.agrees(
            "Shall outmail be this machine's sendmail, mailq and newaliases?", "--sendmail", default=False
        )

    def _program(self) -> str:
        try:
            return setup.program()
        except setup.Failure as problem:
            raise Stop(EX_SOFTWARE, str(problem)) from None

    def _check_installation(self, service: Service, sendmail: bool) -> None:
        """Other users of the machine must be able to run an outmail that is to serve them."""
        if self.scope == "user" or (service == "none" and not sendmail):
            return
        closed, ca = setup.closed_to_others(), self.arguments.ca
        if ca and not closed and (part := setup.closed_to_others(os.path.abspath(ca))):
            raise Stop(EX_NOPERM, f"--ca: {part} is closed to the service's user")
        if unsafe := setup.written_by_others():
            raise Stop(
                EX_NOPERM,
                f"other users could change what root and all others would run as sendmail or as the service, "
                f"because {unsafe}",
            )
        if closed:
            raise Stop(
                EX_NOPERM,
                f"this outmail cannot be run by other users of the machine, because {closed} is closed to "
                f"them: install it for all, such as by python3 -m venv /opt/outmail && "
                f"/opt/outmail/bin/pip install outmail, and call /opt/outmail/bin/outmail init",
            )

    def _show(self, wanted: Wanted, machine: Machine) -> None:
        """Print what will be done."""
        try:
            steps = planning.plan(wanted, machine)
        except ValueError as problem:
            raise Stop(EX_USAGE, str(problem)) from None
        self.asker.tell()
        self.asker.tell("This will be done:")
        for n, step in enumerate(steps, 1):
            self.asker.tell(f"  {n:>2}. {step.told}")
        self.asker.tell()
        self.asker.tell(f"{self.config}:")
        for line in wanted.text.splitlines():
            self.asker.tell(f"  | {line}")
        self.asker.tell()

    # -- the test and the deed -------------------------------------------------------------------------------

    def _test(self, wanted: Wanted, login: Login, address: str) -> None:
        """A message to oneself, before anything is written. A wrong password is asked for again."""
        for again in range(2, -1, -1):
            config = from_toml(wanted.text, self.config, {})
            relay = replace(config.routes.relays["default"], password=login.password)
            routes = config.routes.with_relays([relay])
            to = self.arguments.to or address
            outcome, delivery = trial.attempted(config, to, None, routes=routes, brief=True)
            status = trial.verdict(outcome, delivery)
            if status == 0:
                return
            if login.server.note:
                self.asker.tell(f"outmail init: {login.server.note}")
            if not (again and outcome.stage == "auth" and self.asker.can_ask):
                break
            login.password = self.asker.secret(f"Password for {login.server.user}, again", _PASSWORD_OPTIONS)
            known.add_login(login.server.user, login.password, lasting=True)
        raise Stop(
            status, "the test failed, and nothing was changed. With --no-test outmail is set up all the same."
        )

    def _carry_out(self, wanted: Wanted, steps: list[planning.Step]) -> int:
        manifest = self._manifest() or Manifest(self.place.at(self.config) + SUFFIX, scope=self.scope)
        doer = setup.Doer(self.place, manifest)
        self.began = True
        n, step = 0, None
        try:
            doer.begin(0o755 if self.scope == "system" else 0o700)
            doer.note_queue(self._store())
            for n, step in enumerate(steps, 1):
                self.asker.tell(f"  {n:>2}. {step.told}: {doer.do(step)}")
        except (setup.Failure, OSError) as problem:
            self._failed(n, step, problem)
        self.asker.tell()
        self.asker.tell(f"outmail is set up. {_NEXT[wanted.service]}")
        self.asker.tell(f"To take it back: {self._undo_call()}")
        return 0

    def _failed(self, n: int, step: planning.Step | None, problem: Exception) -> NoReturn:
        what = f"step {n} ({step.told})" if step is not None else "the beginning"
        why = problem
        if isinstance(problem, OSError):
            why = setup.Failure(f"{problem.filename}: {problem.strerror}")
        status = EX_NOPERM if isinstance(problem, PermissionError) else EX_SOFTWARE
        raise Stop(status, f"{what} failed: {why}. The steps before it are done. {self.state()}")

    def _manifest(self) -> Manifest | None:
        return Manifest.load(self.place.at(self.config) + SUFFIX)

    # -- undoing ---------------------------------------------------------------------------------------------

    def undo(self) -> int:
        self._need_root()
        manifest = self._manifest()
        if manifest is None:
            raise Stop(0, f"nothing was set up here: there is no {self.place.at(self.config)}{SUFFIX}")
        undoer = Undoer(self.place, manifest, delete_mail=self.arguments.delete_mail)
        for sentence in undoer.waits():
            fate = (
                "It will be deleted" if self.arguments.delete_mail else "It stays (--delete-mail deletes it)"
            )
            self.asker.tell(f"  MAIL: {sentence}. {fate}; outmail run --once, as its owner, sends it first.")
        if not self.asker.agrees("Take back what outmail init did?", "--yes"):
            raise Stop(0, "nothing was changed")
        result = undoer.all()
        for kind, sentences in (("", result.done), ("STAYS: ", result.stays), ("FAILED: ", result.failed)):
            for sentence in sentences:
                self.asker.tell(f"  {kind}{sentence}")
        if result.failed:
            raise Stop(EX_SOFTWARE, f"not everything could be taken back; again: {self._undo_call()}")
        return 0


_NOT_UTF8 = "{} is not UTF-8, so it cannot be written to a file that is"
_PASSWORD_OPTIONS = "--password-file, --password-stdin or $OUTMAIL_PASSWORD"
_NOBODY = "nobody answers at the ports 465 and 587 now: as you named it, with port 465"
_TLS = {"implicit": "TLS from the first byte", "starttls": "STARTTLS"}
_NEXT = {
    "systemd": "Its service runs. Try it: echo It works. | outmail send -s hello YOU",
    "timer": "A timer sends what waits. Try it: echo It works. | outmail send --wait 20 -s hello YOU",
    "cron": "cron sends what waits. Try it: echo It works. | outmail send --wait 20 -s hello YOU",
    "none": "Try it: echo It works. | outmail send --wait 20 -s hello YOU. What waits, outmail run sends.",
}


def _config_home() -> str:
    return os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")


def _utf8(text: str, what: str) -> str:
    """The text. Bytes of an argument or of a variable that are not UTF-8 end init (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Stop(EX_DATAERR, _NOT_UTF8.format(what)) from None
    return text


def _checked(text: str) -> str:
    """An address with a domain. Raises ValueError."""
    try:
        return str(parse_mailbox(text.strip()))
    except AddressError as problem:
        raise ValueError(str(problem)) from None


def _mailbox(text: str) -> str:
    try:
        return _checked(text)
    except ValueError as problem:
        raise Stop(EX_DATAERR, str(problem)) from None


def _of_url(url: str) -> Server:
    """A relay that was named. A password in it is refused: everybody on the machine sees a command line."""
    try:
        relay = parse_relay(url)
    except ValueError as problem:
        raise Stop(EX_USAGE, f"--relay: {problem}") from None
    if relay.password:
        raise Stop(
            EX_USAGE, "--relay: no password in the URL, where others can see it: --password-file or -stdin"
        )
    if relay.scheme != "smtp" or relay.tls == "none":
        raise Stop(EX_USAGE, "--relay: write smtps://HOST or smtp://HOST; other relays are set in the file")
    tls: Tls = "implicit" if relay.tls == "implicit" else "starttls"
    return Server(relay.host, relay.port, tls, unquote(urlsplit(url).username or ""), "as you named it")


def _host_or_provider(text: str) -> str:
    """What was typed, if it can be a host or is a provider's name. Raises ValueError."""
    if by_key(text) is None and "." not in text and text != "localhost":
        raise ValueError(f"{text!r} is neither a host name nor a provider that outmail knows")
    return text


def _of_word(word: str, address: str) -> Server:
    """The server of a provider's name, of a host name, or of a URL."""
    try:
        provider = by_key(_host_or_provider(word))
    except ValueError as problem:
        raise Stop(EX_USAGE, str(problem)) from None
    if provider is not None:
        return of_provider(provider, address, "by name")
    if "://" in word:
        return _of_url(word)
    if ":" in word:
        return _of_url(f"smtps://{word}" if word.endswith(":465") else f"smtp://{word}")._replace(
            user=address
        )
    found = lookup.at_host(_of_url(f"smtps://{word}").host, address)
    return found or _of_url(f"smtps://{word}")._replace(user=address, found=_NOBODY)
