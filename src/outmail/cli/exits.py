"""Exit statuses of the command (sysexits). 0 is done; what each other one means stands in `outmail.cli`."""

from __future__ import annotations

#: A check found trouble.
EX_CRIT = 2
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78
