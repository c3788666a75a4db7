"""Secrets are masked, by the table's own examples, and ordinary text is left alone."""

import base64
import threading
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outmail.policy import secrets
from outmail.policy.secrets import NOT_SECRET, examples, masked
from outmail.policy.veil import MASK, MOST, Veil

EXAMPLES = list(examples())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [pytest.param(text, wanted, id=f"{kind}-{n}") for n, (kind, text, wanted) in enumerate(EXAMPLES)],
)
def test_the_secret_of_an_example_is_masked_and_the_rest_stays(text: str, wanted: str) -> None:
    assert text != wanted
    assert masked(text) == wanted
    assert masked(wanted) == wanted, "masking twice changes nothing"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [pytest.param(text, wanted, id=str(n)) for n, (_, text, wanted) in enumerate(EXAMPLES)],
)
def test_it_is_masked_in_the_middle_of_a_report_too(text: str, wanted: str) -> None:
    before, after = "2026-11-24 17:20:58 INFO app: started\n", "\nall is well\n"
    found = masked(before + text + after)
    for part in wanted.split(MASK):
        assert part.strip() in found
    if not text.endswith("-----BEGIN RSA PRIVATE KEY-----"):
        assert text not in found and found.startswith(before)


def test_there_are_enough_kinds_and_each_has_an_example() -> None:
    assert len({text for _, text, _ in EXAMPLES}) >= 77
    assert {kind.name for kind in secrets.KINDS} == {kind for kind, _, _ in EXAMPLES}


@pytest.mark.parametrize("text", NOT_SECRET)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert masked(text) == text


@given(st.text(alphabet=st.characters(), max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_masked_without_error(text: str) -> None:
    assert isinstance(masked(text), str)
    assert "geheim" not in masked(f"{text}\npassword: geheim\n{text}")


@pytest.mark.parametrize("password", ["geheim-und-lang", "p w/d+ü", 'q"u\\o', "kurz"])
def test_a_known_password_is_masked_in_every_form(password: str) -> None:
    veil = Veil()
    veil.add_login("me", password)
    forms = [
        password,
        base64.b64encode(password.encode()).decode(),
        base64.b64encode(f"\0me\0{password}".encode()).decode(),
        quote(password, safe=""),
    ]
    for form in forms:
        assert veil.over(f"535 bad {form} !") == f"535 bad {MASK} !"
        assert veil.over_bytes(f"535 bad {form} !".encode()) == b"535 bad **** !"
    assert veil.over_bytes(b"535 no \xff") == b"535 no \xff"


def test_a_short_known_password_is_masked_as_a_word_only() -> None:
    veil = Veil("mail")
    assert veil.over("mailbox me@mail e-mail is mail!") == f"mailbox me@mail e-mail is {MASK}!"


def test_a_program_that_goes_through_many_passwords_does_not_grow_by_them() -> None:
    veil = Veil()
    for i in range(3000):
        veil.add(f"pass word/{i:06}")
    assert len(veil._forms) == MOST
    assert veil.over("it was pass word/002999, pass%20word%2F002998") == f"it was {MASK}, {MASK}"
    veil.add("pass word/002500")
    for i in range(3000, 3200):
        veil.add(f"pass word/{i:06}")
    assert veil.over("pass word/002500") == MASK, "what is used anew is among the newest"
    veil.add("of the configuration", lasting=True)
    for i in range(3000):
        veil.add(f"pass word/{i:06}")
    assert veil.over("of the configuration") == MASK and len(veil._forms) == MOST


def test_threads_that_add_at_the_same_time_lose_nothing_of_each_other() -> None:
    veil = Veil()

    def add(secrets: list[str]) -> None:
        for secret in secrets:
            veil.add(secret)

    adding = [
        threading.Thread(target=add, args=([f"secret of {n}, {i}" for i in range(60)],)) for n in range(4)
    ]
    for thread in adding:
        thread.start()
    while any(thread.is_alive() for thread in adding):
        veil.over("secret of 0, 1 and secret of 3, 59")
    assert all(veil.over(f"secret of {n}, {i}") == MASK for n in range(4) for i in range(60))


def test_an_empty_password_masks_nothing() -> None:
    veil = Veil("")
    veil.add_login("me", "")
    veil.add_said(b"")
    assert veil.over("a b") == "a b" and veil.over_bytes(b"a b") == b"a b"


def test_the_password_of_a_stores_url_is_known_once_it_is_opened() -> None:
    from outmail.errors import ConfigError
    from outmail.policy.veil import known
    from outmail.store import StoreError
    from outmail.wiring import open_source, open_store

    def claims(url: str) -> object:
        return open_source(url, "apsw").claims()

    for number, opened in enumerate((open_store, claims)):
        password = f"quite-{number}-secret-9"
        with pytest.raises((StoreError, ConfigError)):
            opened(f"postgresql://mail:{password}@127.0.0.1:1/mail?connect_timeout=1")
        assert known.over(f"it said {password}") == "it said ****"


def test_lines_that_could_be_a_keys_are_read_once() -> None:
    from time import thread_time

    text = ("A" * 17 + "\n") * 10_000 + "-----END CERTIFICATE-----"
    began = thread_time()
    assert masked(text) == text
    assert thread_time() - began < 1
