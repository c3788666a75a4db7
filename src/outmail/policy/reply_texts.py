"""What well-known servers say, by a few words of each text, with cause and remedy in words of our own.

Sources, looked at in November 2026: Gmail: support.google.com/a/answer/3726730; Microsoft:
learn.microsoft.com "non-delivery reports in Exchange Online" and olcsupport.office.com; Yahoo:
senders.yahooinc.com/smtp-error-codes; Amazon SES: docs.aws.amazon.com/ses "SMTP response codes" and "email
sending errors"; Postfix: postconf(5) and the texts of smtpd, cleanup and postscreen of Postfix 3.7. The last
group is what outmail and the system say themselves where no server answered.
Promises: the order is from the particular to the general; the first pattern that is found in "code enhanced
text" tells; between a code and its words lie at most 200 characters, so that no text takes long. Does not:
choose among codes (`replies`), or know every text: providers change them.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Known(NamedTuple):
    """A text that is known: who says it, why, and what helps. ``cause`` may name groups of the pattern
    (``\\1``).
    """

    who: str
    pattern: re.Pattern[str]
    cause: str
    remedy: str


def _known(who: str, *texts: tuple[str, str, str]) -> tuple[Known, ...]:
    return tuple(
        Known(who, re.compile(pattern, re.IGNORECASE), cause, remedy) for pattern, cause, remedy in texts
    )


_AUTHENTICATED = (
    "Publish SPF and DKIM for the sender's domain, for the relay in use, and a DMARC record that agrees with "
    "the address in From."
)
_APP_PASSWORD = (
    "Make a password for applications in the account's settings, and use it in place of the account's."
)
_REPUTATION = (
    "Send less at a time (`rate`, `concurrency`), only to people who asked for it, and have SPF, DKIM and "
    "DMARC in order."
)

GMAIL: Final = _known(
    "Gmail",
    (
        r"application-specific password|5\.7\.9 .{0,200}gsmtp",
        "Gmail takes no ordinary password for SMTP from this account.",
        _APP_PASSWORD,
    ),
    (
        r"username and password not accepted|badcredentials",
        "Gmail does not accept user name or password.",
        _APP_PASSWORD,
    ),
    (
        r"5\.7\.14 .{0,200}(gsmtp|web browser)",
        "Gmail wants the owner of the account to log in by a browser once.",
        "Do that, then let the queue try again.",
    ),
    (
        r"(daily user sending|5\.4\.5 .{0,200}gsmtp)",
        "The account has sent as many messages as Gmail allows it in a day.",
        "Wait a day, or send by a relay without that limit; set a `rate`.",
    ),
    (
        r"5\.7\.26 .{0,200}(gsmtp|unauthenticated|dmarc)|unauthenticated email from"
        r"|no authentication information",
        "Gmail could not tell that the mail is from the sender's domain: SPF and DKIM are missing or wrong.",
        _AUTHENTICATED,
    ),
    (
        r"[45]\.7\.(27|30|31|32|40)\b.{0,200}gsmtp",
        "Gmail misses SPF, DKIM or DMARC of the sender's domain.",
        _AUTHENTICATED,
    ),
    (
        r"[45]\.7\.(25|1) .{0,200}(ptr record|ipv6 sending guidelines)",
        "The sending address has no reverse DNS record, or mail over IPv6 has no SPF or DKIM.",
        "Have the reverse DNS record set, or send through a relay that has one.",
    ),
    (
        r"[45]\.7\.(0|28) .{0,200}unusual rate of (unsolicited )?(mail|email)",
        "Gmail sees too much unwanted mail from this address or domain.",
        _REPUTATION,
    ),
    (
        r"likely (unsolicited|suspicious)|very low reputation",
        "Gmail takes the message for spam, for its content or for the sender's past.",
        _REPUTATION,
    ),
    (
        r"not rfc 5322 compliant",
        "Gmail misses a proper From, Date or Message-ID, or finds one of them twice.",
        "Look at the header: outmail show ID --raw",
    ),
    (
        r"receiving mail (too quickly|at a rate)",
        "The recipient gets more mail than Gmail allows at the moment.",
        "Nothing, the queue tries again.",
    ),
    (
        r"(over quota|out of storage space|inbox is out of storage)",
        "The recipient's mailbox is full.",
        "Ask the recipient to make room.",
    ),
    (
        r"potential(ly)? (security issue|harmful)|blocked because its content",
        "Gmail takes no attachment of this kind, also not inside an archive.",
        "Send a link, or another format.",
    ),
    (
        r"(mail relay denied|invalid credentials for relay)",
        "The relay service of Google Workspace does not know this address or domain.",
        "Enter the sending address in the Workspace administration, or log in.",
    ),
    (
        r"5\.1\.1 .{0,200}(gsmtp|nosuchuser)",
        "There is no such account at Gmail.",
        "Look at the address for a slip of the keyboard.",
    ),
)

MICROSOFT: Final = _known(
    "Microsoft",
    (
        r"5\.7\.139",
        "SMTP with a password is switched off for this account or organisation.",
        "Have it switched on for the mailbox (SMTP AUTH), or use another relay.",
    ),
    (
        r"5\.7\.57\b",
        "The server wants a login before it sends for this address.",
        "Give the relay's URL a user name and a password.",
    ),
    (
        r"(sendasdenied|5\.7\.60 .{0,200}send as)",
        "The account may not send with this sender's address.",
        "Use the account's own address in `from`, or have the right to send as the other one given.",
    ),
    (
        r"5\.1\.8 .{0,200}(bad outbound sender|access denied)",
        "Microsoft has blocked the account for the mail it sent.",
        "An administrator must look at the account, and free it on the list of restricted users.",
    ),
    (
        r"5\.7\.7\d\d\b",
        "Microsoft does not let the organisation, or this address, send at the moment.",
        "An administrator must find what was sent in its name, and ask Microsoft's support.",
    ),
    (
        r"5\.7\.5(09|15)\b",
        "The sender's domain does not pass DMARC, or lacks what Microsoft asks of it.",
        _AUTHENTICATED,
    ),
    (
        r"(5\.7\.6(0[5-9]|[1-4]\d)\b|banned sending ip)",
        "The sending address is on Microsoft's list of blocked addresses.",
        "Ask for its removal at sender.office.com, after what caused it has ended.",
    ),
    (
        r"\bS31(40|50)\b|\bSC-00\d\b|block list \(S",
        "The network that the mail comes from is on the list of blocked addresses of Outlook.com.",
        "Ask for its removal at olcsupport.office.com, or use another relay.",
    ),
    (
        r"4\.7\.(500|650|651)\b|\bAS77\d+",
        "Microsoft makes senders that it does not know well wait.",
        "Nothing, the queue tries again. Send less at a time (`rate`).",
    ),
    (
        r"concurrent connections limit|storedrv\.clientsubmit",
        "The account has more connections open than Microsoft allows it.",
        "Set concurrency = 3 for the relay.",
    ),
    (
        r"submissionquotaexceeded|5\.2\.12[12]\b|recipientratelimit",
        "The account, or the recipient, has reached a limit of messages in a time.",
        "Wait, and set a `rate` for the relay.",
    ),
    (
        r"recipient thread limit",
        "The recipient's mailbox gets too many messages at once.",
        "Nothing, the queue tries again.",
    ),
    (
        r"5\.4\.1 .{0,200}recipient address rejected: access denied",
        "The organisation has no such recipient.",
        "Look at the address.",
    ),
    (
        r"5\.1\.10\b.{0,200}(recipient|resolver)",
        "The organisation has no such recipient.",
        "Look at the address.",
    ),
    (
        r"5\.7\.64\b|tenantattribution",
        "No connector of the organisation knows this server or its certificate.",
        "An administrator must set up the connector for the address that the mail comes from.",
    ),
)

YAHOO: Final = _known(
    "Yahoo",
    (
        r"\[(TSS?\d\d|IPTS\d\d)\]",
        "Yahoo makes this address wait: more mail than usual, or complaints of its users.",
        _REPUTATION,
    ),
    (
        r"\[BL\d\d\]",
        "The sending address is on a list of blocked addresses that Yahoo asks.",
        "See which list the text names, and ask there for removal.",
    ),
    (r"\[GL\d\d\]", "Yahoo makes senders that it does not know wait.", "Nothing, the queue tries again."),
    (
        r"\[PH\d\d\]",
        "Yahoo takes the message for phishing.",
        "Look at the links in it: they must lead where they say.",
    ),
    (
        r"5\.7\.9 .{0,200}message not accepted for policy reasons",
        "Yahoo does not take the content, or the sender's domain fails DMARC.",
        _AUTHENTICATED,
    ),
    (
        r"user doesn't have a (yahoo|aol)|mailbox not found.{0,200}\(yahoo",
        "There is no such account at Yahoo.",
        "Look at the address.",
    ),
)

SES: Final = _known(
    "Amazon SES",
    (
        r"throttling failure: maximum sending rate",
        "More messages in a second than the account may send.",
        "Set a `rate` for the relay, as high as the account's limit.",
    ),
    (
        r"throttling failure: daily message quota",
        "The account has sent as many messages as it may in 24 hours.",
        "Ask AWS for a higher quota. The queue tries again.",
    ),
    (
        r"email address is not verified",
        "The sender is not verified in this region; in the sandbox the recipient must be verified, too.",
        "Verify the address or its domain, and leave the sandbox.",
    ),
    (
        r"sending (has been )?(suspended|paused)|account.{0,200}(is )?paused",
        "AWS has stopped the account's sending, for bounces or complaints.",
        "See the account's dashboard, and answer AWS there.",
    ),
    (
        r"not authorized to perform:? .?ses:",
        "The user of these credentials may not send.",
        "Give the IAM user the right ses:SendRawEmail for this identity.",
    ),
    (
        r"535 .{0,200}authentication credentials invalid",
        "The SMTP credentials are wrong. They are not the access keys of AWS, and hold for one region.",
        "Make SMTP credentials in the console of the region that the relay's host names.",
    ),
    (
        r"configuration set .{0,200}(does not exist|doesn't exist)",
        "The message names a configuration set that the account does not have.",
        "Look at the field X-SES-CONFIGURATION-SET.",
    ),
    (
        r"too many concurrent smtp connections",
        "More connections than the account may have.",
        "Set a lower concurrency for the relay.",
    ),
)

POSTFIX: Final = _known(
    "Postfix",
    (
        r"relay access denied|relaying denied|relay not permitted",
        "The server does not send to strangers for this client: it asks for a login, or knows only its own "
        "network.",
        "Give the relay's URL a user name and a password, or have this machine's address allowed there.",
    ),
    (
        r"user unknown in .{0,200} table|recipient unknown",
        "The server has no such mailbox.",
        "Look at the address.",
    ),
    (
        r"sender address rejected: (not owned by|not logged in)",
        "This login may not use the sender's address.",
        "Use the login's own address in `from`, or log in.",
    ),
    (
        r"sender address rejected: (domain not found|unverified|malformed)",
        "The sender's domain does not exist in the DNS, or nobody answers for the address.",
        "Use a sender at a domain that takes mail: `from` in the configuration.",
    ),
    (
        r"recipient address rejected: domain not found|host or domain name not found",
        "The recipient's domain does not exist in the DNS.",
        "Look at the part of the address behind the @.",
    ),
    (
        r"gr[ae]y ?list",
        "The server makes senders that it does not know wait (greylisting).",
        "Nothing, the queue tries again after some minutes.",
    ),
    (
        r"recipient address rejected: (unverified|undeliverable)",
        "The server asked the next one for this address, and was told that there is none.",
        "Look at the address.",
    ),
    (
        r"cannot find your (reverse )?hostname",
        "The sending address has no name in the DNS that leads back to it.",
        "Have the reverse DNS record set, or send through a relay that has one.",
    ),
    (
        r"helo command rejected",
        "The server does not accept the name that this machine gives itself.",
        "Set `hostname` to a full name that exists in the DNS.",
    ),
    (
        r"must issue a starttls command first|starttls (is )?required",
        "The server wants encryption first.",
        'Use smtp:// with tls = "required", or smtps://.',
    ),
    (
        r"blocked (using|by) \S+|listed (at|in|by) \S*(spamhaus|barracuda|sorbs|spamcop|uceprotect)",
        "The sending address is on a list of blocked addresses.",
        "See which list the text names, and ask there for removal, or use another relay.",
    ),
    (
        r"client host rejected: access denied|client host rejected",
        "The server does not serve this machine's address.",
        "Have the address allowed there, or log in.",
    ),
    (
        r"service currently unavailable|4\.3\.2 service",
        "The server looks at new clients first, or is overloaded.",
        "Nothing, the queue tries again.",
    ),
    (
        r"message (size exceeds|file too big|too large|exceeds)|size limit",
        "The message is larger than the server takes.",
        "Send a smaller one, or a link.",
    ),
    (
        r"too many (connections|concurrent)|too much mail from|too many errors|rate limit|sending too fast",
        "More connections or messages than the server takes from one client.",
        "Set `concurrency` or `rate` for the relay.",
    ),
    (
        r"server configuration (error|problem)",
        "The server is set up wrongly.",
        "Ask its operator: its own log says more.",
    ),
    (
        r"temporary lookup failure|unable to look up",
        "The server could not look something up: its DNS, or a table of its own.",
        "Nothing, the queue tries again. If it goes on, ask its operator.",
    ),
    (
        r"loops back to myself|mail (loop|forwarding loop)",
        "The server would send the message to itself.",
        "Ask its operator: it does not know that it is the goal of this domain.",
    ),
    (
        r"improper use of smtp command pipelining",
        "The server wants one command after the other.",
        "Nothing: outmail notices this, and does so.",
    ),
    (
        r"milter|content scanner|amavis|spam (message|content|detected)|looks like spam",
        "A filter on the server takes the message for spam, or did not answer.",
        "The server's words say more; while the code begins with 4, the queue tries again.",
    ),
)

#: As `transport.certificate` writes what it read in a certificate.
_DAY = r"\d{1,2} \w{3} \d{4}"
_UNSIGNED = r"(?:self.signed certificate|unable to get (?:local )?issuer)"
_MISNAMED = r"(?:(?:hostname|ip address) mismatch|certificate is not valid for|doesn't match)"

#: Where no server answered: the code is 0 and the words are outmail's, the system's or the TLS library's.
HERE: Final = _known(
    "this machine",
    (
        rf"certificate has expired \(valid until ({_DAY})",
        r"its certificate expired on \1",
        "Ask its operator to renew it.",
    ),
    (
        r"certificate has expired, though not the server's own",
        "its certificate is valid, but one that vouches for it has expired",
        "Ask its operator to send a chain of certificates that are all valid.",
    ),
    (r"certificate has expired", "its certificate has expired", "Ask its operator to renew it."),
    (
        rf"certificate is not yet valid \(valid from ({_DAY})",
        r"its certificate is not valid before \1, or this machine's clock is wrong",
        "Look at the clock, then ask its operator.",
    ),
    (
        r"certificate is not yet valid",
        "its certificate is not valid yet, or this machine's clock is wrong",
        "Look at the clock, then ask its operator.",
    ),
    (
        rf"{_UNSIGNED}.{{0,200}} by ([^)]{{1,200}})\)",
        r"nobody whom this machine trusts has signed its certificate (it is by \1)",
        "Give that signer's certificate as `ca`, or pin the server's by `fingerprint`.",
    ),
    (
        _UNSIGNED,
        "nobody whom this machine trusts has signed its certificate",
        "Give the signer's certificate as `ca`, or pin the server's by `fingerprint`.",
    ),
    (
        rf"{_MISNAMED}.{{0,200}}\(valid .{{0,40}}until {_DAY}, for ([^)]{{1,400}}?)( by |\))",
        r"its certificate is for \1, not for the host in the relay's URL",
        "Use a name in the certificate as host of the relay.",
    ),
    (
        _MISNAMED,
        "its certificate is for another name than the host in the relay's URL",
        "Use a name in the certificate as host of the relay.",
    ),
    (
        r"not the pinned one",
        "its certificate is not the one pinned by `fingerprint`",
        "If its operator has renewed it, set the new fingerprint.",
    ),
    (
        r"wrong version number|unexpected eof.{0,200}tls|http request|does not speak tls on this port",
        "it does not speak TLS at once on this port",
        "Use smtp:// for port 587 and 25, smtps:// for port 465.",
    ),
    (
        r"no credentials are sent without tls",
        "it offers no encryption, so the password was not sent",
        "Use smtps:// if it has that, or insecure_auth where nobody listens on the line.",
    ),
    (
        r"no common way to authenticate",
        "it offers no way to log in that outmail knows",
        "Try port 587 or 465.",
    ),
    (
        r"starttls",
        "it offers no encryption, or STARTTLS failed",
        "Use smtps:// if it has that; smtp+plain:// only where nobody listens on the line.",
    ),
    (r"connection refused", "nobody listens on this port", "Does the server run? Are host and port right?"),
    (
        r"temporary failure in name resolution",
        "this machine's DNS does not answer",
        "Look at the network of this machine.",
    ),
    (
        r"name or service not known|no address|nodename nor servname|name resolution",
        "its host name is not known to the DNS",
        "Look at the host in the relay's URL, and at this machine's DNS.",
    ),
    (
        r"network is unreachable|no route to host",
        "this machine has no way to it",
        "Look at the network of this machine.",
    ),
    (
        r"no connection within|timed? ?out|no (whole )?answer|no greeting|took too long",
        "it does not answer in time",
        "Often a firewall, or a provider that blocks port 25: try 587 or 465.",
    ),
    (
        r"connection (reset|aborted)|closed the connection|broken pipe|connection lost",
        "it breaks off the connection",
        "If it goes on, ask its operator; its log says why.",
    ),
    (
        r"permission denied|read-only file system",
        "outmail may not write or run what the relay names",
        "Look at the rights of that file or folder.",
    ),
    (r"no space left", "the disk is full", "Make room."),
)

SERVERS: Final = (*GMAIL, *MICROSOFT, *YAHOO, *SES, *POSTFIX)
