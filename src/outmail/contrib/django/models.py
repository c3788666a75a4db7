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


class Message(models.Model):
    """What is in the queue. It has no table: the admin asks the queue."""

    id = models.CharField(primary_key=True, max_length=26)

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "message"
        verbose_name_plural = "messages"
