"""Secrets out of what goes into a mail: passwords in URLs, values after telling names, bearer tokens.

Promises: never raises, never lengthens a secret's neighbourhood beyond ``****``. Does not: find secrets without a telling name.
"""

from __future__ import annotations

import re
from dataclasses import replace

from outmail.reports.mail import Report, Section

_TELLING = r"(?:pass(?:word|phrase|wd)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|auth)"
_RULES = (
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/@]+@", re.I), r"\1:****@"),
    (re.compile(r"(\bauthorization\s*[:=]\s*(?:bearer|basic|token)?\s*)[^\s,;'\"]+", re.I), r"\1****"),
    (re.compile(r"(\b(?:bearer)\s+)[A-Za-z0-9._~+/=-]{8,}", re.I), r"\1****"),
    (re.compile(r"(['\"]?\b[\w-]*" + _TELLING + r"[\w-]*['\"]?\s*[=:]\s*)(['\"])(?:(?!\2).)*\2", re.I), r"\1\2****\2"),
    (re.compile(r"(\b[\w-]*" + _TELLING + r"[\w-]*\s*=\s*)[^\s'\"&,;)]+", re.I), r"\1****"),
    (re.compile(r"(--?[\w-]*" + _TELLING + r"[\w-]*\s+)[^\s'\"-][^\s'\"]*", re.I), r"\1****"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "****"),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}\b"), "****"),
)


def redacted(text: str) -> str:
    """``text`` without what looks like a secret."""
    for pattern, put in _RULES:
        text = pattern.sub(put, text)
    return text


def redacted_report(report: Report) -> Report:
    """The same report, every text of it redacted before it is laid out."""
    return replace(
        report, subject=redacted(report.subject), headline=redacted(report.headline), facts=[(label, redacted(value)) for label, value in report.facts],
        sections=[_section(section) for section in report.sections],
    )  # fmt: skip


def _section(section: Section) -> Section:
    return replace(section, title=redacted(section.title), pre=redacted(section.pre), text=redacted(section.text), table=[[redacted(cell) for cell in row] for row in section.table])
