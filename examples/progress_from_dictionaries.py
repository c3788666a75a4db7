"""Progress reports from a settings dictionary and a loop, as exoskeleton documents them.

Run: python progress_from_dictionaries.py STORE smtp://127.0.0.1:PORT
"""

import sys
from urllib.parse import urlsplit

from outmail.compat.exoskeleton import NotificationManager

store, relay = sys.argv[1], urlsplit(sys.argv[2])
mail_settings = {
    "server": relay.hostname,
    "server_port": relay.port,
    "encryption": "off",
    "recipient": "me@example.org",
    "sender": "bot@example.org",
}
mail_behavior = {"send_start_msg": True, "send_finish_msg": True, "milestone_num": 1000}

mails = NotificationManager("Bot", mail_settings, mail_behavior, store=store)
for page in range(1, 2501):
    mails.send_msg_milestone(page, remaining=2500 - page, time_to_finish_seconds=-1)
mails.send_msg_finish()
mails.close()
print("delivered, or queued and told above")
