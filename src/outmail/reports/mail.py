"""A report as a value, and its rendering as text and as HTML, light and dark.

Promises: the text part is complete by itself. Its sentences are wrapped at 78 columns; words and lines of
code or output stay whole. The HTML is one column that fits a telephone (375 px), with inline CSS and no
remote content. Everything from outside is made safe in one place (`safe`): it is bounded, odd characters are
shown as escapes, secrets are masked, and HTML is escaped. So any text can be reported. Both parts have the
same facts. A list of mails shows the state in the sender's name (`sender_name`), in the subject of mails
outside the run's thread (`subject_line`), and in the preview. Templates can be replaced: a folder with
``report.txt`` and ``report.html`` (or ``failed.txt`` …, by state), which `string.Template` fills with
$subject, $state, $chip, $headline, $preview, $progress, $facts, $sections and $footer.
Does not: send, thread, or decide anything.
"""

from __future__ import annotations

import html
import logging
import os
import re
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from string import Template
from typing import Literal

from outmail.policy.plain import plain, plain_line
from outmail.policy.progress import percent, sparkline
from outmail.policy.secrets import masked
from outmail.system import trust

log = logging.getLogger("outmail")

WIDTH = 78
SUBJECT = 60
#: Characters of one section, and of the whole text part.
SECTION_LIMIT = 20_000
BODY_LIMIT = 100_000

State = Literal[
    "started",
    "progress",
    "finished",
    "failed",
    "stopped",
    "stalled",
    "dead",
    "late",
    "recovered",
    "reminder",
    "digest",
]
_TONE = {
    "started": "info", "progress": "info", "finished": "good", "recovered": "good", "failed": "bad",
    "dead": "bad", "reminder": "bad", "late": "warn",
    "stalled": "warn", "stopped": "warn", "digest": "warn",
}  # fmt: skip
#: The mark of a state in a list of mails, and its name for people where that differs.
_MARK = {
    "started": "▶", "progress": "●", "finished": "✓", "recovered": "✓", "failed": "✗", "dead": "✗",
    "reminder": "✗", "stopped": "■", "stalled": "●", "late": "!", "digest": "●",
}  # fmt: skip
_CALLED = {"reminder": "still failing"}
_COLOUR = {"info": "#2563a8", "good": "#1f7a3d", "bad": "#b3261e", "warn": "#8a5a00"}
#: How many more characters than shown are looked at, so that no secret is cut in two before it is masked.
_MARGIN = 16_000
#: The note about what was left out may exceed a limit by this.
_NOTE = 60
#: Sequences that only colour text or move the cursor are removed; any other escape is shown.
_TERMINAL = re.compile(r"\x1b\[[0-9;?]{0,30}[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Course:
    """A series of values over time, to be drawn small, and the remark beside it."""

    values: Sequence[float]
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part with a title: lines of text kept as they are (``pre``), running text, a table whose first row is
    its header, or courses.
    """

    title: str
    pre: str = ""
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    courses: Sequence[Course] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a mail. ``headline``: one sentence, which need not name the state. ``progress``: items
    done, and in all. ``badge``: what the sender's name says instead of the state's name. ``preview``: what a
    list of mails shows after the subject. ``footer``: why the reader got it.
    """

    state: State
    subject: str
    headline: str
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = ()
    footer: Sequence[str] = field(default=())
    progress: tuple[float, float] | None = None
    badge: str = ""
    preview: str = ""

    @property
    def called(self) -> str:
        """The state's name for people."""
        return _CALLED.get(self.state, self.state)


def sender_name(name: str, report: Report) -> str:
    """The sender's name with the state: ``crawl ✓ finished``, ``crawl ● 30 %``."""
    return f"{one_line(name, 40)} {_MARK[report.state]} {one_line(report.badge, 20) or report.called}"


def subject_line(state: State, text: str, where: str) -> str:
    """A subject outside the thread, ``✗ crawl failed: ValueError: … [web1]``. The text may be cut, the host
    is not.
    """
    end = f" [{one_line(where, 20)}]"
    return one_line(f"{_MARK[state]} {text}", SUBJECT - len(end)) + end


def safe(text: str, limit: int = SECTION_LIMIT) -> str:
    """The beginning of any text, safe for a mail: without terminal sequences, odd characters as escapes,
    secrets masked.
    """
    text = text[: limit + _MARGIN]
    if "\x1b" in text:
        text = _TERMINAL.sub("", text)
    return masked(plain(text.replace("\r\n", "\n").replace("\r", "\n")).expandtabs(8))[: limit + _NOTE]


def named(text: str) -> str:
    """The name of a job, a handler or a key: one line that can be stored, compared and shown."""
    return plain_line(text[:1000]).strip()[:200]


def local_time(ms: int) -> str:
    """An instant in this machine's local time, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(ms / 1000))


def one_line(text: str, limit: int = SUBJECT) -> str:
    """For a subject: one line, at most ``limit`` characters, cut at the end with an ellipsis."""
    text = " ".join(safe(text, limit).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def bounded(text: str, limit: int = SECTION_LIMIT) -> str:
    """The end of a long text, with how much was left out before it."""
    end = safe(text[-(limit + _MARGIN) :], limit + _MARGIN).strip("\n")
    if len(text) <= limit + _NOTE and len(end) <= limit + _NOTE:
        return end
    return f"(… {max(len(text), len(end)) - limit:,} characters left out)\n" + end[-limit:]


# -- text ----------------------------------------------------------------------------------------------------

_TEXT = Template("$opening\n\n$progress$facts$sections$footer")
_BAR = 30


def as_text(report: Report, templates: str = "") -> str:
    """The text part."""
    headline = safe(report.headline)
    footer = (
        "-- \n" + "\n".join(_wrapped(safe(line)) for line in report.footer) + "\n" if report.footer else ""
    )
    made = _template(templates, report.state, "txt", _TEXT).safe_substitute(
        subject=one_line(report.subject),
        state=report.state,
        chip=report.called.upper(),
        opening=_wrapped(f"{report.called.upper()}: {headline}"),
        headline=_wrapped(headline),
        preview=one_line(report.preview or report.headline, 200),
        progress=_text_bar(report.progress),
        facts=_text_facts(report.facts),
        sections="".join(_text_section(section) for section in report.sections),
        footer=footer,
    )
    return made if len(made) <= BODY_LIMIT else made[:BODY_LIMIT] + "\n(… cut here)\n"


def _text_bar(progress: tuple[float, float] | None) -> str:
    if progress is None or (part := percent(*progress)) is None:
        return ""
    full = _BAR * min(100, max(0, part)) // 100
    return f"  {'█' * full}{'░' * (_BAR - full)}  {part} %: {_of(progress)}\n\n"


def _of(progress: tuple[float, float]) -> str:
    return f"{progress[0]:,} of {progress[1]:,}"


def _text_facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    facts = [(one_line(label), safe(value)) for label, value in facts]
    width = min(30, max(len(label) for label, _ in facts)) + 2
    lines = []
    for label, value in facts:
        lines += textwrap.wrap(
            value or "-",
            WIDTH,
            initial_indent=f"  {label:<{width}}",
            subsequent_indent=" " * (width + 2),
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines) + "\n\n"


def _text_section(section: Section) -> str:
    title = one_line(section.title, WIDTH)
    parts = [title, "-" * len(title)]
    if section.text:
        parts.append(_wrapped(safe(section.text)))
    if section.table:
        parts.append(_text_table(section.table))
    parts += [_text_course(course) for course in section.courses]
    if section.pre:
        parts.append(bounded(section.pre))
    return "\n".join(parts) + "\n\n"


def _text_course(course: Course) -> str:
    drawn = sparkline(course.values, 40)
    return f"{drawn:<{40 if len(drawn) > 20 else 0}}  {one_line(course.remark, 60)}".rstrip()


def _text_table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[one_line(cell, 500) for cell in row] for row in rows]
    columns = len(cells[0])
    widths = [min(40, max(len(row[i]) for row in cells)) for i in range(columns)]
    wide = widths.index(max(widths))
    widths[wide] = max(
        min(10, widths[wide]), min(widths[wide], WIDTH - sum(widths) + widths[wide] - 2 * (columns - 1))
    )
    right = [len(cells) > 1 and all(_numeric(row[i]) for row in cells[1:]) for i in range(columns)]
    lines = []
    for row in cells:
        shown = [cell if len(cell) <= width else cell[: width - 1] + "…" for cell, width in zip(row, widths)]
        lines.append(
            "  ".join(
                cell.rjust(width) if numeric else cell.ljust(width)
                for cell, width, numeric in zip(shown, widths, right)
            ).rstrip()
        )
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _numeric(cell: str) -> bool:
    return bool(re.fullmatch(r"[+-]?[\d,.]+ ?%?", cell))


def _wrapped(text: str) -> str:
    """Lines of at most 78 columns. A longer word stays whole, so that it can be copied."""
    return "\n".join(
        textwrap.fill(line, WIDTH, break_on_hyphens=False, break_long_words=False)
        for line in text.split("\n")
    )


# -- HTML ----------------------------------------------------------------------------------------------------

_FONT = "font-family:-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"
_MONO = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12px;line-height:1.45"
#: A long word is broken, so that the page does not grow wider than a telephone.
_BREAK = "overflow-wrap:anywhere;word-break:break-word"
#: Mail programs show the beginning of a mail after its subject. This keeps them from showing more than the
#: preview.
_NOTHING_MORE = "&nbsp;&zwnj;" * 60
_HTML = Template(
    """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><meta name="supported-color-schemes" content="light dark">
<title>$subject</title>
<style>@media (prefers-color-scheme: dark) {
body, .page { background:#15181c !important; color:#e3e6ea !important }
.card { background:#1e2227 !important; border-color:#343a42 !important }
.label, .foot, .th { color:#a3acb8 !important }
.rule { border-color:#343a42 !important }
.pre { background:#14171a !important; color:#e3e6ea !important; border-color:#343a42 !important }
.track { background:#343a42 !important }
.info { color:#7db7f0 !important } .good { color:#76c893 !important }
.bad { color:#ff8a80 !important } .warn { color:#e8b04a !important }
}
@media (max-width: 480px) {
.out { padding:8px 6px !important } .in { padding-left:14px !important; padding-right:14px !important }
}</style></head>
<body style="margin:0;padding:0;background:#f2f4f6;color:#1b1f24;$font">
<div style="display:none;max-height:0;overflow:hidden">$preview$nothing_more</div>
<table role="presentation" class="page" width="100%" cellpadding="0" cellspacing="0"
style="background:#f2f4f6;table-layout:fixed">
<tr><td align="center" class="out" style="padding:20px 12px">
<table role="presentation" class="card" cellpadding="0" cellspacing="0"
style="width:100%;max-width:680px;table-layout:fixed;background:#ffffff;border:1px solid #d9dee4;
border-radius:6px">
<tr><td class="in" style="padding:20px 24px 4px;$font">
<div class="$tone"
style="font-size:12px;font-weight:700;letter-spacing:.06em;text-transform:uppercase;color:$colour">$chip</div>
<div style="font-size:18px;line-height:1.35;font-weight:600;padding-top:6px;$break">$headline</div>
$progress</td></tr>
<tr><td class="in" style="padding:8px 24px 20px;$font;font-size:14px;line-height:1.5">
$facts$sections</td></tr>
</table>
<div class="foot in"
style="max-width:680px;padding:12px 24px;font-size:12px;line-height:1.5;color:#5c6570;text-align:left;
$break;$font">
$footer</div>
</td></tr></table></body></html>
"""
)


def as_html(report: Report, templates: str = "") -> str:
    """The HTML part."""
    tone = _TONE.get(report.state, "info")
    return _template(templates, report.state, "html", _HTML).safe_substitute(
        {"break": _BREAK},
        subject=html.escape(one_line(report.subject)),
        state=html.escape(report.state),
        chip=html.escape(report.called),
        headline=html.escape(safe(report.headline)),
        preview=html.escape(one_line(report.preview or report.headline, 200)),
        nothing_more=_NOTHING_MORE,
        progress=_html_bar(report.progress, _COLOUR[tone]),
        facts=_html_facts(report.facts),
        sections="".join(map(_html_section, report.sections)),
        footer="<br>".join(html.escape(safe(line)) for line in report.footer),
        tone=tone,
        colour=_COLOUR[tone],
        font=_FONT,
    )


def _html_bar(progress: tuple[float, float] | None, colour: str) -> str:
    """How much is done, as a bar that every mail program can draw: a table of two cells."""
    if progress is None or (part := percent(*progress)) is None:
        return ""
    full = min(100, max(0, part))
    thin = "height:8px;font-size:0;line-height:0"
    cells = [
        f'<td width="{full}%" style="width:{full}%;background:{colour};border-radius:4px;{thin}">&nbsp;</td>'
        if full
        else "",
        f'<td style="{thin}">&nbsp;</td>' if full < 100 else "",
    ]
    return (
        f'<table role="presentation" class="track" width="100%" cellpadding="0" cellspacing="0" '
        f'style="margin-top:12px;background:#e3e7eb;border-radius:4px"><tr>{"".join(cells)}</tr></table>'
        f'<div class="label" style="padding-top:5px;font-size:13px;color:#5c6570">'
        f"{part} %: {_of(progress)}</div>"
    )


def _html_facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = [
        f'<tr><td class="label" '
        f'style="padding:3px 14px 3px 0;color:#5c6570;vertical-align:top;{_whole(one_line(label))}">'
        f"{html.escape(one_line(label))}</td>"
        f'<td style="padding:3px 0;vertical-align:top;{_BREAK}">{html.escape(safe(value))}</td></tr>'
        for label, value in facts
    ]
    return (
        f'<table role="presentation" cellpadding="0" cellspacing="0" '
        f'style="font-size:14px;line-height:1.45">{"".join(rows)}</table>'
        if rows
        else ""
    )


def _whole(text: str) -> str:
    """The style for text that is short enough never to be broken."""
    return "white-space:nowrap" if len(text) <= 20 else _BREAK


def _html_section(section: Section) -> str:
    parts = [
        (
            f'<div class="rule" style="margin-top:18px;padding-top:14px;border-top:1px solid '
            f'#e3e7eb;font-weight:600;{_BREAK}">{html.escape(one_line(section.title, WIDTH))}</div>'
        )
    ]
    if section.text:
        text = html.escape(safe(section.text)).replace("\n", "<br>")
        parts.append(f'<div style="padding-top:6px;{_BREAK}">{text}</div>')
    if section.table:
        parts.append(_html_table(section.table))
    parts += [_html_course(course) for course in section.courses]
    if section.pre:
        body = html.escape(bounded(section.pre))
        parts.append(
            f'<pre class="pre" style="margin:8px 0 0;padding:10px 12px;background:#f6f8fa;border:1px solid '
            f"#e3e7eb;border-radius:4px;white-space:pre-wrap;"
            f'{_BREAK};{_MONO}">{body}</pre>'
        )
    return "".join(parts)


def _html_course(course: Course) -> str:
    """The drawing on a line of its own, short enough for a telephone, with the remark below."""
    return (
        f'<div class="rule" style="margin-top:8px;border-bottom:1px solid #e3e7eb;white-space:nowrap;'
        f'overflow:hidden;{_MONO};line-height:1.1">{sparkline(course.values, 30)}</div>'
        f'<div class="label" style="padding-top:2px;font-size:13px;color:#5c6570;{_BREAK}">'
        f"{html.escape(one_line(course.remark, 200))}</div>"
    )


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    right = [
        all(_numeric(row[i]) for row in rows[1:]) if len(rows) > 1 else False for i in range(len(rows[0]))
    ]

    def row(cells: Sequence[str], head: bool) -> str:
        shown = []
        for cell, numeric in zip(cells, right):
            style = (
                f"padding:4px 12px 4px 0;text-align:{'right' if numeric else 'left'};vertical-align:top;"
                f"border-bottom:1px solid #e3e7eb;{_whole(cell) if ' ' not in cell or numeric else _BREAK}"
            )
            tag, kind = ("th", ' class="th rule"') if head else ("td", ' class="rule"')
            weight = ";font-weight:600;color:#5c6570" if head else ""
            shown.append(f'<{tag}{kind} style="{style}{weight}">{html.escape(safe(cell))}</{tag}>')
        return f"<tr>{''.join(shown)}</tr>"

    body = row(rows[0], True) + "".join(row(cells, False) for cells in rows[1:])
    return (
        f'<table cellpadding="0" cellspacing="0" '
        f'style="width:100%;margin-top:6px;border-collapse:collapse;font-size:13px;line-height:1.4">{body}</table>'
    )


# -- templates -----------------------------------------------------------------------------------------------


@lru_cache(64)
def _template(folder: str, state: str, kind: str, built_in: Template) -> Template:
    """The user's template for this state, else the user's for all states, else ours. A template that cannot
    be read, or that somebody else may have written, is skipped: the report is more important.
    """
    if folder:
        for name in (state, "report"):
            try:
                file = trust.read_found(os.path.join(folder, f"{name}.{kind}"))
                if not file.doubt:
                    return Template(file.content.decode("utf-8"))
                log.warning(
                    "the template %s is not used, because %s; let only yourself or root own and write it and "
                    "its folder",
                    file.path,
                    file.doubt,
                )
            except (OSError, UnicodeDecodeError):
                continue
    return built_in
