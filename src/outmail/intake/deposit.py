"""A message that a program handed to sendmail, on its way to the service: the words of its envelope and its
bytes.

Promises: `packed` and `unpacked` are each other's inverse; a word cannot add lines of its own. Loads
nothing: `sendmail` starts in milliseconds.
Fails: `ValueError` from `unpacked` for what `packed` did not make. Does not: check addresses, or touch
files.
"""

from __future__ import annotations

_HEAD = b"outmail deposit 1\n"
#: Lines of an envelope: one for each recipient. More are not even looked at.
MOST_LINES = 200_000
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
        return b"".join((_HEAD, "".join(lines).encode("utf-8", "surrogateescape"), b"\n", self.content))


def _word(text: str) -> str:
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("an address or a name contains a line break")
    return text


def unpacked(data: bytes) -> Deposit:
    head, empty, content = data.partition(b"\n\n")
    if not head.startswith(_HEAD) or not empty:
        raise ValueError("this is no deposit of outmail")
    if head.count(b"\n") > MOST_LINES:
        raise ValueError(f"this deposit's envelope has more than {MOST_LINES} lines")
    words: dict[str, str] = {}
    recipients: list[str] = []
    for line in head[len(_HEAD) :].decode("utf-8", "surrogateescape").split("\n"):
        word, _, value = line.partition(" ")
        if word == "recipient":
            recipients.append(value)
        elif word in (*_WORDS, "as-is") and word not in words:
            words[word] = value
        else:
            raise ValueError(f"a deposit has no word {word!r}, or has it twice")
    made = Deposit(content, recipients)
    for word in _WORDS:
        setattr(made, word, words.get(word, getattr(made, word)))
    made.as_is = "as-is" in words
    return made
