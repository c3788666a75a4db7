"""How a report looks: in a list of mails, on a telephone, in plain text."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from outmail.reports import bar
from outmail.reports.mail import Course, Report, Section, as_html, as_text, sender_name, subject_line
from outmail.reports.post import words

LONG = "https://feeds.example.net/" + "a-very-long-path/" * 12
CODE = (
    '→   raise ValueError(f"{url} answered 503 three times, and the last of them took {seconds:.1f} seconds")'
)


def report(**changes: Any) -> Report:
    made = {
        "state": "failed",
        "subject": "s",
        "headline": f"crawl ended by ValueError: {LONG}.",
        "facts": [("Host", LONG)],
        "sections": [
            Section("Traceback", pre=CODE),
            Section("Rate", courses=[Course([float(i % 7) for i in range(400)], "up to 6/s")]),
            Section("Table", table=[["Key", "Count"], [LONG, "3"]]),
        ],
        "footer": ["Why: " + "because " * 30],
        "progress": (31_077, 48_000),
        "preview": "2 h 14 min, 31,077 of 48,000",
        **changes,
    }
    return Report(**made)


def test_plain_text_keeps_lines_of_code_and_long_words_whole() -> None:
    text = as_text(report())
    assert CODE in text.split("\n") and LONG in text
    for line in text.split("\n"):
        assert len(line) <= 78 or LONG in line or line == CODE
    assert text.startswith("FAILED: crawl ended by ValueError:")
    assert "  ███████████████████░░░░░░░░░░░  64 %: 31,077 of 48,000\n" in text


def test_nothing_is_wider_than_a_telephone() -> None:
    """Every element that holds a long word may break it; a drawing is one line that fits."""
    page = as_html(report())
    for holder in re.findall(rf'<[a-z]+[^>]*style="([^"]*)"[^>]*>[^<]*{re.escape(LONG[:60])}', page):
        assert "overflow-wrap:anywhere" in holder, holder
    assert page.count(LONG) >= 3
    drawings = re.findall(r"white-space:nowrap;overflow:hidden[^>]*>([▁-█]+)<", page)
    assert drawings and all(len(drawing) <= 30 for drawing in drawings)


def test_the_bar_is_drawn_and_the_numbers_stand_once() -> None:
    page = as_html(report(headline="crawl ended."))
    body = page.partition("<body")[2].partition("</div>")[2]  # behind the preview
    assert 'width="64%"' in body and body.count("31,077") == 1
    for done, cells in ((0, 1), (48_000, 1), (24_000, 2)):
        drawn = as_html(report(progress=(done, 48_000)))
        bar_of = drawn.partition('class="track"')[2].partition("</table>")[0]
        assert bar_of.count("<td") == cells
    assert 'class="track"' not in as_html(report(progress=(float("inf"), 5)))
    assert 'class="track"' not in as_html(report(progress=None))


def test_a_list_of_mails_shows_the_state() -> None:
    assert sender_name("crawl", report()) == "crawl ✗ failed"
    assert sender_name("crawl", report(state="progress", badge="30 %")) == "crawl ● 30 %"
    assert sender_name("crawl", report(state="reminder")) == "crawl ✗ still failing"
    assert sender_name("x" * 99, report(state="finished")).endswith("… ✓ finished"), (
        "the state is not cut off"
    )
    page = as_html(report())
    assert re.search(r"display:none[^>]*>2 h 14 min, 31,077 of 48,000(&nbsp;&zwnj;){50}", page)
    line = subject_line("failed", "crawl failed: ValueError: " + "x" * 99, "web1")
    assert line.startswith("✗ crawl failed: ValueError: x") and line.endswith("… [web1]") and len(line) == 60


@pytest.mark.parametrize(
    "state", ["started", "finished", "failed", "stopped", "dead", "recovered", "stalled"]
)
def test_the_headline_does_not_repeat_the_chip(state: str) -> None:
    page = as_html(report(state=state, headline="crawl took 2 h."))
    chip = re.search(r"text-transform:uppercase;color:#\w+\">([^<]*)<", page)
    assert chip is not None and chip[1] == state
    assert as_text(report(state=state, headline="crawl took 2 h.")).startswith(
        f"{state.upper()}: crawl took 2 h."
    )


def test_the_sender_of_a_report_has_no_address_in_its_name() -> None:
    made = words(report(), to=("a@x",), kind="jobs", name="me@host", run="1")
    assert made["author"] == "me at host ✗ failed"


# -- the bar -------------------------------------------------------------------------------------------------


def test_a_notebook_has_a_bar_too(monkeypatch: pytest.MonkeyPatch) -> None:
    job: Any = SimpleNamespace(name="j", total=3, done=0, initial=0, rate=0.0, eta=None, elapsed=1.0)
    assert bar.Bar.wanted(None, job) is None
    kernel = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    found = bar.Bar.wanted(None, job)
    assert found is not None and bar.Bar.wanted(False, job) is None
    found.close()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert bar.Bar.wanted(None, job) is None, "a shell is a terminal or none"


def test_a_finished_bar_says_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    job: Any = SimpleNamespace(name="j", total=60, done=60, initial=0, rate=10.0, eta=(0.0, 0.0), elapsed=6.0)
    found = bar.Bar.wanted(True, job)
    assert found is not None
    found.show()
    found.close()
    shown = capsys.readouterr().err
    assert "remaining" not in shown and shown.endswith("j: 60 of 60 (100 %), 10.0/s, in 6.0 s\n")
