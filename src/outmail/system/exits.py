"""Exit statuses (sysexits.h), for commands and for sendmail. 0 means done.

Loads nothing: `sendmail` starts in milliseconds. `outmail.cli.exits` says which error ends with which.
"""

#: A check found trouble.
EX_CRIT = 2
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78
