"""Filters: what users write to choose messages."""

import pytest

from outmail.errors import Refused
from outmail.model import keyed_id
from outmail.policy.selection import parse, parse_size, select


def test_filters() -> None:
    terms = parse("state:queued -to:*@x.test 'subject:two words' larger:1MB", 0).terms
    assert [(t.field, t.value, t.negated) for t in terms] == [
        ("state", "queued", False),
        ("to", "*@x.test", True),
        ("subject", "two words", False),
        ("larger", 1_000_000, False),
    ]
    assert parse_size("50MB") == 50_000_000 and select(keyed_id("a"), 0).ids
    assert parse("state:deferred", 0).terms == parse("is:deferred", 0).terms
    for bad in ("state:unknown", "colour:red", "to:", "larger:big", "is:what", "'"):
        with pytest.raises(Refused):
            parse(bad, 0)
