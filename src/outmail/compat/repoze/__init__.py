"""repoze.sendmail's programs, files and Python interface, on outmail."""

from outmail.compat.repoze.delivery import DirectMailDelivery, QueuedMailDelivery, SendmailMailer, SMTPMailer

__all__ = ("DirectMailDelivery", "QueuedMailDelivery", "SMTPMailer", "SendmailMailer")
