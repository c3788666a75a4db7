"""The table that carries mail in your transactions, and a name for the queue in the admin."""

from __future__ import annotations

from django.db import models


class OutboxRow(models.Model):
    """One message between your commit and the queue (`outmail store ddl` prints the same table)."""

    n = models.BigAutoField(primary_key=True)
    id = models.TextField()
    store = models.TextField(null=True)
    added_at = models.BigIntegerField()
    content = models.BinaryField()
    envelope = models.TextField()

    class Meta:
        db_table = "outmail_outbox"
        default_permissions = ()


class Nothing(models.Manager["Message"]):
    """Whoever asks the database (the admin's links to objects do) finds no message, instead of no table."""

    def get_queryset(self) -> models.QuerySet[Message]:
        return super().get_queryset().none()


class Message(models.Model):
    """What is in the queue. It has no table: the admin asks the queue."""

    id = models.CharField(primary_key=True, max_length=26)
    objects = Nothing()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view", "change")
        verbose_name = "message"
        verbose_name_plural = "messages"
