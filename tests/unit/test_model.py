"""Ids: in order of time, or from a key."""

from dataclasses import replace
from datetime import UTC, datetime

from outmail.model import Receipt, RecipientStatus, Status, is_id, keyed_id, new_id


def test_ids() -> None:
    ids = [new_id(now) for now in range(1_700_000_000_000, 1_700_000_000_050)]
    assert ids == sorted(ids) and all(is_id(id) and len(id) == 26 for id in ids)
    assert (
        keyed_id("a") == keyed_id("a") != keyed_id("b")
        and is_id(keyed_id("a") + "/3")
        and not is_id("state:queued")
    )


def test_what_an_interactive_session_shows_is_readable() -> None:
    receipt = Receipt("06h0", "<06h0@x>", datetime(2026, 11, 28, 7, 30, tzinfo=UTC), duplicate=True)
    assert repr(receipt) == "<Receipt 06h0, accepted 2026-11-28 07:30:00Z, durable, duplicate>"
    one = RecipientStatus(1, "a@x", "queued", False, "", 0, None, "default", None)
    status = Status("06h0", "<06h0@x>", "me@x", "Hello", 1, "", None, None, "normal", 0, 0, (one,) * 5)
    assert repr(status) == "<Status 06h0 queued: 'Hello' to a@x queued, a@x queued, a@x queued, and 2 more>"
    assert repr(replace(status, recipients=())).startswith("<Status 06h0")
