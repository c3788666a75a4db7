"""A certificate's own words, read from DER; whatever the bytes are, reading them never fails."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from outmail.transport import certificate

AUTHORITY = trustme.CA(organization_name="Example CA")


def _der(*names: str, **words: object) -> bytes:
    made = AUTHORITY.issue_cert(*names, **words)  # type: ignore[arg-type]
    return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())


SAMPLE = _der("a.test", "b.test", "c.test", "d.test", not_after=datetime(2040, 2, 3, tzinfo=UTC))


def test_names_issuer_and_dates() -> None:
    seen = certificate.read(SAMPLE)
    assert sorted(seen.names) == ["a.test", "b.test", "c.test", "d.test"]
    assert seen.issuer.startswith("Example CA") and seen.ends == datetime(2040, 2, 3, tzinfo=UTC)
    assert str(seen).endswith("and 1 more by Example CA, valid until 3 Feb 2040")


@pytest.mark.parametrize("year", [1999, 2049, 2050, 2999])
def test_both_forms_of_dates(year: int) -> None:
    begins = datetime(1980, 1, 1, tzinfo=UTC)
    seen = certificate.read(_der("a.test", not_before=begins, not_after=datetime(year, 12, 31, tzinfo=UTC)))
    assert (seen.begins, seen.ends) == (begins, datetime(year, 12, 31, tzinfo=UTC))


def test_an_address_is_no_name_and_a_common_name_serves_where_there_are_none() -> None:
    assert certificate.read(_der("127.0.0.1", common_name="host.test")).names == ("host.test",)


@given(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255), st.integers(0, len(SAMPLE)))
def test_damaged_bytes_never_raise(at: int, byte: int, length: int) -> None:
    damaged = bytearray(SAMPLE)
    damaged[at] = byte
    certificate.read(bytes(damaged))
    certificate.read(bytes(damaged[:length]))


def test_nothing_is_nobodys() -> None:
    assert str(certificate.read(b"")) == "certificate for nobody"
