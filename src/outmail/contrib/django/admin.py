"""The queue in Django's admin: a list to look at and search, one message with its attempts, and two buttons:
retry and cancel.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from outmail import Error, NotFound
from outmail.contrib.django import queue
from outmail.contrib.django.models import Message
from outmail.model import is_id

PAGE = 100


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    """Read-only: nothing is added, edited or deleted here."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The newest of what a filter finds; by default what is waiting."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            self._act(request, request.POST.getlist("id"))
            return HttpResponseRedirect(request.get_full_path())
        filter = request.GET.get("q", "is:live")
        try:
            found = list(islice(queue.outbox().find(filter), PAGE + 1))
        except Error as problem:
            messages.error(request, str(problem))
            found = []
        context = {
            **self.admin_site.each_context(request),
            **(extra_context or {}),
            "title": "Outgoing mail",
            "opts": self.model._meta,
            "filter": filter,
            "found": found[:PAGE],
            "more": len(found) > PAGE,
            "may_change": self.has_change_permission(request),
            "page": PAGE,
        }
        return TemplateResponse(request, "admin/outmail/list.html", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """One message: its recipients and every try."""
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
            "title": status.subject or status.id,
            "opts": self.model._meta,
            "status": status,
            "attempts": attempts,
            "may_change": self.has_change_permission(request),
        }
        return TemplateResponse(request, "admin/outmail/message.html", context)

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """The message's own page is its history: every try is on it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(
            reverse(f"{self.admin_site.name}:outmail_message_change", args=(object_id,))
        )

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Mail is cancelled, not deleted."""
        raise PermissionDenied

    def _act(self, request: HttpRequest, ids: list[str]) -> None:
        """Retry or cancel what was chosen."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        action = request.POST.get("action")
        call = {"retry": queue.outbox().retry, "cancel": queue.outbox().cancel}.get(action or "")
        if call is None:
            return
        count = 0
        for id in filter(is_id, ids):  # anything else would be a filter
            try:
                count += call(id)
            except Error as problem:
                messages.error(request, str(problem))
        messages.info(request, f"{action}: {count} recipient{'' if count == 1 else 's'} changed")
