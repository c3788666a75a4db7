"""Django's migrations of the table `outmail_outbox`."""
