"""The table for mail in your transactions, and a model that gives the queue a name in the admin."""

from __future__ import annotations

from django.db import models


class OutboxRow(models.Model):
    """One message on its way from your transaction to the queue (`outmail store ddl` prints the same
    table).
    """

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
    """Finds no message, where Django would ask for a table that does not exist (the admin's links to objects
    do).
    """

    def get_queryset(self) -> models.QuerySet[Message]:
        return super().get_queryset().none()


class Message(models.Model):
    """A message in the queue. The model has no table: the admin asks the queue."""

    id = models.CharField(primary_key=True, max_length=26)
    objects = Nothing()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view", "change")
        verbose_name = "message"
        verbose_name_plural = "messages"
