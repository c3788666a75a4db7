"""How a recipient stands, as sentences for a person: what happened, what it means, what comes next, and the
command for it.

Promises: pure: times come in as milliseconds and go out through the words of whoever asks (``when``); every
state and reason that a store can hold has its sentence.
Does not: look at the queue, or know the state of next hops (who asks adds that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outmail.lifecycle import REPLACED
from outmail.model import Attempt, RecipientStatus, Status
from outmail.policy.replies import explained, parsed, trouble

When = Callable[[int], str]


def told(status: Status, r: RecipientStatus, attempts: Sequence[Attempt], now: int, when: When) -> list[str]:
    """Sentences about one recipient of ``status``; ``attempts`` are those of the message, oldest first."""
    mine = [a for a in attempts if r.n in a.recipients and a.outcome != "returned"]
    last = mine[-1] if mine else None
    name = f"{status.id}/{r.n}" if len(status.recipients) > 1 else status.id
    sentences = _STATES[r.state](status, r, last, now, when, name)
    if r.uncertain and r.state not in ("delivered", "held"):
        sentences.append(
            "It may have arrived all the same: once a message was sent whole and no answer came back."
        )
    return sentences


def _queued(
    status: Status, r: RecipientStatus, last: Attempt | None, now: int, when: When, name: str
) -> list[str]:
    found = []
    if last is None:
        found.append("It waits, and nobody has tried it yet.")
    elif not r.reason:
        found.append(f"It waits after {_times(r.attempts)}; it is to take the route {r.route} now.")
    else:
        found += [f"It waits after {_times(r.attempts)}. {_said(last, when)}", *_meaning(last)]
    due = r.next_try_at or now
    if due > now:
        found.append(f"Next try at {when(due)}; given up at {when(status.expires_at)}.")
        found.append(f"To try it at once: outmail queue retry {name}")
    elif last is None or r.reason:
        found.append("It is due now, and goes out with the next run of an engine.")
    return found


def _sending(
    status: Status, r: RecipientStatus, last: Attempt | None, now: int, when: When, name: str
) -> list[str]:
    return ["An engine is sending it at this moment."]


def _held(
    status: Status, r: RecipientStatus, last: Attempt | None, now: int, when: When, name: str
) -> list[str]:
    again = f"To let it go on: outmail queue release {name}"
    if r.reason == "operator":
        return ["An operator holds it.", again]
    if r.reason == "poison":
        return [
            "It is held because three engines died while they worked on it.",
            f"Look at what it is: outmail show {status.id} --raw",
            again,
        ]
    if r.reason == "uncertain":
        return [
            "It is held because it may have arrived: it was sent whole, and no answer came back.",
            "Ask the recipient.",
            f"If it did not arrive: outmail queue release {name}",
            f"If it did: outmail queue cancel {name}",
        ]
    return [f"It is held: {r.reason}.", again]


def _failed(
    status: Status, r: RecipientStatus, last: Attempt | None, now: int, when: When, name: str
) -> list[str]:
    again = f"To send it once more: outmail queue requeue {name}"
    if r.reason == "safety":
        return [
            "It was not sent, because [safety] only_to in the configuration does not allow this address.",
            again,
        ]
    if last is None:
        return [f"It failed without an attempt: {r.reason}.", again]
    given_up = r.reason.startswith(("attempts used up", "too old"))
    why = f"It was given up after {_times(r.attempts)}." if given_up else "It failed."
    return [f"{why} {_said(last, when)}", *_meaning(last), again]


def _cancelled(
    status: Status, r: RecipientStatus, last: Attempt | None, now: int, when: When, name: str
) -> list[str]:
    if r.reason == REPLACED:
        return ["A newer message took its place."]
    return [f"It was {r.reason}.", f"To send it after all: outmail queue requeue {name}"]


def _delivered(
    status: Status, r: RecipientStatus, last: Attempt | None, now: int, when: When, name: str
) -> list[str]:
    found = [f"It was delivered. {_said(last, when)}" if last else "It was delivered."]
    if r.uncertain:
        found.append("It may have arrived twice: an earlier try was sent whole and got no answer.")
    return found


_STATES = {
    "queued": _queued,
    "sending": _sending,
    "held": _held,
    "failed": _failed,
    "cancelled": _cancelled,
    "delivered": _delivered,
}


def _times(n: int) -> str:
    return "one try" if n == 1 else f"{n} tries"


def _said(last: Attempt, when: When) -> str:
    """What came of the last attempt."""
    if last.reply.code:
        return f"At {when(last.at)} {last.where} said: “{last.reply}”."
    if last.outcome == "unknown":
        return f"At {when(last.at)} {last.where} did not answer the end of the message: {last.reply.text}."
    return f"At {when(last.at)}: {last.reply.text}."


def _meaning(last: Attempt) -> list[str]:
    found = explained(last.reply)
    if found is None:
        return []
    return [found.cause, *([found.remedy] if found.remedy else [])]


def relay_told(name: str, since: str, text: str, waiting: int = 0, last: str = "") -> str:
    """Sentences about a next hop that takes nothing. ``text``: the trouble; ``waiting``: how many
    recipients; ``last``: when it was tried last, where nobody tries it now.
    """
    cause, remedy = trouble(text) or _by_reply(text)
    takes = f"took nothing when it was tried last, at {last}" if last else f"takes nothing since {since}"
    sentences = [f"Relay {name} {takes}: {cause.rstrip('.')}.", remedy]
    if waiting == 1:
        sentences.append("One recipient waits for it, and is sent when it answers again.")
    elif waiting:
        sentences.append(f"{waiting} recipients wait for it, and are sent when it answers again.")
    return " ".join(filter(None, sentences))


def _by_reply(text: str) -> tuple[str, str]:
    """Trouble that a server told by a reply, such as a wrong password."""
    found = explained(parsed(text))
    return (f"“{text}”", f"{found.cause} {found.remedy}".strip()) if found else (text, "")
