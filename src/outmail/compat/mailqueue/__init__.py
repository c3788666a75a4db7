"""mailqueue-runner's programs, files and Python interface, on outmail. docs/compat.md lists each difference.

Its modules have the names of mailqueue-runner's, so a program moves by an import:
``from outmail.compat.mailqueue import MessageHandler`` instead of ``from schwarz.mailqueue import …``.
The names are loaded on first use: the programs start without them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "app_helpers": ("guess_config_path", "init_app", "init_smtp_mailer"),
    "maildir_utils": ("create_maildir_directories", "lock_file", "move_message"),
    "mailer": ("DebugMailer", "SMTPMailer", "TLSMode", "default_tls_mode", "default_tls_verify",
               "required_tls_mode"),
    "message_handler": ("BaseMsg", "InMemoryMsg", "MessageHandler"),
    "message_utils": ("MsgInfo", "SendResult", "Transport", "dt_now", "parse_message_envelope",
                      "serialize_message_with_queue_data"),
    "plugins": ("MQAction", "MQSignal", "registry"),
    "queue_runner": ("MaildirBackedMsg", "MaildirBackend", "enqueue_message", "send_all_queued_messages"),
}  # fmt: skip
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
