"""Replies in plain words: every code of the lists, and the texts of servers that people meet."""

from __future__ import annotations

import re

import pytest

from outmail.model import Reply
from outmail.policy.replies import explained, parsed, trouble
from outmail.policy.reply_codes import BASIC, ENHANCED

#: RFC 5321 §4.2.3, the extensions that outmail may meet, and the basic codes that IANA's registry names.
CODES = (
    "211 214 220 221 235 250 251 252 253 334 354 421 430 432 450 451 452 453 454 455 458 459 500 501 502 503 "
    "504 521 523 524 525 530 533 534 535 538 550 551 552 553 554 555 556"
).split()
#: How many details each subject has in IANA's registry (updated on 2024-12-06), from 0 on.
DETAILS = {"0": 0, "1": 10, "2": 4, "3": 6, "4": 7, "5": 6, "6": 10, "7": 30}


def test_every_code_of_the_lists_is_explained() -> None:
    assert set(BASIC) == set(map(int, CODES))
    registry = {f"{subject}.{n}" for subject, most in DETAILS.items() for n in range(most + 1)}
    assert set(ENHANCED) == registry
    for code in CODES:
        found = explained(parsed(code))
        assert found is not None and found.cause.endswith("."), code
        assert code[0] in "23" or found.remedy, code
    for rest in registry:
        for first in "245":
            found = explained(parsed(f"{first}.{rest}"))
            assert found is not None and found.cause.endswith("."), rest


def test_what_is_typed_or_pasted_is_understood() -> None:
    assert parsed("550") == Reply(550, "")
    assert parsed("5.1.1") == Reply(0, "", "5.1.1")
    assert parsed(" 550-5.1.1  no such\n user ") == Reply(550, "no such user", "5.1.1")
    assert parsed("421 4.7.0 [TSS04] x") == Reply(421, "[TSS04] x", "4.7.0")
    assert parsed("hello") == Reply(0, "hello")


def test_codes_that_nobody_registered_say_what_their_digits_say() -> None:
    unknown = explained(Reply(559, "", "5.7.999"))
    assert unknown is not None and "security" in unknown.cause and "for good" in unknown.cause
    assert explained(Reply(469, "")) == explained(Reply(499, "odd"))
    assert explained(Reply(0, "")) is None and explained(Reply(0, "hello")) is None
    assert explained(Reply(0, "", "9.9.9")) is None


@pytest.mark.parametrize(
    ("text", "who", "word"),
    [
        ("534-5.7.9 Application-specific password required. abc - gsmtp", "Gmail", "password"),
        ("535-5.7.8 Username and Password not accepted. For more information … - gsmtp", "Gmail", "password"),
        (
            "550-5.7.26 This mail has been blocked because the sender is unauthenticated. - gsmtp",
            "Gmail",
            "SPF",
        ),
        ("421-4.7.28 Our system has detected an unusual rate of unsolicited mail - gsmtp", "Gmail", "rate"),
        (
            "450-4.2.1 The user you are trying to contact is receiving mail at a rate that … gsmtp",
            "Gmail",
            "",
        ),
        ("452-4.2.2 The recipient's inbox is out of storage space. … - gsmtp", "Gmail", "room"),
        ("550 5.4.5 Daily user sending limit exceeded. … - gsmtp", "Gmail", "day"),
        (
            "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled",
            "Microsoft",
            "AUTH",
        ),
        ("550 5.7.606 Access denied, banned sending IP [192.0.2.1]", "Microsoft", "sender.office.com"),
        ("550 5.7.1 part of their network is on our block list (S3150).", "Microsoft", "Outlook"),
        ("451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77719)", "Microsoft", "wait"),
        ("550 5.7.60 SMTP; Client does not have permissions to send as this sender", "Microsoft", "from"),
        ("421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred", "Yahoo", "rate"),
        ("553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1", "Yahoo", "list"),
        ("454 Throttling failure: Maximum sending rate exceeded.", "Amazon SES", "rate"),
        ("554 Message rejected: Email address is not verified. …", "Amazon SES", "Verify"),
        ("535 Authentication Credentials Invalid", "Amazon SES", "access keys"),
        ("554 5.7.1 <a@x.test>: Relay access denied", "Postfix", "user name"),
        (
            "550 5.1.1 <a@x.test>: Recipient address rejected: User unknown in local recipient table",
            "Postfix",
            "",
        ),
        ("450 4.2.0 <a@x.test>: Recipient address rejected: Greylisted, see …", "Postfix", "greylisting"),
        ("553 5.7.1 <a@x.test>: Sender address rejected: not owned by user b", "Postfix", "from"),
        (
            "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
            "Postfix",
            "list",
        ),
        (
            "504 5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname",
            "Postfix",
            "hostname",
        ),
    ],
)
def test_well_known_texts(text: str, who: str, word: str) -> None:
    found = explained(parsed(text))
    assert found is not None and found.who == who, found
    assert word in f"{found.cause} {found.remedy}"


@pytest.mark.parametrize(
    "text",
    [
        "smtp://h:25: certificate verify failed: certificate has expired",
        "Connection refused",
        "smtp://h:25: no connection within 30 s",
        "Name or service not known",
        "certificate verify failed: Hostname mismatch, certificate is not valid for 'h'",
        "certificate verify failed: self-signed certificate",
        "the certificate's SHA-256 is 00, not the pinned one",
        "no credentials are sent without TLS: use smtps://, or allow it explicitly",
        "no common way to authenticate; the relay offers none",
        "smtp://h:25: Temporary failure in name resolution",
        "smtp://h:25: h has no address",
        "no greeting within 4 s: the server waits for the first word",
        "TLS failed: the server does not speak TLS on this port, at least not from the start",
    ],
)
def test_trouble_without_an_answer(text: str) -> None:
    found = trouble(text)
    assert found is not None and found[1]
    spoken = explained(Reply(0, text))
    assert spoken is not None and re.match("[A-Z].*[.]$", spoken.cause)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("certificate has expired (valid until 24 Nov 2025, for a.test by CA)", "expired on 24 Nov 2025"),
        ("certificate has expired, though not the server's own (valid until 1 Jan 2030)", "one that vouches"),
        ("certificate is not yet valid (valid from 1 Jan 2030 until 1 Jan 2031)", "before 1 Jan 2030"),
        ("self-signed certificate (valid until 1 Jan 2030, for a.test by Old CA)", "it is by Old CA"),
        (
            "Hostname mismatch, certificate is not valid for 'x.test' (valid until 1 Jan 2030, "
            "for a.test, b.test by Old CA)",
            "for a.test, b.test, not for",
        ),
        ("IP address mismatch, certificate is not valid for '127.0.0.1'", "another name"),
    ],
)
def test_what_a_certificate_says_of_itself_is_in_the_sentence(text: str, cause: str) -> None:
    found = trouble(f"smtps://h: the certificate is not trusted: {text}")
    assert found is not None and cause in found[0] and "\\" not in found[0]


def test_a_servers_words_are_not_taken_for_the_systems() -> None:
    found = explained(Reply(550, "our upstream said: connection refused", "5.1.1"))
    assert found is not None and found.who == "" and "mailbox" in found.cause
