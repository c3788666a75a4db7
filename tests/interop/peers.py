"""Who outmail is compared with: where it comes from, how its tests run, and where outmail differs on purpose.

A reason names the RFC or the peer's own documentation. A pattern is searched for in a test's name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

HERE = "{guests}/"
#: ``-p no:cacheprovider``: nothing is written beside the tests.
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "results")

TEXT = "the text of a reply is free, its code decides (RFC 5321, section 4.2)"
HEADLESS = "content without any header field is no message (RFC 5322, section 3.5): 554"
OFFERED = "outmail always offers SMTPUTF8 (RFC 6531), which the test's server does not"
EHLO_AGAIN = "EHLO and HELO may come again and begin anew (RFC 5321, section 4.1.4)"
HELP = "HELP is answered with one line for every command (RFC 5321, section 4.1.1.8)"
BARE = "a bare name gets [accept] origin: a mailbox has a domain (RFC 5321, section 2.3.5)"
NO_TLS = "credentials are not taken without TLS (RFC 4954, section 4), with 530 or 503 for AUTH"

COMPLETED = "a Date is missing, and a Message-ID: both are added (RFC 5322, sections 3.6.1 and 3.6.4)"
CLIENT = "the test puts mailqueue-runner's own SMTP client in, of which its README says nothing"
BRACKETS = "without the brackets of RFC 5321, section 4.1.1.2, only plain addresses are taken"
PARAMETERS = "555 is for parameters that are not understood (RFC 5321, section 4.1.1.11)"
LONG = "a path has at most 256 octets (RFC 5321, section 4.5.3.1.3)"
SYNTAX = "501 is for a syntax error in an argument (RFC 5321, section 4.2.2)"
AFTER_HELO = "parameters are taken after HELO, too: RFC 5321, section 4.1.1.11, binds the client"
ENDLESS = "421 after an endless line: what follows cannot be told from commands (RFC 5321, section 3.8)"


@dataclass(frozen=True)
class Peer:
    """One of the others. ``command`` is given to the Python of its environment; ``sdist`` is the name of the
    source archive with its tests; ``fixtures`` a module that takes the place of fixtures of its conftest.
    ``module`` is one that has to be there already, with the package that has it. ``quick``: part of the short
    form.
    """

    name: str
    version: str
    what: str
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()
    sdist: str = ""
    fixtures: str = ""
    module: str = ""
    npm: tuple[str, ...] = ()
    debian: tuple[str, ...] = ()
    python: tuple[int, ...] = (3, 11)
    quick: bool = False
    differs: Mapping[str, str] = field(default_factory=dict)


def django(name: str, version: str, python: tuple[int, ...], differs: Mapping[str, str]) -> Peer:
    return Peer(
        name,
        version,
        "its mail tests: outmail's backend, and its SMTP backend into the listener",
        (HERE + "django_mail.py", "{source}/tests"),
        (f"Django=={version}", "aiosmtpd==1.4.6"),
        sdist="Django",
        python=python,
        quick=name == "django-5.2",
        differs=differs,
    )


def bote(name: str, version: str, differs: Mapping[str, str]) -> Peer:
    return Peer(
        name,
        version,
        "the same program with it and with outmail.compat.bote",
        (HERE + "bote_program.py",),
        (f"bote=={version}",),
        quick=name == "bote-2",
        differs={
            "sender without a top-level domain": "dev@localhost is a mailbox (RFC 5321, section 4.1.2)",
            "a long word": "a URL is not broken; bote's README promises wrapped lines only",
            **differs,
        },
    )


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "cpython",
            ".".join(map(str, sys.version_info[:3])),
            "test_smtplib against the listener; test_logging's SMTPHandler, both ways",
            (HERE + "cpython.py",),
            module="test.test_smtplib (Debian: libpython3.11-testsuite, or of another version)",
            quick=True,
            differs={
                r"testELHO": TEXT,
                r"testNOOP|testRSET|testVRFY|testEXPN|UTF8_via_low_level_API": TEXT,
                r"testHELP": HELP,
                r"testSecondHELO": EHLO_AGAIN,
                r"testSend(Binary|NeedingDotQuote|NullSender)?$|escape_options|UTF8_via_sendmail": HEADLESS,
                r"OurHandlerTest": BARE,
            },
        ),
        django(
            "django-5.2",
            "5.2.19",
            (3, 11),
            {r"OutmailBackendTests.test_(lazy_addresses|recipient_without_domain)": BARE},
        ),
        django(
            "django-6.1",
            "6.1.3",
            (3, 12, 5),
            {
                r"OutmailBackendTests.test_fail_silently": "the backend goes on to support fail_silently; a "
                "comment in Django's test asks such backends to override it"
            },
        ),
        Peer(
            "aiosmtplib",
            "5.1.3",
            "its tests against the listener",
            (*PYTEST, "tests"),
            ("aiosmtplib==5.1.3", "aiosmtpd==1.4.6", "pytest", "pytest-asyncio", "hypothesis", "trustme"),
            sdist="aiosmtplib",
            fixtures="aiosmtplib_suite",
            quick=True,
            differs={
                r"test_login_without_starttls": NO_TLS,
                r"test_(rset|noop|mail|rcpt)_ok": TEXT,
                r"smtputf8_not_supported": OFFERED,
                r"test_help_ok": HELP,
                r"test_supported_methods": "HELP is answered without being named by EHLO; only "
                "extensions need that (RFC 5321, section 2.2.2)",
                r"test_data_ok|raises_on_data_write": HEADLESS,
                r"test_sendmail_with_rcpt_option": "NOTIFY is understood (RFC 3461); the test's server knows "
                "no option",
            },
        ),
        Peer(
            "aiosmtpd",
            "1.4.6",
            "its server's tests, the listener in its place",
            (
                *PYTEST,
                "-p",
                "aiosmtpd_suite",
                "-c",
                os.devnull,
                "--rootdir=.",
                "aiosmtpd/tests/test_smtp.py",
                "--timeout=30",
            ),
            ("aiosmtpd==1.4.6", "pytest", "pytest-mock", "pytest-timeout", "setuptools<81"),
            sdist="aiosmtpd",
            differs={
                r"test_ehlo$|test_default_greeting": TEXT,
                r"test_help": HELP,
                r"test_vrfy_not_address": "VRFY is always answered with 252 (RFC 5321, section 3.5.3)",
                r"invalid_address": SYNTAX,
                r"valid_address\[1[4-8]\]": "a path has no comments (RFC 5321, section 4.1.2)",
                r"valid_address\[(2[2458]|29|3[0-3])\]": BRACKETS,
                r"valid_address\[(3[89]|4[12])\]": LONG,
                r"errsyntax\[(malformed|missing|params)\]|invalid_body|incompatible_smtputf8": PARAMETERS,
                r"errsyntax\[params_noesmtp\]": AFTER_HELO,
                r"test_way_too_long_command": ENDLESS,
                r"line_too_long|long_line_delay": HEADLESS,
            },
        ),
        Peer(
            "mailqueue-runner",
            "1.0.0",
            "its tests with the listener as their server",
            (*PYTEST, "-p", "mailqueue_suite", "tests"),
            ("mailqueue-runner[plugins,testutils]==1.0.0", "aiosmtpd==1.4.6", "pytest"),
            sdist="mailqueue-runner",
            differs={r"test_mq_sendmail$": TEXT},
        ),
        Peer(
            "mailqueue-adapter",
            "1.0.0",
            "its own tests against outmail.compat.mailqueue, by import alone",
            (HERE + "mailqueue_adapter.py", "{source}"),
            ("mailqueue-runner[plugins,testutils]==1.0.0", "aiosmtpd==1.4.6", "pytest"),
            sdist="mailqueue-runner",
            differs={
                r"test_mq_sendmail(_set_from|_with_aliases|_with_cronie_parameters|\[|$)": COMPLETED,
                r"test_mq_sendmail_recipient_required": "64 is the status for usage (sysexits; outmail's "
                "README), not 2",
                r"test_mq_(sendmail|mail)_with_queuing": "the message is in the queue before the server is "
                "tried, as mailqueue-runner's README recommends; so a failure is status=deferred",
                r"test_mq_mail$": "an encoded word is B or Q, whichever is shorter (RFC 2047, section 4)",
                r"test_mq_run_delivery": "the test puts a mailer into the process; mq-run delivers by "
                "outmail's engine (README)",
                r"test_mq_send_test": "the subject is free; a Message-ID has the domain of its sender (RFC "
                "5322, section 3.6.4)",
                r"comments_and_empty_lines": "a line that begins with white space continues the line before "
                "(aliases(5), as RFC 5322, section 2.2.3)",
                r"smtp_mailer_test.*test_(can_send_message_via|can_handle|does_not_send|can_use_smtp_auth)": (
                    CLIENT
                ),
                r"smtp_mailer_test.*test_smtpmailer_(can_use|does_not)": CLIENT,
                r"certificate_is_untrusted": "the log says in words why a certificate is not trusted (RFC "
                "5280, section 6, has no names for that)",
            },
        ),
        Peer(
            "repoze.sendmail",
            "4.5",
            "one program with it and with outmail.compat.repoze; both programs qp, into the listener",
            (HERE + "repoze_sendmail.py",),
            ("repoze.sendmail==4.5", "transaction>=5.0"),
        ),
        bote(
            "bote-1",
            "1.2.2",
            {
                "user without passphrase": "bote 1.2 fails when it sends; 2.0 refuses it (its changelog)",
                "one of the recipients is no address": "bote 2.0 checks them all, too (its changelog)",
            },
        ),
        bote("bote-2", "2.0.0", {}),
        Peer(
            "exoskeleton",
            "2.1.1",
            "the real bot with outmail's NotificationManager, its database simulated",
            (HERE + "exoskeleton_bot.py",),
            ("exoskeleton==2.1.1",),
        ),
        Peer(
            "poca",
            "1.1",
            "the real podcast client with outmail's BufferSMTPHandler",
            (HERE + "poca_runs.py",),
            ("poca==1.1",),
        ),
        Peer(
            "clients",
            "installed",
            "curl, msmtp, swaks, Net::SMTP, nodemailer 10.6, PHP, aiosmtplib into the listener",
            (HERE + "clients.py", "{node}"),
            ("aiosmtplib==5.1.3",),
            npm=("nodemailer@10.6.0",),
        ),
        Peer(
            "servers",
            "of Debian",
            "outmail into Exim, Dovecot's LMTP server, OpenSMTPD and Postfix",
            (HERE + "servers.py", "{debian}"),
            debian=(
                "exim4-base",
                "exim4-daemon-light",
                "dovecot-core",
                "dovecot-lmtpd",
                "opensmtpd",
                "postfix",
            ),
        ),
    )
}
