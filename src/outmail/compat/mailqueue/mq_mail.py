"""``mq-mail``: a text on stdin becomes a message that is on disk when it ends, and on its way.

Where it goes, and what is promised: as `mq_sendmail`. Without an ini file it is outmail's `mail`.
"""

from __future__ import annotations

import sys

from outmail.compat.mailqueue.mq_sendmail import (
    Aliases,
    Asked,
    guarded,
    ini_of,
    keep,
    own_words,
    sender_of,
    without_ini,
)
from outmail.unix import flags

TYPE_CHECKING = False  # as in typing, without the price of importing it

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """\
usage: mq-mail [-s SUBJECT] [-r SENDER] RECIPIENT ... < text

  -s, --subject=SUBJECT      the subject
  -r, --from-address=ADDRESS the sender; else `from` of the ini file
  --aliases=FILE             aliases(5) for bare names; else /etc/aliases
  -C, --config=CFG           the ini file of mailqueue-runner
  -v, --verbose              wait for the server, and show the dialogue
  -Ssendwait, -Snosendwait   ignored
"""


def main(argv: list[str] | None = None) -> int:
    """The entry point of mq-mail; returns the exit status."""
    return guarded("mq-mail", _mail, sys.argv[1:] if argv is None else argv)


def _mail(words: list[str]) -> int:
    named = {"aliases": "aliases", "config": "C", "subject": "s", "from-address": "r"}
    asked = own_words(words, named, ())
    recipients = _letters(asked)
    if asked.values.get("help"):
        print(HELP, end="")
        return 0
    if not recipients:
        raise flags.UsageError("no recipient: name one behind the flags")
    ini = ini_of(asked.values.get("C"))
    sender, subject = asked.values.get("r"), asked.values.get("s")
    if ini is None:
        from outmail.unix import mail as unix_mail

        without_ini("mq-mail", asked)
        options = [
            word for flag, value in (("-s", subject), ("-r", sender)) if value for word in (flag, value)
        ]
        return unix_mail.main([*options, *recipients])
    aliases = Aliases("mq-mail", asked.aliases)
    sender, people = sender_of(sender, ini, aliases), aliases.all(recipients)
    content = _composed(sender, people, subject or "", sys.stdin.buffer.read())
    return keep("mq-mail", ini, sender, people, content, verbose=asked.verbose)


def _letters(asked: Asked) -> list[str]:
    """The short options of mq-mail; returns the recipients."""
    rest = asked.rest
    people: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return people + rest
        if word in ("-h", "--help"):
            asked.values["help"] = "1"
        elif word in ("-v", "--verbose"):
            asked.verbose = True
        elif word in ("-Ssendwait", "-Snosendwait"):
            pass
        elif word[:2] in ("-s", "-r", "-C"):
            if len(word) == 2 and not rest:
                raise flags.UsageError(f"{word} needs a value")
            asked.values[word[1]] = word[2:] or rest.pop(0)
        elif word.startswith("-") and len(word) > 1:
            raise flags.UsageError(f"{word} is no option of mq-mail")
        else:
            people.append(word)
    return people


def _composed(sender: str, people: Sequence[str], subject: str, text: bytes) -> bytes:
    """A text and its subject → a message."""
    from outmail.clock import Clock
    from outmail.intake import api
    from outmail.system import host

    name = host.full_name()
    draft = api.composed(
        Clock().now(),
        name,
        name,
        to=people,
        subject=subject,
        text=text.decode("utf-8", "replace"),
        sender=sender,
    )
    return draft.content


if __name__ == "__main__":
    sys.exit(main())
