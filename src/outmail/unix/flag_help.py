"""What each flag of ``sendmail`` and ``mail`` does, for ``--help``, sendmail's manual page and docs/unix.md.

A test compares the letters with those that `flags` and `mail` know. Does not: parse (`flags` does).
"""

from __future__ import annotations

#: (flags, what they do). Backquotes surround what is typed.
SENDMAIL = (
    ("-t", "recipients from To, Cc and Bcc, or from the Resent fields if there are any; addresses on the "
     "command line are added"),
    ("-i, -oi", "a lone dot does not end the message; the end of input always does"),
    ("-f A, -r A", "the envelope's sender; `''` and `'<>'` are the null sender"),
    ("-F NAME", "the author's name, where there is no From field"),
    ("-N, -R, -V", "delivery status notifications (RFC 3461): when, how much, envelope id"),
    ("-bm", "a message on stdin (the default)"),
    ("-bp", "print the queue, as `mailq` does"),
    ("-bs", "SMTP on stdin and stdout"),
    ("-bv A", "where mail for A would go; nothing is sent. 67: no user and no alias has this name"),
    ("-bi, -I", "as `newaliases`: says what is wrong in the alias file"),
    ("-q, -qIID, -qRSITE, -qSSENDER, -q15m", "try now what waits; without a service this process tries once"),
    ("-G", "the message comes from another machine: bare names get no domain"),
    ("-C FILE, -a RELAY, --store S, --relay R", "configuration, relay, queue"),
    ("-X FILE", "appends to FILE, which is new or an earlier one of `-X`, what comes in, and with `-bs` and "
     "`-q` the dialogues; what a service sends later is shown by `outmail log ID`"),
    ("-v", "says on stderr which id the message has, and which flags change nothing"),
    ("--", "ends the flags; an address after it may begin with `-`"),
    ("-bd, -bl, -bh, -bH, -bt, -P", "exit status 64, and the outmail command to use instead"),
    ("-A -B -D -E -J -L -O -S -T -U -XV -c -d -e -h -m -n -o… -p -s -x",
     "are accepted and change nothing, as are unknown letters"),
)  # fmt: skip
MAIL = (
    ("-s SUBJECT", "the subject"),
    ("-c A, -b A", "copies, and copies that the others do not see"),
    ("-r A", "the sender"),
    ("-a FILE, -A FILE", "attaches a file; where there is no such file, `-a 'X-Tag: y'` is a field"),
    ("-q FILE", "a file in front of the text"),
    ("-E", "sends nothing when there is no text"),
    ("--config FILE, --store S, --relay R", "configuration, queue, relay"),
    ("-f -u -H -I -e", "would read a mailbox: exit status 64"),
    ("--", "addresses follow; where there are some already, flags of sendmail"),
)  # fmt: skip

#: How each command is called.
SENDMAIL_USAGE = (
    "sendmail [-t] [-i] [-f SENDER] [-F NAME] [RECIPIENT ...] < message",
    "sendmail -bp | -bs | -bv ADDRESS ... | -bi | -q[IID|RSITE|SSENDER]",
    "mailq",
    "newaliases",
)
MAIL_USAGE = ("mail [-s SUBJECT] [-c A] [-b A] [-r A] [-a FILE] ADDRESS ... < text",)
SENDMAIL_TEXT = (
    "A message on stdin is stored, and status 0 says that it is on disk. -t takes the recipients from To, Cc "
    "and Bcc; without -i a line with a dot alone ends the message. A mail never fails for a flag."
)
MAIL_TEXT = "The text on stdin becomes a message, which is stored; status 0 says that it is on disk."


def sendmail() -> str:
    """``sendmail --help``."""
    return _help(SENDMAIL_USAGE, SENDMAIL_TEXT, SENDMAIL)


def mail() -> str:
    """``mail --help``."""
    return _help(MAIL_USAGE, MAIL_TEXT, MAIL)


def _help(usage: tuple[str, ...], text: str, flags: tuple[tuple[str, str], ...]) -> str:
    import textwrap

    first, *others = usage
    head = [f"usage: {first}", *(f"       {one}" for one in others)]
    more = "More: outmail man sendmail"
    return "\n".join([*head, "", *textwrap.wrap(text, 78), "", *_lines(flags), "", more]) + "\n"


def _lines(flags: tuple[tuple[str, str], ...], width: int = 78) -> list[str]:
    """A list of flags for a terminal."""
    import textwrap

    made: list[str] = []
    for names, what in flags:
        text = textwrap.wrap(what.replace("`", ""), width - 18)
        head = f"  {names:<16}"
        if len(names) > 15:
            made += textwrap.wrap(names, width - 2, initial_indent="  ", subsequent_indent="  ")
            head = " " * 18
        made += [head + text[0], *(" " * 18 + line for line in text[1:])]
    return made


def table(flags: tuple[tuple[str, str], ...]) -> str:
    """The same for a page in Markdown."""
    rows = [f"| {_codes(names)} | {what} |" for names, what in flags]
    return "\n".join(["| flag | what it does |", "|---|---|", *rows])


def _codes(names: str) -> str:
    """Each flag between backquotes; flags that stand together stay together."""
    return ", ".join(f"`{name}`" for name in names.split(", "))
