"""Does the time that something takes grow faster than what it is given? For tests of hostile input."""

from __future__ import annotations

import time
from collections.abc import Callable

#: CPU seconds below which nothing is said: a quadratic expression needs several times as much for `SIZES`'
#: last.
QUICK = 0.01
SIZES = (25, 6_000)


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of this thread, the best of several."""
    best = float("inf")
    for _ in range(times):
        began = time.thread_time()
        call()
        best = min(best, time.thread_time() - began)
    return best


def superlinear(
    run: Callable[[int], Callable[[], object]], sizes: tuple[int, ...] = SIZES, quick: float = QUICK
) -> str:
    """What is wrong with ``run(n)()`` for growing n, or "". Slow is confirmed by comparing n with n/4: 4 is
    linear, 16 quadratic.
    """
    for n in sizes:
        taken = seconds(run(n))
        if taken <= quick:
            continue
        if taken > 100 * quick:
            return f"{taken:.2f} s for {n}"
        large, small = seconds(run(n), 3), seconds(run(n // 4), 3)
        if large > quick and large > 8.5 * small:
            return f"{large:.3f} s for {n}, {small:.3f} s for a quarter of it"
    return ""
