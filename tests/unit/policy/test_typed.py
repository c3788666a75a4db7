"""Times as people type them, on a Saturday at three in the afternoon."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.policy.typed import typed

NOW = datetime(2026, 11, 28, 15, 0)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("18:00", "2026-11-28T18:00"),
        ("9:00", "2026-11-29T09:00"),
        ("15:00", "2026-11-29T15:00"),
        ("9am", "2026-11-29T09:00"),
        ("6 pm", "2026-11-28T18:00"),
        ("12am", "2026-11-29T00:00"),
        ("12:30pm", "2026-11-29T12:30"),
        ("noon", "2026-11-29T12:00"),
        ("tomorrow", "2026-11-29T00:00"),
        ("tomorrow 9:00", "2026-11-29T09:00"),
        ("Tomorrow at 9:00", "2026-11-29T09:00"),
        ("9:00 tomorrow", "2026-11-29T09:00"),
        ("today 18:00", "2026-11-28T18:00"),
        ("monday", "2026-11-30T00:00"),
        ("fri 9:00", "2026-12-04T09:00"),
        ("saturday", "2026-12-05T00:00"),
        ("saturday 18:00", "2026-11-28T18:00"),
        ("2026-12-24", "2026-12-24T00:00"),
        ("2026-12-24 18:00", "2026-12-24T18:00"),
        ("2026-12-24T18:00", "2026-12-24T18:00"),
        ("2026-12-24T18:00:30", "2026-12-24T18:00:30"),
    ],
)
def test_what_people_type(text: str, meant: str) -> None:
    assert typed(text, NOW) == datetime.fromisoformat(meant)


@pytest.mark.parametrize(
    "text", ["2h", "", "soon", "5", "2026", "2026-12-24T18:00:00+01:00", "2026-12-24T18:00Z", "t", "1 2 3"]
)
def test_other_text_is_left_to_others(text: str) -> None:
    assert typed(text, NOW) is None


@pytest.mark.parametrize("text", ["25:00", "9:61", "13pm", "0am", "2026-02-30", "today"])
def test_what_cannot_be_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r"there is no|says no time"):
        typed(text, NOW)


@given(st.text(alphabet="0123456789: apmtodyrwTZ-", max_size=24))
def test_any_text_gives_a_moment_none_or_a_sentence(text: str) -> None:
    try:
        found = typed(text, NOW)
    except ValueError:
        return
    assert found is None or isinstance(found, datetime)
