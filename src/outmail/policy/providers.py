"""Mail providers: which server takes their users' mail, and what is peculiar about their passwords. Data.

Sources: each entry names the page it was taken from and the month in which that was read. "ispdb:NAME" is
the file of that name in Mozilla's collection, autoconfig.thunderbird.net/v1.1/NAME.
Promises: pure. TLS from the first byte is preferred to STARTTLS where a provider has both (RFC 8314 §3).
Does not: know every provider (`policy.discovery` asks the network for the others), or ask DNS.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Tls = Literal["implicit", "starttls"]


class Provider(NamedTuple):
    """``user``: the login name: "{address}", "{local}" (the part before the @), a fixed word, or "" when it
    must be asked for. ``host`` may hold "{region}". ``mx``: ends of the names of its incoming servers.
    ``note``: sentences about its password; "" when it is the one that the user knows.
    """

    key: str
    name: str
    host: str
    port: int
    tls: Tls
    source: str
    read: str
    domains: tuple[str, ...] = ()
    mx: tuple[str, ...] = ()
    user: str = "{address}"
    note: str = ""


_APP = "It takes no ordinary password from programs: make an app password, at "
_MICROSOFT = (
    "Microsoft lets programs log in by tokens, which outmail does not have yet. A password works only where "
    "the administrator has left SMTP AUTH with basic authentication on; for organisations it is off by "
    "default from the end of December 2026."
)
_OUTLOOK = (
    "Outlook.com, Hotmail and Live have let programs log in by tokens only since 16 September 2024, and "
    "outmail does not have them yet: expect a refusal, and use another relay."
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PROVIDERS: Final = (
    Provider(
        "gmail", "Gmail", "smtp.gmail.com", 465, "implicit", "ispdb:googlemail.com", "2026-11",
        _words("gmail.com googlemail.com"), _words("google.com googlemail.com"),
        note=_APP + "myaccount.google.com/apppasswords (2-step verification must be on).",
    ),
    Provider(
        "microsoft365", "Microsoft 365", "smtp.office365.com", 587, "starttls",
        "techcommunity.microsoft.com/blog/exchange/…/4489835 and ispdb:office365.com", "2026-11",
        _words("onmicrosoft.com"), _words("mail.protection.outlook.com mx.microsoft"),
        note=_MICROSOFT,
    ),
    Provider(
        "outlook", "Outlook.com", "smtp-mail.outlook.com", 587, "starttls", "ispdb:hotmail.com", "2026-11",
        _words(
            "outlook.com hotmail.com live.com msn.com windowslive.com outlook.de outlook.fr outlook.es "
            "outlook.it outlook.jp outlook.com.br hotmail.de hotmail.fr hotmail.es hotmail.it hotmail.nl "
            "hotmail.co.uk hotmail.co.jp live.de live.fr live.it live.nl live.se live.co.uk live.jp"
        ),
        _words("olc.protection.outlook.com"),
        note=_OUTLOOK,
    ),
    Provider(
        "icloud", "iCloud", "smtp.mail.me.com", 587, "starttls", "ispdb:me.com", "2026-11",
        _words("icloud.com me.com mac.com"), _words("mail.icloud.com"),
        note=_APP + "account.apple.com, Sign-In and Security.",
    ),
    Provider(
        "yahoo", "Yahoo", "smtp.mail.yahoo.com", 465, "implicit", "ispdb:yahoo.com", "2026-11",
        _words(
            "yahoo.com ymail.com rocketmail.com myyahoo.com yahoo.ca yahoo.de yahoo.it yahoo.fr yahoo.es "
            "yahoo.se yahoo.co.in yahoo.co.uk yahoo.co.nz yahoo.com.au yahoo.com.ar yahoo.com.br yahoo.com.mx"
        ),
        _words("am0.yahoodns.net"),
        note=_APP + "login.yahoo.com/account/security.",
    ),
    Provider(
        "aol", "AOL", "smtp.aol.com", 465, "implicit", "ispdb:aol.com", "2026-11",
        _words("aol.com aim.com netscape.net compuserve.com aol.de aol.fr aol.it aol.co.uk"),
        _words("gm0.yahoodns.net"),
        note=_APP + "login.aol.com/account/security.",
    ),
    Provider(
        "fastmail", "Fastmail", "smtp.fastmail.com", 465, "implicit",
        "www.fastmail.com/help/technical/servernamesandports.html", "2026-11",
        _words("fastmail.com fastmail.fm fastmail.net messagingengine.com"), _words("messagingengine.com"),
        note=_APP + "Settings, Privacy and Security.",
    ),
    Provider(
        "gmx", "GMX", "mail.gmx.net", 465, "implicit", "ispdb:gmx.net", "2026-11",
        _words("gmx.net gmx.de gmx.at gmx.ch gmx.eu gmx.biz gmx.org gmx.info"), _words("gmx.net"),
        note="Sending by programs must be switched on in the settings of the mailbox (POP3/IMAP).",
    ),
    Provider(
        "gmx.com", "GMX (gmx.com)", "mail.gmx.com", 465, "implicit", "ispdb:gmx.com", "2026-11",
        _words("gmx.com gmx.us gmx.co.uk gmx.es gmx.fr gmx.ca gmx.it gmx.li gmx.pt gmx.se"),
    ),
    Provider(
        "web.de", "WEB.DE", "smtp.web.de", 465, "implicit", "ispdb:web.de", "2026-11",
        _words("web.de"), _words("web.de"), user="{local}",
        note="Sending by programs must be switched on in the settings of the mailbox (POP3/IMAP).",
    ),
    Provider(
        "mail.com", "mail.com", "smtp.mail.com", 465, "implicit", "ispdb:mail.com", "2026-11",
        _words("mail.com email.com post.com usa.com consultant.com dr.com"),
    ),
    Provider(
        "t-online", "T-Online", "securesmtp.t-online.de", 465, "implicit", "ispdb:t-online.de", "2026-11",
        _words("t-online.de magenta.de"), _words("t-online.de"),
        note="It wants the password for e-mail programs, which is set in the customer centre.",
    ),
    Provider(
        "mailbox.org", "mailbox.org", "smtp.mailbox.org", 465, "implicit",
        "kb.mailbox.org/en/private/e-mail/e-mail-configuration", "2026-11",
        _words("mailbox.org"), _words("mailbox.org"),
        note="With two-factor authentication it wants an application password (Settings, Security).",
    ),
    Provider(
        "posteo", "Posteo", "posteo.de", 465, "implicit", "ispdb:posteo.de", "2026-11",
        _words("posteo.de posteo.net posteo.org posteo.eu posteo.at posteo.ch posteo.com posteo.me"),
        _words("posteo.de"),
    ),
    Provider(
        "proton", "Proton Mail Bridge", "127.0.0.1", 1025, "starttls",
        "proton.me/support/macos-certificate-warning", "2026-11",
        _words("proton.me protonmail.com protonmail.ch pm.me"), _words("protonmail.ch"),
        note="Proton has no server for programs: the Bridge must run on this machine. User name, password "
        "and port are those that the Bridge shows. Its certificate is signed by itself: export it there "
        "(Settings, Advanced) and give it as --ca FILE.",
    ),
    Provider(
        "zoho", "Zoho Mail", "smtp.zoho.com", 465, "implicit", "ispdb:zoho.com", "2026-11",
        _words("zoho.com zohomail.com"), _words("zoho.com"),
    ),
    Provider(
        "zoho.eu", "Zoho Mail (EU)", "smtp.zoho.eu", 465, "implicit", "ispdb:zoho.eu", "2026-11",
        _words("zoho.eu zohomail.eu"), _words("zoho.eu"),
    ),
    Provider(
        "ovh", "OVH", "ssl0.ovh.net", 465, "implicit", "ispdb:ovh.net", "2026-11",
        _words("ovh.net"), _words("mail.ovh.net"),
    ),
    Provider(
        "ionos", "IONOS", "smtp.ionos.com", 465, "implicit",
        "github.com/thunderbird/autoconfig, ionos.com of 2021-11", "2026-11",
        _words("ionos.com"), _words("ionos.com"),
    ),
    Provider(
        "ionos.de", "IONOS (Deutschland)", "smtp.ionos.de", 465, "implicit",
        "github.com/thunderbird/autoconfig, ionos.de of 2021-11", "2026-11",
        _words("ionos.de online.de onlinehome.de kundenserver.de"), _words("kundenserver.de ionos.de"),
    ),
    Provider(
        "hetzner", "Hetzner", "mail.your-server.de", 465, "implicit", "ispdb:hetzner.de", "2026-11",
        _words("your-server.de"), _words("your-server.de"),
    ),
    Provider(
        "strato", "Strato", "smtp.strato.de", 465, "implicit", "ispdb:strato.de", "2026-11",
        _words("strato.de rzone.de"), _words("rzone.de"),
    ),
    Provider(
        "gandi", "Gandi", "mail.gandi.net", 465, "implicit", "ispdb:gandi.net", "2026-11",
        _words("gandi.net"), _words("mail.gandi.net"),
    ),
    Provider(
        "one.com", "one.com", "send.one.com", 465, "implicit", "ispdb:one.com", "2026-11",
        _words("one.com"), _words("one.com"),
    ),
    Provider(
        "free", "Free", "smtp.free.fr", 465, "implicit", "ispdb:free.fr", "2026-11",
        _words("free.fr"), _words("free.fr"), user="{local}",
    ),
    Provider(
        "orange", "Orange", "smtp.orange.fr", 465, "implicit", "ispdb:orange.fr", "2026-11",
        _words("orange.fr wanadoo.fr"), _words("orange.fr"),
    ),
    Provider(
        "seznam", "Seznam", "smtp.seznam.cz", 465, "implicit", "ispdb:seznam.cz", "2026-11",
        _words("seznam.cz email.cz post.cz"), _words("seznam.cz"),
    ),
    Provider(
        "yandex", "Yandex", "smtp.yandex.com", 465, "implicit", "ispdb:yandex.ru", "2026-11",
        _words("yandex.ru yandex.com ya.ru"), _words("yandex.ru yandex.net"),
        note=_APP + "id.yandex.com, Security.",
    ),
    Provider(
        "ses", "Amazon SES", "email-smtp.{region}.amazonaws.com", 587, "starttls",
        "docs.aws.amazon.com/ses/latest/dg/smtp-connect.html", "2026-11", user="",
        note="User name and password are the SMTP credentials of this region (made in the SES console), not "
        "the access keys of AWS.",
    ),
    Provider(
        "mailgun", "Mailgun", "smtp.mailgun.org", 465, "implicit",
        "help.mailgun.com/hc/en-us/articles/203380100", "2026-11", mx=_words("mailgun.org"), user="",
        note="User name and password are the SMTP credentials of the sending domain, not an API key. In the "
        "EU region the host is smtp.eu.mailgun.org.",
    ),
    Provider(
        "sendgrid", "SendGrid", "smtp.sendgrid.net", 465, "implicit",
        "www.twilio.com/docs/sendgrid/for-developers/sending-email/integrating-with-the-smtp-api", "2026-11",
        user="apikey", note="The password is an API key with the right to send mail.",
    ),
    Provider(
        "postmark", "Postmark", "smtp.postmarkapp.com", 587, "starttls",
        "postmarkapp.com/developer/user-guide/send-email-with-smtp", "2026-11", user="",
        note="User name and password are both the server's API token, or the two keys of an SMTP token.",
    ),
    Provider(
        "brevo", "Brevo", "smtp-relay.brevo.com", 465, "implicit",
        "developers.brevo.com/docs/smtp-integration", "2026-11", user="",
        note="The password is an SMTP key, not an API key; the user name stands beside it.",
    ),
)  # fmt: skip


def by_domain(domain: str) -> Provider | None:
    """The provider that gives out addresses of this domain."""
    return next((one for one in PROVIDERS if domain.lower() in one.domains), None)


def by_mx(names: tuple[str, ...]) -> Provider | None:
    """The provider that receives the mail of a domain with these MX records, the preferred one first."""
    for name in names:
        plain = name.lower().rstrip(".")
        for one in PROVIDERS:
            if any(plain == end or plain.endswith(f".{end}") for end in one.mx):
                return one
    return None


def by_key(word: str) -> Provider | None:
    """What somebody types: ``ses:eu-central-1``, ``Gmail``. ValueError when the region is missing."""
    key, _, region = word.strip().lower().partition(":")
    found = next((one for one in PROVIDERS if key in (one.key, one.name.lower())), None)
    if found is None or "{region}" not in found.host:
        return found
    if not region or not region.replace("-", "").isalnum():
        raise ValueError(f"{found.name} has a server in each region: write such as {found.key}:eu-central-1")
    return found._replace(host=found.host.format(region=region))
