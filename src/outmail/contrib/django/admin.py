"""The queue in Django's admin: a list with a search, a page for each message (recipients, attempts, preview),
and two buttons: retry and cancel.

Promises: text from outside is escaped. The HTML of a message is shown in a sandboxed frame that loads
nothing. Times are in Django's time zone, which is named. Fails: when the queue refuses something, the page
shows a message. Does not: add, edit or delete.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from outmail import Error, NotFound
from outmail.clock import as_datetime
from outmail.contrib.django import queue
from outmail.contrib.django.models import Message
from outmail.mime.view import sealed, view
from outmail.model import Attempt, Filter, RecipientStatus, Status, Term, is_id
from outmail.policy import selection
from outmail.policy.plain import plain, plain_line

PAGE = 100
#: How many recipients of a message the list shows.
FIRST = 5


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    """Read-only: nothing is added, edited or deleted here."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """What a filter finds, oldest first; without a filter everything that is not finished."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            self._act(request, request.POST.getlist("id"))
            return HttpResponseRedirect(request.get_full_path())
        filter = request.GET.get("q", "")
        try:
            box = queue.outbox()
            found = list(islice(box.queue.matching(_selected(filter, box.clock.now())), PAGE + 1))
        except Error as problem:
            messages.error(request, str(problem))
            found = []
        context = {
            **self.admin_site.each_context(request),
            **(extra_context or {}),
            "title": "Outgoing mail",
            "opts": self.model._meta,
            "filter": filter,
            "found": list(map(_row, found[:PAGE])),
            "more": len(found) > PAGE,
            "may_change": self.has_change_permission(request),
            "page": PAGE,
        }
        return TemplateResponse(request, "admin/outmail/list.html", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """One message: its recipients, all attempts, and a preview."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            self._act(request, [object_id])
            return HttpResponseRedirect(request.path)
        try:
            status, attempts = queue.outbox().status(object_id), queue.outbox().attempts(object_id)
        except NotFound as problem:
            raise Http404(str(problem)) from None
        except Error as problem:
            messages.error(request, str(problem))
            return HttpResponseRedirect(reverse(f"{self.admin_site.name}:outmail_message_changelist"))
        context = {
            **self.admin_site.each_context(request),
            **(extra_context or {}),
            "title": plain_line(status.subject) or status.id,
            "opts": self.model._meta,
            "message": {**_row(status), "people": list(map(_recipient, status.recipients))},
            "attempts": [_attempt(one, status) for one in attempts],
            **_preview(status.id),
            "may_change": self.has_change_permission(request),
        }
        return TemplateResponse(request, "admin/outmail/message.html", context)

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """The page of the message is its history: it shows all attempts."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(
            reverse(f"{self.admin_site.name}:outmail_message_change", args=(object_id,))
        )

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Mail is cancelled, not deleted."""
        raise PermissionDenied

    def _act(self, request: HttpRequest, ids: list[str]) -> None:
        """Retry or cancel the chosen messages."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        action = request.POST.get("action")
        call = {"retry": _retry, "cancel": queue.outbox().cancel}.get(action or "")
        if call is None:
            return
        count = 0
        for id in filter(is_id, ids):  # anything else would be read as a filter
            try:
                count += call(id)
            except Error as problem:
                messages.error(request, str(problem))
        messages.info(request, f"{action}: {count} recipient{'' if count == 1 else 's'} changed")
        if action == "retry" and not count:
            messages.warning(
                request,
                "Waiting and failed recipients can be tried again, the latter while their content is kept.",
            )


def _retry(id: str) -> int:
    """Make waiting recipients due now, and queue failed ones again."""
    opened = queue.outbox().queue
    chosen = selection.select(id, 0)
    failed = replace(chosen, terms=(Term("state", "failed"),))
    return opened.requeue(failed) + opened.retry(chosen)


def _selected(words: str, now: int) -> Filter:
    """The filter for the search box, as in `outmail queue list`: ALL means everything, empty means what is
    not finished.
    """
    text = words.strip()
    if not text:
        return Filter((Term("is", "live"),))
    if is_id(text):
        return selection.select(text, now)
    return selection.parse(re.sub(r"^ALL(\s+|$)", "", text), now)


# -- for the templates ---------------------------------------------------------------------------------------


def _row(status: Status) -> dict[str, Any]:
    return {
        "id": status.id,
        "message_id": plain_line(status.message_id),
        "subject": plain_line(status.subject),
        "sender": plain_line(status.sender),
        "size": status.size,
        "tag": status.tag,
        "key": status.key,
        "accepted": as_datetime(status.accepted_at),
        "expires": as_datetime(status.expires_at),
        "first": list(map(_recipient, status.recipients[:FIRST])),
        "more": len(status.recipients) > FIRST,
        "count": len(status.recipients),
    }


def _recipient(r: RecipientStatus) -> dict[str, Any]:
    waits = r.state == "queued" and r.next_try_at is not None
    said = str(r.reply) if r.reply else ""
    if r.reason and r.reason not in said and said not in r.reason:
        said = f"{r.reason}; {said}" if said else r.reason
    return {
        "address": plain_line(r.address),
        "state": r.state,
        "word": "deferred" if r.state == "queued" and r.attempts else r.state,
        "uncertain": r.uncertain,
        "attempts": r.attempts,
        "next": as_datetime(r.next_try_at or 0) if waits else None,
        "route": plain_line(r.route),
        "said": plain_line(said or r.reason),
    }


def _attempt(attempt: Attempt, status: Status) -> dict[str, Any]:
    names = {r.n: r.address for r in status.recipients}
    to = [plain_line(names.get(n, str(n))) for n in attempt.recipients]
    return {
        "when": as_datetime(attempt.at),
        "outcome": attempt.outcome,
        "to": ", ".join(to[:FIRST]) + (f" and {len(to) - FIRST} more" if len(to) > FIRST else ""),
        "by": plain_line(attempt.host or attempt.route),
        "duration_ms": attempt.duration_ms,
        "reply": plain_line(str(attempt.reply)),
        "transcript": [{"dir": line["dir"], "line": plain(line["line"])} for line in attempt.transcript],
    }


def _preview(id: str) -> dict[str, Any]:
    try:
        seen = view(queue.outbox().content(id))
    except Error as problem:
        return {"gone": str(problem)}
    return {
        "text": plain(seen.text),
        "html": sealed(plain(seen.html)) if seen.html else "",
        "attachments": [replace(part, name=plain_line(part.name)) for part in seen.attachments],
    }
