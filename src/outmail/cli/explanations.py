"""Explanations for ``outmail explain``: outmail's own codes (of `Refused` and JSON errors), SMTP codes, and
replies.

Promises: pure; works offline. Does not: know SMTP's codes (`policy.reply_codes`) or servers' texts
(`policy.reply_texts`).
"""

from __future__ import annotations

import difflib

from outmail.policy.replies import explained, parsed
from outmail.policy.reply_codes import BASIC, CLASSES, ENHANCED

CODES = {
    "bad-address": "An address is not of the form name@domain (RFC 5321), or contains a character that is "
    "not allowed in an envelope.",
    "bad-argument": "An argument has a wrong value; the message names the argument and what is possible.",
    "bad-attachment": "An attachment is neither a readable file nor (name, bytes[, type]).",
    "bad-certificate": "A certificate does not hold: it was changed, is by another key, or is none.",
    "bad-content": "The message's bytes cannot be mail: a NUL, a bare carriage return, or no header field in "
    "the first line.",
    "bad-filter": "A filter has an unknown word or a value that cannot be read. See: outmail queue --help",
    "bad-header": "A header field has a line break, a control character, a malformed name, or over-long "
    "words that may not be encoded.",
    "config": "A setting is wrong; the message names file and key.",
    "exists": "The file exists already. outmail overwrites nothing.",
    "loop": "The message has passed too many servers already: it goes round in a circle.",
    "no-outbox-table": "using= needs the table outmail_outbox in your database: create it with the SQL that "
    "`outmail store ddl` prints.",
    "no-recipient": "No recipient was given.",
    "not-found": "No message with this id is in the store; its record may have been purged ([retention] "
    "records).",
    "store-busy": "Another program held the store's write lock for too long. Nothing was stored; try again.",
    "store-conflict": "Another program wrote the same at the same moment, three times in a row. Nothing was "
    "stored; try again.",
    "store-corrupt": "The store's file is damaged, or is no outmail store. Run: outmail store check",
    "store-forbidden": "The store cannot be opened: the folder is missing or permissions forbid it. Nothing "
    "was stored.",
    "store-full": "The disk is full. Nothing was stored; what was accepted before is safe.",
    "store-io": "The disk reported an error, or the database's server cannot be reached. Nothing was stored, "
    "unless the text says that it may have been.",
    "store-missing": "A long message is written in pieces first. Each time these were gone before the "
    "message was complete. Nothing was stored; try again.",
    "store-other": "The store reported an unexpected error. Nothing was stored.",
    "store-readonly": "The store's file or file system is read-only. Nothing was stored.",
    "store-schema": "The store was made by a later version of outmail; upgrade outmail.",
    "too-late": "The message was tried already, or its content is gone: it cannot be changed any more.",
    "too-large": "The message is larger than [limits] message_size.",
    "too-many-recipients": "The message has more recipients than [limits] recipients.",
}


def explanation(text: str) -> list[str] | None:
    """Lines about a code, or about a reply that somebody pastes; None when it is unknown."""
    if text in CODES:
        return [CODES[text]]
    reply = parsed(text)
    found = explained(reply)
    if found is None:
        return None
    who = f"{found.who} says so. " if found.who and found.who != "this machine" else ""
    lines = [f"{who}{found.cause}"]
    first = (reply.enhanced or str(reply.code or ""))[:1]
    if first in CLASSES and (reply.enhanced or first != "2"):
        lines.append(CLASSES[first])
    if found.remedy:
        lines.append(f"What to do: {found.remedy}")
    return lines


def unknown(text: str) -> str:
    """The answer when `explanation` knows nothing."""
    near = difflib.get_close_matches(text, CODES, 1)
    meant = f"; did you mean {near[0]}?" if near else "."
    return (
        f"outmail: nothing is known of {text!r}{meant} Known are SMTP's codes ({min(BASIC)} to {max(BASIC)}, "
        f"{len(ENHANCED)} such as 5.1.1), replies of servers as they are, and {', '.join(sorted(CODES))}"
    )
