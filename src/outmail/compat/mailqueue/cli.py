"""mailqueue-runner's programs as functions: ``argv`` with the program's name, and the exit status returned or
raised as SystemExit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from outmail.compat.mailqueue import mq_mail, mq_sendmail, run, trial


def _program(main: Callable[[list[str]], int]) -> Callable[..., int]:
    def program(argv: Sequence[str] | None = None, return_rc_code: bool = False) -> int:
        status = main(list(sys.argv if argv is None else argv)[1:])
        return status if return_rc_code else sys.exit(status)

    return program


one_shot_queue_run_main = _program(run.main)
send_test_message_main = _program(trial.main)
mq_sendmail_main = _program(mq_sendmail.main)
mq_mail_main = _program(mq_mail.main)
