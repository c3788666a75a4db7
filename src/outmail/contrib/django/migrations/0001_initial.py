"""The table `outmail_outbox`; on PostgreSQL also the functions `outmail.enqueue` and `outmail.draft`."""

from typing import Any

from django.db import migrations, models

from outmail import outbox_ddl


def make_functions(apps: Any, schema_editor: Any) -> None:
    """Run what `outmail store ddl --dialect postgresql` prints. Its CREATE TABLE finds the existing table."""
    if schema_editor.connection.vendor == "postgresql":
        with schema_editor.connection.cursor() as cursor:
            cursor.execute(outbox_ddl("postgresql"))


class Migration(migrations.Migration):
    initial = True
    dependencies: list[tuple[str, str]] = []
    operations = [
        migrations.CreateModel(
            name="Message",
            fields=[("id", models.CharField(max_length=26, primary_key=True, serialize=False))],
            options={
                "managed": False,
                "base_manager_name": "objects",
                "default_permissions": ("view", "change"),
                "verbose_name": "message",
                "verbose_name_plural": "messages",
            },
        ),
        migrations.CreateModel(
            name="OutboxRow",
            fields=[
                ("n", models.BigAutoField(primary_key=True, serialize=False)),
                ("id", models.TextField()),
                ("store", models.TextField(null=True)),
                ("added_at", models.BigIntegerField()),
                ("content", models.BinaryField()),
                ("envelope", models.TextField()),
            ],
            options={"db_table": "outmail_outbox", "default_permissions": ()},
        ),
        migrations.RunPython(make_functions, migrations.RunPython.noop),
    ]
