"""Where addresses stand in the address list of a header field."""

from __future__ import annotations

from email.utils import formataddr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outmail.mime.mailboxes import addresses, spans


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("a@x.test", ["a@x.test"]),
        (" a@x.test ,\r\n\tb@x.test", ["a@x.test", "b@x.test"]),
        ('"Doe, Jane" <jane@x.test>, John <john@x.test>', ["jane@x.test", "john@x.test"]),
        ("=?utf-8?q?a=2Cb=3Cc=3E?= <a@x.test>", ["a@x.test"]),
        ("root (the (real) one, <x@y>), John", ["root", "John"]),
        ("team: a@x.test, B <b@x.test>;, c@x.test", ["a@x.test", "b@x.test", "c@x.test"]),
        ("undisclosed-recipients:;", []),
        ("<@relay.test,@other.test:a@x.test>", ["a@x.test"]),
        ('"a, b"@x.test, <"c>d"@x.test>', ['"a, b"@x.test', '"c>d"@x.test']),
        ("a@[IPv6:::1], b@[1.2.3.4]", ["a@[IPv6:::1]", "b@[1.2.3.4]"]),
        ("<>, , ,", []),
        ("J\\, Doe <j@x.test>", ["j@x.test"]),
        ("a@x.test (never closed", ["a@x.test"]),
        ("A <a@x.test", ["a@x.test"]),
        ('"never closed <a@x.test>', ['"never closed <a@x.test>']),
        ("John Doe", ["John Doe"]),
    ],
)
def test_addresses_are_told_from_all_else_by_syntax(value: str, found: list[str]) -> None:
    assert addresses(value) == found


def test_each_is_found_where_it_stands() -> None:
    value = '"A, b" <a@x.test>, root (me),\r\n c@x.test'
    assert [value[start:end] for start, end, _ in spans(value)] == ["a@x.test", "root", "c@x.test"]


@given(
    st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20), min_size=1, max_size=5)
)
def test_display_names_of_any_kind_hide_no_address(names: list[str]) -> None:
    people = [formataddr((name, f"user{i}@x.test")) for i, name in enumerate(names)]
    assert addresses(", ".join(people)) == [f"user{i}@x.test" for i in range(len(names))]


@given(st.text('"\\()<>[],;:@. \r\nab', max_size=200))
def test_no_text_raises_and_what_is_found_stands_there(value: str) -> None:
    last = 0
    for start, end, address in spans(value):
        assert last <= start <= end <= len(value) and value[start:end] == address
        last = end


def test_a_hundred_thousand_brackets_take_linear_time() -> None:
    for letter in '(<["':
        assert len(spans(letter * 100_000)) <= 1
