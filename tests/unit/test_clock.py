"""Spans and instants, as users write and read them."""

import pytest

from outmail.clock import human_span, instant, parse_span


def test_spans_and_instants() -> None:
    assert parse_span("1d12h") == 129_600_000 and parse_span("1.5h") == 5_400_000
    assert instant("2h", 1000) == 7_201_000 and instant("2027-01-01T00:00:00Z", 0) == 1_798_761_600_000
    assert [human_span(ms) for ms in (42_000, 600_000, 7_500_000, 97_200_000)] == [
        "42s",
        "10m",
        "2h05m",
        "1d3h",
    ]
    for bad in ("", "5", "h", "2 hours", "2027-01-01"):
        with pytest.raises(ValueError):
            instant(bad, 0)
