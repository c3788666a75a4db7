"""A message that a program handed to sendmail, on its way to the service: the words of its envelope and its
bytes.

Promises: `packed` and `unpacked` are each other's inverse; a word cannot add lines of its own. An envelope
has at most `MOST_LINES` lines, `ENVELOPE` bytes, and `LONGEST` characters in a word. Loads nothing:
`sendmail` starts in milliseconds.
Fails: `ValueError` from `packed` for an envelope that is too long, and from `unpacked` for what `packed` did
not make; its text is short and printable, whatever the bytes are. Does not: check addresses, or touch files.
"""

from __future__ import annotations

_HEAD = b"outmail deposit 1\n"
#: Lines of an envelope: one for each recipient. More are not even looked at.
MOST_LINES = 200_000
#: Bytes of an envelope. Nothing behind them is looked at to find its end.
ENVELOPE = 8_000_000
#: Characters of one word. An address has at most 254; to write a name of megabytes takes minutes.
LONGEST = 10_000
#: Words that may be there once; recipients come as often as there are.
_WORDS = ("user", "sender", "name", "notify", "ret", "envid")


class Deposit:
    """``sender`` None: not given. ``user``: the login name of whoever handed it in. ``as_is``: no address is
    qualified (-G).
    """

    def __init__(
        self,
        content: bytes,
        recipients: list[str],
        *,
        user: str = "",
        sender: str | None = None,
        name: str = "",
        notify: str = "",
        ret: str = "",
        envid: str = "",
        as_is: bool = False,
    ) -> None:
        self.content = content
        self.recipients = recipients
        self.user = user
        self.sender = sender
        self.name = name
        self.notify = notify
        self.ret = ret
        self.envid = envid
        self.as_is = as_is

    def packed(self) -> bytes:
        lines = [
            f"{word} {_word(getattr(self, word))}\n" for word in _WORDS if getattr(self, word) is not None
        ]
        lines += [f"recipient {_word(recipient)}\n" for recipient in self.recipients]
        if self.as_is:
            lines.append("as-is 1\n")
        envelope = "".join(lines).encode("utf-8", "surrogateescape")
        if len(lines) > MOST_LINES or len(_HEAD) + len(envelope) > ENVELOPE:
            raise ValueError(
                f"the message has {len(self.recipients)} recipients, and its envelope {len(envelope)} bytes; "
                f"sendmail takes {MOST_LINES} lines and {ENVELOPE} bytes: send it in parts"
            )
        return b"".join((_HEAD, envelope, b"\n", self.content))


def _word(text: str) -> str:
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("an address or a name contains a line break")
    if len(text) > LONGEST:
        raise ValueError(f"an address or a name has {len(text)} characters; sendmail takes {LONGEST}")
    return text


def unpacked(data: bytes) -> Deposit:
    """The inverse of `packed`. Raises `ValueError`."""
    end = data.find(b"\n\n", 0, ENVELOPE + 2)
    if not data.startswith(_HEAD) or end < 0:
        raise ValueError("is no deposit of outmail")
    head = data[:end]
    if head.count(b"\n") > MOST_LINES:
        raise ValueError(f"is a deposit whose envelope has more than {MOST_LINES} lines")
    words: dict[str, str] = {}
    recipients: list[str] = []
    for line in head[len(_HEAD) :].decode("utf-8", "surrogateescape").split("\n"):
        word, _, value = line.partition(" ")
        if len(value) > LONGEST:
            raise ValueError(f"is a deposit with a word of more than {LONGEST} characters")
        if word == "recipient":
            recipients.append(value)
        elif word in (*_WORDS, "as-is") and word not in words:
            words[word] = value
        else:
            raise ValueError(f"is a deposit with the word {word[:40]!r}, which it may not have, or not twice")
    made = Deposit(data[end + 2 :], recipients)
    for word in _WORDS:
        setattr(made, word, words.get(word, getattr(made, word)))
    made.as_is = "as-is" in words
    return made
