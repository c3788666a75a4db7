"""What became of each test of a peer, as lines of JSON in the file $INTEROP_RESULTS: for pytest as a plugin
(``-p results``), for unittest by `run`, for everything else by `check`.
"""

from __future__ import annotations

import json
import os
import traceback
import unittest
from collections.abc import Callable
from typing import Any


def note(test: str, outcome: str, detail: str = "") -> None:
    """``outcome``: passed, failed, skipped (by the peer itself) or left-out (not about a mail server)."""
    with open(os.environ["INTEROP_RESULTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"test": test, "outcome": outcome, "detail": detail[-3000:]}) + "\n")


def check(test: str, function: Callable[[], Any]) -> None:
    """Run it; what it raises is its failure."""
    try:
        function()
    except Exception:
        note(test, "failed", traceback.format_exc())
    else:
        note(test, "passed")


# -- pytest --------------------------------------------------------------------------------------------------

_failed: dict[str, str] = {}


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed:
        _failed.setdefault(report.nodeid, report.longreprtext)
    if report.when != "teardown" and report.skipped:
        why = str(report.longrepr)
        note(report.nodeid, "left-out" if "left out: " in why else "skipped", why)
    elif report.when == "teardown":
        if report.nodeid in _failed:
            note(report.nodeid, "failed", _failed.pop(report.nodeid))
        elif report.nodeid not in _skipped:
            note(report.nodeid, "passed")
    if report.skipped:
        _skipped.add(report.nodeid)


_skipped: set[str] = set()


def pytest_collectreport(report: Any) -> None:
    if report.failed:
        note(report.nodeid, "failed", report.longreprtext)


def pytest_deselected(items: Any) -> None:
    for item in items:
        note(item.nodeid, "left-out")


# -- unittest ------------------------------------------------------------------------------------------------


class _Noting(unittest.TestResult):
    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._trouble: list[str] = []
        self._skip: str | None = None

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        if isinstance(test, unittest.TestCase):
            self._trouble.append("".join(traceback.format_exception(*err)))
        else:  # setUpClass
            note(str(test), "failed", "".join(traceback.format_exception(*err)))

    addFailure = addError

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._trouble.append(f"{subtest}\n" + "".join(traceback.format_exception(*err)))

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self._skip = reason

    def stopTest(self, test: Any) -> None:
        super().stopTest(test)
        name = ".".join(test.id().split(".")[-2:])
        if self._trouble:
            note(name, "failed", "\n".join(self._trouble))
        elif self._skip is not None:
            note(name, "left-out" if self._skip.startswith("left out: ") else "skipped", self._skip)
        else:
            note(name, "passed")


def run(suite: unittest.TestSuite, left_out: Callable[[str], bool] = lambda name: False) -> None:
    """Run the tests of a suite, all but what is left out by its name (``Class.test``)."""
    chosen = unittest.TestSuite()
    for test in _flat(suite):
        name = ".".join(test.id().split(".")[-2:])
        if left_out(name):
            note(name, "left-out")
        else:
            chosen.addTest(test)
    chosen.run(_Noting())


def _flat(suite: Any) -> Any:
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from _flat(one)
        else:
            yield one
