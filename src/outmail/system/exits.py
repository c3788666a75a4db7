"""Exit statuses (sysexits.h), for commands and for sendmail. 0 means done.

Loads nothing: `sendmail` starts in milliseconds. `outmail.cli.exits` says which error ends with which.
"""

#: A check found trouble.
EX_CRIT = 2
EX_USAGE = 64
EX_DATAERR = 65
EX_NOINPUT = 66
EX_NOUSER = 67
EX_UNAVAILABLE = 69
EX_SOFTWARE = 70
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_NOPERM = 77
EX_CONFIG = 78

#: What each says, for the manual.
MEANINGS = {
    0: "done; of what stores mail: only after it is on disk",
    EX_CRIT: "a check found trouble (1: a warning)",
    EX_USAGE: "a wrong or missing option or operand",
    EX_DATAERR: "refused: the message, an address or a filter is wrong",
    EX_NOINPUT: "not found",
    EX_NOUSER: "sendmail -bv: no user and no alias of this machine has this name",
    EX_UNAVAILABLE: "permanently failed",
    EX_SOFTWARE: "a bug of outmail, or mail was quarantined",
    EX_IOERR: "the input cannot be read",
    EX_TEMPFAIL: "not stored, or not delivered yet; it may work later",
    EX_NOPERM: "not stored, because a permission is missing",
    EX_CONFIG: "the configuration is wrong",
}
