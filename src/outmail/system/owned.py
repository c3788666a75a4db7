"""What is made in another user's directory belongs to that user, when root makes it.

Fails: OSError. Loads little: `mq-sendmail` starts in milliseconds.
"""

from __future__ import annotations

import os


def folder_of_owner(folder: str, name: str) -> None:
    """Make a folder in a directory, for the directory's owner, also when root makes it."""
    place = os.path.join(folder, name)
    if os.path.isdir(place):
        return
    os.makedirs(place, mode=0o700, exist_ok=True)
    to_owner(folder, place)


def to_owner(folder: str, place: str) -> None:
    """What root has made in somebody's directory is theirs: they could not go on with it."""
    owner = os.stat(folder)
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.chown(place, owner.st_uid, owner.st_gid)
