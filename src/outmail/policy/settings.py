"""Every key of a configuration file: its types, its default, and what it means.

This is the only list. `config` checks files against it, outmail.toml(5) and the sample in
docs/configuration.md are made from it, and tests compare the defaults with those that `config` has.
Promises: plain values, ready to be printed. Does not: read files or check values (`config` does).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

Types = tuple[type, ...]


class Setting(NamedTuple):
    """One key. ``default`` and ``example`` are TOML. Without a default the key is unset, or the machine
    decides (``text`` says how), and the example is shown. A key with neither a text nor an example is not
    shown.
    """

    key: str
    types: Types
    default: str
    text: str
    example: str = ""

    @property
    def shown(self) -> str:
        """``key = value``: the default, else the example."""
        return f"{self.key} = {self.default or self.example}"


class Table(NamedTuple):
    """One table. ``heading`` is its line in the file, ``types`` those of its name as a key of the file.
    ``optional``: shown as an example, because by default there is none.
    """

    name: str
    heading: str
    types: Types
    text: str
    settings: tuple[Setting, ...]
    optional: bool = False

    @property
    def known(self) -> dict[str, Types]:
        """Key → types."""
        return {setting.key: setting.types for setting in self.settings}


_TEXT, _TRUTH, _WHOLE, _NUMBER, _LIST, _TABLE = (str,), (bool,), (int,), (float,), (list,), (dict,)
_TEXTS = (str, list)

TOP = (
    Setting("store", _TEXT, "",
        "the queue: a path, sqlite:rel/path, sqlite:///abs/path, maildir:/folder or "
        "postgresql://user@host/database; without it /var/lib/outmail/queue.db for "
        "root, else $XDG_DATA_HOME/outmail/queue.db", '"mail.db"'),
    Setting("from", _TEXT, "", "the sender of what is sent without one", '"robot@example.org"'),
    Setting("to", _TEXTS, "[]", "where reports go"),
    Setting("hostname", _TEXT, "",
        "the name outmail gives in EHLO; without it the machine's name", '"host.example.org"'),
    Setting("transcripts", _TEXT, '"failures"', 'which SMTP dialogues are kept; or "all", "none"'),
    Setting("loop", _TEXT, '"asyncio"', 'or "uvloop": pip install "outmail[speed]"'),
)  # fmt: skip

RELAY = Table("relay", "[relay]", (str, dict),
    'the relay that is named "default"; the short form is relay = "smtp://localhost:25"', (
    Setting("url", _TEXT, '"smtp://localhost:25"', "how mail is handed over, and to which host"),
    Setting("password_file", _TEXT, "", "a file that holds the password", '"/etc/outmail/password"'),
    Setting("password_command", _TEXTS, "",
        "a command that prints the password; it runs in the configuration's folder", '"pass show mail"'),
    Setting("password", _TEXT, "",
        "the password itself; without any of these three $OUTMAIL_PASSWORD is used", '"secret"'),
    Setting("tls", _TEXT, '"off-loopback"',
        'STARTTLS except on loopback; or "required", "implicit" (TLS from the start), "none". The '
        'default for smtps:// is "implicit"'),
    Setting("verify", _TRUTH, "true", "false: trust any certificate"),
    Setting("ca", _TEXT, "", "a certificate authority of your own (PEM)", '"/etc/ssl/own-ca.pem"'),
    Setting("fingerprint", _TEXT, "", "trust exactly the certificate with this SHA-256", '"sha256:…"'),
    Setting("insecure_auth", _TRUTH, "false", "true: send the password without TLS to other hosts, too"),
    Setting("pipelining", _TRUTH, "true", "false: wait for each answer before the next command"),
    Setting("concurrency", _WHOLE, "20", "sessions at the same time"),
    Setting("rate", _NUMBER, "0.0", "messages a second; 0 = no limit"),
    Setting("timeout", _NUMBER, "120.0", "seconds for each answer, and for each 64 KB of content"),
    Setting("dot_timeout", _NUMBER, "600.0", "seconds for the answer to the final dot"),
))  # fmt: skip
#: The keys that say what the relay is and where its password is; the others are settings of the connection.
RELAY_OWN = ("url", "password_file", "password_command", "password")
RELAYS = Table("relays", "[relays.backup]", _TABLE,
    "further relays, each with a name and the keys of [relay]", (
    Setting("url", _TEXT, "", "", '"smtp+plain://backup.example.org:2525"'),
), optional=True)  # fmt: skip
ROUTE = Table("route", "[[route]]", _LIST,
    "which mail takes which relays; the first match wins, and mail that matches none goes to the relay "
    "default", (
    Setting("from", _TEXTS, '"*"', "pattern of the sender", '"*@example.com"'),
    Setting("to", _TEXTS, '"*"', "pattern of the recipient"),
    Setting("tag", _TEXTS, '"*"', "pattern of the tag"),
    Setting("relays", _LIST, "", "the relays, in the order in which they are tried", '["default", "backup"]'),
), optional=True)  # fmt: skip
OUTBOX = Table("outbox", "[[outbox]]", _LIST,
    "an application's database whose outbox table is emptied (docs/using.md); as many as you need", (
    Setting("url", _TEXT, "", "or postgresql://…", '"sqlite:////srv/shop/app.db"'),
), optional=True)  # fmt: skip

#: In the order of the sample.
TABLES = (
    RELAY, RELAYS, ROUTE, OUTBOX,
    Table("retry", "[retry]", _TABLE, "when mail that was not delivered is tried again", (
        Setting("schedule", _TEXT, '"1m, 2m, 4m, 8m, 15m, 30m, 1h, 2h, 4h…"',
            '"…": the last step repeats until expire; without "…" the mail fails after the last step. '
            '"5m*2" is "5m, 5m"'),
        Setting("expire", _TEXT, '"5d"', "mail that is older fails"),
        Setting("soft_bounce", _TRUTH, "false", "true: try again after a 5xx answer"),
        Setting("on_uncertain", _TEXT, '"retry"',
            'what to do with uncertain recipients; or "hold", "verify"'),
    )),
    Table("loopback", "[loopback]", _TABLE, "copies to yourself that come home (docs/loopback.md)", (
        Setting("address", _TEXT, "", "copies go to loop+TOKEN@example.org", '"loop@example.org"'),
        Setting("sample", (int, float, str), "1",
            'a share of the mail; 1 = all mail; or "tag:order"', "0.01"),
        Setting("within", _TEXT, '"10m"', "a copy that is not home by then is missing"),
        Setting("canary", _TEXT, '""', 'a small mail of outmail itself by each relay; "" for none', '"1h"'),
        Setting("mode", _TEXT, '"token"', 'or "message-id"'),
        Setting("message_id", _TEXT, '"keep"',
            'or "replace": mail that has a copy gets a Message-ID of outmail\'s own'),
        Setting("maildir", _TEXT, "", "where copies come home: a Maildir", '"/srv/loop/Maildir"'),
        Setting("mbox", _TEXT, "", "or an mbox file", '"/var/mail/loop"'),
        Setting("imap", _TEXT, "",
            "or a mailbox that is fetched by IMAP", '"imaps://loop@imap.example.org/INBOX"'),
        Setting("password_file", _TEXT, "", "its password", '"/etc/outmail/imap-password"'),
        Setting("ca", _TEXT, "",
            "its certificate authority, if it has one of its own", '"/etc/ssl/own-ca.pem"'),
    ), optional=True),
    Table("limits", "[limits]", _TABLE, "what is accepted", (
        Setting("message_size", (str, int), '"50MB"', "the largest message"),
        Setting("recipients", _WHOLE, "10000", "of one message"),
        Setting("queue", _WHOLE, "0", "when so many recipients wait, listeners answer 452; 0 = no limit"),
    )),
    Table("safety", "[safety]", _TABLE, "for staging", (
        Setting("only_to", _LIST, "[]", 'patterns; mail to any other address fails at once, reason "safety"'),
        Setting("redirect_to", _TEXT, '""',
            "all mail goes to this address; the original addresses are in X-Outmail-Redirected"),
    )),
    Table("retention", "[retention]", _TABLE, "how long finished mail is kept", (
        Setting("bodies", _TEXT, '"7d"', "the content"),
        Setting("records", _TEXT, '"90d"', "what is known of it; on PostgreSQL up to a twelfth longer"),
        Setting("transcripts", _TEXT, '"30d"', "the SMTP dialogues"),
    )),
    Table("accept", "[accept]", _TABLE, "what programs of this machine hand in", (
        Setting("origin", _TEXT, "",
            "domain of bare names (root); \"\" refuses them; without it /etc/mailname, else the host's "
            "full name", '"example.org"'),
        Setting("aliases", _TEXT, '"/etc/aliases"', "for bare names that sendmail gets"),
        Setting("drop", _TEXT, '""',
            "the folder from which the service takes what sendmail leaves there; without it "
            "/var/spool/outmail/drop, if the service owns that"),
        Setting("masquerade", _TEXT, '""', "an address: authors of this machine are written as it"),
    )),
    Table("listen", "[listen]", _TABLE, "where `outmail run` accepts mail", (
        Setting("smtp", _LIST, "[]",
            'host:port or unix:/path, such as "127.0.0.1:2525"; every user of this machine may send '
            "here"),
        Setting("lmtp", _LIST, "[]", "the same by LMTP"),
        Setting("submission", _LIST, "[]", "STARTTLS and AUTH required; on port 465 TLS from the start"),
        Setting("networks", _LIST, "[]",
            'other clients that may send, such as "10.0.0.0/8"; needed to listen beyond loopback '
            "without AUTH"),
        Setting("certificate", _TEXT, '""',
            "PEM chain; STARTTLS is offered; read again when it changes, or on SIGHUP"),
        Setting("key", _TEXT, '""', "its private key"),
        Setting("users_file", _TEXT, '""', "lines of name:hash; `outmail config --hash` makes the hash"),
        Setting("connections", _WHOLE, "1000", "at the same time; further ones get 421"),
        Setting("connections_per_client", _WHOLE, "",
            "for one client address outside networks; without it a quarter of connections; "
            "0 = no limit", "250"),
        Setting("rate", _WHOLE, "0", "messages a minute for each client or user; 0 = no limit"),
        Setting("accounts", _LIST, "[]", "users of this machine who may use unix: sockets; empty: all"),
        Setting("normalise", _TRUTH, "",
            "replace bare CR and LF; without it for clients of this machine and of networks", "true"),
    )),
    Table("receive", "[receive]", _TABLE, "for `outmail receive` (docs/receive.md)", (
        Setting("smtp", _LIST, '["127.0.0.1:2525"]', "where it listens"),
        Setting("lmtp", _LIST, "[]", "the same by LMTP"),
        Setting("domains", _LIST, "[]", "whose mail it takes"),
        Setting("users", _TEXTS, "[]", 'names of mailboxes; or "system" for the users of the machine'),
        Setting("mailboxes", _TEXT, '""', 'such as "/var/mail/{user}" (mbox) or "/home/{user}/Maildir/"'),
        Setting("aliases", _TEXT, '""', "a file of aliases"),
        Setting("networks", _LIST, "[]", "other machines that may send"),
        Setting("certificate", _TEXT, '""', "PEM chain; STARTTLS is offered"),
        Setting("key", _TEXT, '""', "its private key"),
    )),
    Table("reports", "[reports]", _TABLE, "how mails of jobs and digests look", (
        Setting("templates", _TEXT, '""',
            "a folder with report.txt, report.html, or failed.txt … (docs/reports.md)"),
    )),
    Table("notify", "[notify]", _TABLE, "who is told of trouble", (
        Setting("failed", _TEXTS, "[]", "whom `outmail run` tells of failed mail, at most every 15 minutes"),
    )),
)  # fmt: skip

#: (URLs of relays, how mail is handed over, the port without one in the URL).
RELAY_URLS = (
    ("`smtp://[user@]host`",
     'SMTP; STARTTLS is required, but not used on loopback unless `tls = "required"`',
     "25; with a user name 587"),
    ("`smtps://[user@]host`", "SMTP with TLS from the start", "465"),
    ("`smtp+plain://[user@]host`", "SMTP without TLS", "25"),
    ("`lmtp://host`, `lmtp:/socket`", "LMTP", "24"),
    ("`sendmail:/path`", "a program with the options of sendmail", ""),
    ("`maildir:/path`", "files in a Maildir", ""),
    ("`file:/dir`", "`.eml` files in a folder", ""),
    ("`null:`", "nothing: the mail is dropped and counts as delivered", ""),
)  # fmt: skip

#: The environment of the command, name → what it does.
VARIABLES = {
    "OUTMAIL_CONFIG": "the configuration file",
    "OUTMAIL_STORE": "overrides store",
    "OUTMAIL_RELAY": "overrides the relay default",
    "OUTMAIL_PASSWORD": "the password of relays whose URL has a user and for which no other source is set",
    "OUTMAIL_FROM": "overrides from",
    "OUTMAIL_TO": "overrides to; several addresses are joined by commas",
    "OUTMAIL_OUTBOX": "one more database for [[outbox]]",
}
#: Where a configuration is looked for; the first that is there is read.
FILES = (
    "the file that --config names",
    "the file that $OUTMAIL_CONFIG names",
    "./outmail.toml",
    "$XDG_CONFIG_HOME/outmail/config.toml (by default ~/.config/outmail/config.toml)",
    "/etc/outmail/config.toml",
)

#: Where the comments of the sample begin and end.
_COLUMN, _WIDTH = 49, 118


def known() -> dict[str, Types]:
    """The keys at the top of a file, tables included, → types."""
    return {setting.key: setting.types for setting in TOP} | {table.name: table.types for table in TABLES}


def sample() -> str:
    """A configuration that changes nothing: each key has its default. Lines that begin with ``#`` are
    examples.
    """
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    for setting in TOP:
        yield from _commented(_line(setting), setting.text)
    for table in TABLES:
        yield ""
        mark = "# " if table.optional else ""
        yield from _commented(mark + table.heading, table.text)
        for setting in table.settings:
            if setting.text or setting.example:
                line = _line(setting)
                yield from _commented(line if line.startswith("#") else mark + line, setting.text)


def _line(setting: Setting) -> str:
    return setting.shown if setting.default else f"# {setting.shown}"


def _commented(line: str, text: str) -> Iterator[str]:
    """A line, and behind it what it means, on as many lines as that needs."""
    parts = textwrap.wrap(text, _WIDTH - _COLUMN - 2) or [""]
    if len(line) >= _COLUMN:
        yield line
        line = ""
    for part in parts:
        yield f"{line:<{_COLUMN}}# {part}".rstrip(" #")
        line = ""
