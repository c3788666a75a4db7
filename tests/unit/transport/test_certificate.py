"""A certificate's own words, read from DER; whatever the bytes are, reading them never fails."""

from __future__ import annotations

import ssl
from dataclasses import replace
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


NOW = datetime(2026, 11, 28, tzinfo=UTC)


def _seen(begins: int, ends: int, name: str = "a.test") -> certificate.Certificate:
    made = certificate.read(
        _der(name, not_before=datetime(begins, 1, 1, tzinfo=UTC), not_after=datetime(ends, 1, 1, tzinfo=UTC))
    )
    return replace(made, issuer="Example CA")


@pytest.mark.parametrize(
    ("said", "seen", "told"),
    [
        (
            "certificate has expired",
            _seen(2020, 2025),
            "certificate has expired (valid until 1 Jan 2025, for a.test by Example CA)",
        ),
        (
            "certificate has expired",
            _seen(2020, 2030),
            "certificate has expired, though not the server's own (valid until 1 Jan 2030, for a.test by "
            "Example CA)",
        ),
        (
            "certificate is not yet valid",
            _seen(2029, 2030),
            "certificate is not yet valid (valid from 1 Jan 2029 until 1 Jan 2030, for a.test by Example CA)",
        ),
        (
            "Hostname mismatch, certificate is not valid for 'b.test'.",
            certificate.Certificate(),
            "Hostname mismatch, certificate is not valid for 'b.test'",
        ),
    ],
)
def test_why_one_is_not_trusted(said: str, seen: certificate.Certificate, told: str) -> None:
    assert certificate.distrusted(said, seen, NOW) == told


def test_names_that_somebody_made_too_long_are_cut() -> None:
    seen = replace(_seen(2020, 2025), names=("n" * 5000,) * 9, issuer="i" * 5000)
    assert len(str(seen)) < 600 and len(certificate.distrusted("certificate has expired", seen, NOW)) < 600
