"""Signals of `MessageHandler` to plugins, and what a plugin may answer.

``registry`` is a registry of PuzzlePluginSystem, where that package is installed; else None, and a
`MessageHandler` takes any object with its method ``call_plugins``.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any


class MQSignal:
    """The names of the signals. Their arguments: ``msg``, ``send_result``."""

    delivery_successful = "mq:delivery_successful"
    delivery_failed = "mq:delivery_failed"


class MQAction:
    """What a plugin may answer to `MQSignal.delivery_failed`: the message is dropped."""

    DISCARD = "discard"


def _registry() -> Any:
    try:
        return import_module("schwarz.puzzle_plugins").SignalRegistry()
    except ImportError:
        return None


registry = _registry()


def active(enabled: str) -> Any:
    """Activate the installed plugins (entry points ``mailqueue.plugins``): all for "*", or those of a list.
    Returns their loader; None without PuzzlePluginSystem.
    """
    if registry is None:
        return None
    puzzle = import_module("schwarz.puzzle_plugins")
    log = logging.getLogger("mailqueue")
    loader = puzzle.PluginLoader("mailqueue.plugins", enabled_plugins=puzzle.parse_list_str(enabled), log=log)
    loader.initialize_plugins(registry)
    return loader


def notify(plugins: Any, signal: str, msg: Any, send_result: Any) -> bool | None:
    """Tell the plugins; True when one of them wants the message dropped, None when none has answered."""
    if plugins is None:
        return None
    answers = plugins.call_plugins(signal, signal_kwargs={"msg": msg, "send_result": send_result})
    return MQAction.DISCARD in {answer for _, answer in answers} if answers else None
