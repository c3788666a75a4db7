"""Every way a recipient may stand has its sentences."""

from __future__ import annotations

import pytest

from outmail import lifecycle
from outmail.model import Attempt, RecipientStatus, Reply, Status
from outmail.policy.story import relay_told, told

NOW = 1_800_000_000_000
ID = "0" * 26


def tell(state: str, reason: str = "", *tries: Reply, **words: object) -> str:
    given = {"uncertain": False, "next_try_at": None, **words}
    outcome = {"delivered": "delivered", "failed": "refused"}.get(state, "deferred")
    attempts = [Attempt(NOW, (1,), "default", "mx.test", 5, outcome, reply, ()) for reply in tries]
    r = RecipientStatus(
        1,
        "a@x.test",
        state,  # type: ignore[arg-type]
        bool(given["uncertain"]),
        reason,
        len(tries),
        given["next_try_at"],  # type: ignore[arg-type]
        "default",
        tries[-1] if tries else None,
    )
    status = Status(ID, "", "", "", 1, "", None, None, "normal", NOW, NOW + 9, (r,))
    return " ".join(told(status, r, attempts, NOW, lambda ms: f"{ms - NOW}"))


GREY = Reply(451, "Greylisted", "4.7.1")
GONE = Reply(550, "user unknown in virtual mailbox table", "5.1.1")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (tell("queued"), "nobody has tried it yet"),
        (tell("queued", "451", GREY, next_try_at=NOW + 60), "Next try at 60; given up at 9"),
        (tell("queued", "451", GREY, next_try_at=NOW + 60), "greylisting"),
        (tell("queued", "451", GREY, next_try_at=NOW + 60), f"outmail queue retry {ID}"),
        (tell("queued", "451", GREY, GREY), "after 2 tries"),
        (tell("queued", "", GREY), "take the route default now"),
        (tell("queued", "lost", GREY, uncertain=True), "may have arrived"),
        (tell("sending"), "sending it at this moment"),
        (tell("held", "operator"), f"outmail queue release {ID}"),
        (tell("held", "poison"), "three engines died"),
        (tell("held", "uncertain", uncertain=True), f"outmail queue cancel {ID}"),
        (tell("held", "corrupt: x"), "corrupt: x"),
        (tell("failed", "550", GONE), "At 0 mx.test said: “550 5.1.1 user unknown"),
        (tell("failed", "550", GONE), "no such mailbox"),
        (tell("failed", "attempts used up (1); last: 451", GREY), "given up after one try"),
        (tell("failed", "safety"), "only_to"),
        (tell("failed", "too old"), f"outmail queue requeue {ID}"),
        (tell("cancelled", lifecycle.BY_OPERATOR), "cancelled by operator"),
        (tell("cancelled", lifecycle.REPLACED), "newer message"),
        (tell("delivered", "", Reply(250, "ok")), "At 0 mx.test said: “250 ok”"),
        (tell("delivered", "confirmed", uncertain=True), "arrived twice"),
    ],
)
def test_sentences(said: str, words: str) -> None:
    assert words in said


def test_every_state_has_one() -> None:
    for state in lifecycle.STATES:
        assert tell(state, "why")


def test_a_relay_that_takes_nothing() -> None:
    said = relay_told("mx.test", "14:02", "smtp://mx.test:25: certificate has expired", 41)
    assert said == (
        "Relay mx.test takes nothing since 14:02: its certificate has expired. Ask its operator to renew it. "
        "41 recipients wait for it, and are sent when it answers again."
    )
    assert "password" in relay_told("mx.test", "14:02", "535 5.7.8 authentication failed", 1)
    assert relay_told("mx.test", "14:02", "odd words", 0).endswith("14:02: odd words.")
