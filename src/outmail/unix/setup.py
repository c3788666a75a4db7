"""Carries out the steps of `policy.setup`, and notes each in the manifest first.

Promises: a step that is done already is not done again; a file of somebody else is kept as a copy; what was
at a program's path is kept. A folder gets its owner and mode through its descriptor (`held`); a symbolic
link in its place is refused. With ``root`` every path lies below that folder, and a link that leads out of it
is refused.
Fails: `Failure` with a sentence; the steps before it stay done, and are in the manifest. Does not: decide
what is done, or take anything back (`unix.undo`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from importlib.util import find_spec

from outmail.policy.setup import (
    ALIASES,
    HOME,
    AddCronLine,
    AddLine,
    GiveFolder,
    Machine,
    MakeFolder,
    MakeUser,
    Run,
    Step,
    TakeName,
    WriteFile,
)
from outmail.system import trust
from outmail.unix.manifest import Manifest, is_noted, note_of, read, write

#: Seconds for one command.
PATIENCE = 90
#: The end of the name under which a file that was there is kept.
COPY = ".before-init"
#: A user who only owns files and runs the service.
_ACCOUNT = (
    "--system", "--user-group", "--no-create-home",
    "--shell", "/usr/sbin/nologin", "--comment", "outgoing mail",
)  # fmt: skip


class Failure(Exception):
    """A step could not be done; the text says why."""


class Place:
    """Where the steps are done: this machine, or a root file system below ``root``."""

    def __init__(self, root: str = "") -> None:
        self.root = os.path.abspath(root) if root else ""
        #: Owners are set only by root: whoever tries a set-up below a folder of theirs owns everything there.
        self.owns = os.geteuid() == 0

    def at(self, path: str) -> str:
        """Where a path of the machine lies. Raises `Failure` where the way to it leaves the root."""
        found = self.root + path
        self._stay(path, os.path.dirname(found))
        return found

    def target(self, path: str) -> str:
        """As `at`, for a file that is read or rewritten through a link: its target is below the root, too."""
        found = self.at(path)
        self._stay(path, found)
        return found

    def _stay(self, path: str, found: str) -> None:
        root = os.path.realpath(self.root).rstrip("/") if self.root else ""
        real = os.path.realpath(found)
        if self.root and real != root and not real.startswith(f"{root}/"):
            raise Failure(
                f"{path} below {self.root} leads to {real}, outside of it: a symbolic link is absolute; "
                f"make it relative, or set up this root file system from inside (chroot)"
            )

    def run(self, words: Sequence[str], given: bytes | None = None) -> bytes:
        """Run a command; its output. Raises `Failure`."""
        words = self._below(list(words))
        try:
            done = subprocess.run(
                words, input=given or b"", capture_output=True, timeout=PATIENCE, check=False
            )
        except (FileNotFoundError, PermissionError):
            raise Failure(f"{words[0]} is not installed, or may not be run") from None
        except (OSError, subprocess.SubprocessError) as problem:
            raise Failure(f"{' '.join(words)}: {problem}") from None
        if done.returncode:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            raise Failure(f"{' '.join(words)} failed with {done.returncode}: {said}")
        return done.stdout

    def _below(self, words: list[str]) -> list[str]:
        """The command's own option for another root."""
        if not self.root:
            return words
        option = {"systemctl": f"--root={self.root}", "dpkg-divert": f"--root={self.root}"}.get(words[0])
        if words[0] in ("useradd", "userdel"):
            return [words[0], "--prefix", self.root, *words[1:]]
        return [words[0], option, *words[1:]] if option else words

    def account(self, name: str) -> tuple[int, int] | None:
        """(uid, gid) of a user, as the password file of this place says it; None for nobody."""
        if not self.root:
            import pwd

            try:
                found = pwd.getpwnam(name)
            except KeyError:
                return None
            return found.pw_uid, found.pw_gid
        for parts in self._entries("/etc/passwd"):
            if parts[0] == name:
                return int(parts[2]), int(parts[3])
        return None

    def _entries(self, path: str) -> list[list[str]]:
        """The lines of the password file or the group file, in fields."""
        text = (read(self.target(path)) or b"").decode("utf-8", "replace")
        return [parts for line in text.splitlines() if len(parts := line.split(":")) > 3]

    def shared_group(self, name: str) -> str:
        """A user's primary group, if it is not private: without the user's name, or with other members. ""
        for a private one.
        """
        found = self.account(name)
        if found is None:
            return ""
        group, members = self._group(found[1])
        others = [parts[0] for parts in self._entries("/etc/passwd") if parts[3] == str(found[1])]
        return "" if group == name and {name}.issuperset([*members, *others]) else group

    def _group(self, gid: int) -> tuple[str, list[str]]:
        """Name and members of a group; its number for a name where it has none."""
        if not self.root:
            import grp

            try:
                entry = grp.getgrgid(gid)
            except KeyError:
                return str(gid), []
            return entry.gr_name, list(entry.gr_mem)
        found = [parts for parts in self._entries("/etc/group") if parts[2] == str(gid)]
        return (found[0][0], [one for one in found[0][3].split(",") if one]) if found else (str(gid), [])

    def owner(self, name: str) -> tuple[int, int]:
        """(uid, gid) for chown; (-1, -1) where owners are not set. Raises `Failure`."""
        if not name or not self.owns:
            return -1, -1
        found = (0, 0) if name == "root" else self.account(name)
        if found is None:
            raise Failure(f"there is no user {name}")
        return found


def machine(place: Place) -> Machine:
    """What there is to build on."""
    offline = bool(place.root)
    return Machine(
        systemd=os.path.isdir("/run/systemd/system")
        or (offline and _has(place, "/usr/lib/systemd", "systemctl")),
        crontab=not offline and shutil.which("crontab") is not None,
        cron_d=os.path.isdir(place.at("/etc/cron.d")),
        dpkg=_has(place, "/var/lib/dpkg", "dpkg-divert"),
        root_alias=b"\nroot:" in b"\n" + _aliases(place).lower(),
        roots_home=_is_roots(place.at(HOME)),
        offline=offline,
    )


def _aliases(place: Place) -> bytes:
    """The aliases of the place; those of another machine, to which a link leads, are none."""
    try:
        return read(place.target(ALIASES)) or b""
    except Failure:
        return b""


def _is_roots(folder: str) -> bool:
    try:
        return os.geteuid() == 0 and os.stat(folder).st_uid == 0
    except OSError:
        return False


def _has(place: Place, folder: str, program: str) -> bool:
    return os.path.isdir(place.at(folder)) and shutil.which(program) is not None


def unit_texts() -> dict[str, str]:
    """The units that come with outmail."""
    folder = resources.files("outmail.unix") / "units"
    return {one.name: one.read_text("utf-8") for one in folder.iterdir() if one.name.startswith("outmail")}


# -- how outmail is called --------------------------------------------------------------------------------


def command() -> tuple[str, ...]:
    """How a service calls this outmail: the program beside the interpreter, else the module."""
    program = os.path.join(os.path.dirname(sys.executable), "outmail")
    return (program,) if os.access(program, os.X_OK) else (sys.executable, "-P", "-m", "outmail")


def _folders() -> list[str]:
    """The folders from which this outmail and its packages are imported."""
    return list(dict.fromkeys(os.path.dirname(os.path.dirname(file)) for file in _packages()))


def _packages() -> list[str]:
    """The first files of outmail and of what it needs."""
    found = [find_spec(name) for name in ("outmail", "apsw", "idna")]
    return [spec.origin for spec in found if spec and spec.origin]


def program() -> str:
    """The script that is sendmail; ``@NAME@`` is the name it answers to. It loads nothing but outmail, and
    reads neither the environment nor site-packages' start-up files. Raises `Failure`.
    """
    line = f"#!{sys.executable} -IS"
    if " " in sys.executable or len(line) > 120:
        raise Failure(f"{sys.executable} is too long, or has a blank, for the first line of a script")
    return (
        f"{line}\n# Written by `outmail init`; `outmail init --undo` takes it back.\nimport sys\n\n"
        f"sys.path += {_folders()!r}\nfrom outmail.unix.main import main\n\n"
        f'sys.exit(main("@NAME@", sys.argv[1:]))\n'
    )


def closed_to_others(*paths: str) -> str:
    """A folder or file of this installation, or on the way to ``paths``, that other users of the machine
    cannot use; "" for none.
    """
    for path in paths or (sys.executable, os.__file__, *_folders(), *command()[:1]):
        for one in _way(os.path.realpath(path)):
            mode = os.stat(one).st_mode
            if not mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH):
                return one
    return ""


def written_by_others() -> str:
    """Why somebody else than this user and root may change what the machine's service and sendmail run, as a
    sentence; "" when nobody may.
    """
    for path in (sys.executable, os.__file__, *_folders(), *_packages(), *command()[:1]):
        for one in (*_way(os.path.abspath(path)), *_way(os.path.realpath(path))):
            if why := trust.doubt(one):
                return f"{one} is not safe: {why}"
    return ""


def _way(path: str) -> list[str]:
    """The path and all folders above it, the topmost first."""
    parts = [path]
    while (above := os.path.dirname(parts[-1])) != parts[-1]:
        parts.append(above)
    return parts[::-1]


# -- doing ------------------------------------------------------------------------------------------------


class Doer:
    """Does steps at a place, and notes them in a manifest."""

    def __init__(self, place: Place, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest

    def begin(self, folder_mode: int) -> None:
        """Make the folder of the manifest, which is the configuration's, and note that."""
        self.place.at(self.manifest.path.removeprefix(self.place.root))
        folder = os.path.dirname(self.manifest.path)
        made = self._make(folder, folder_mode)
        if made:
            self.manifest.note("folder", paths=made)

    def note_queue(self, path: str) -> None:
        """Note a queue that does not exist yet: what comes to be there is ours to remove."""
        found = self.place.at(path)
        if not os.path.lexists(found) and self.manifest.entry("queue", path) is None:
            self.manifest.note("queue", path=path, folders=[*_missing(os.path.dirname(found))])

    def do(self, step: Step) -> str:
        """Do one step; says in a word or two what became of it. Raises `Failure`."""
        try:
            return self._do(step)
        except OSError as problem:
            raise Failure(f"{problem.filename or step.told}: {problem.strerror}") from None

    def _do(self, step: Step) -> str:
        match step:
            case MakeUser():
                return self._user(step)
            case MakeFolder():
                return self._folder(step)
            case GiveFolder():
                return self._give(step)
            case WriteFile():
                return self._file(step)
            case TakeName():
                return self._name(step)
            case AddCronLine():
                return self._cron(step)
            case AddLine():
                return self._line(step)
            case Run():
                return self._run(step)

    def _user(self, step: MakeUser) -> str:
        if self.place.account(step.name) is not None:
            self._check_group(step.name)
            return "exists"
        if not self.place.owns:
            return "left out: you are not root"
        self.manifest.note("user", name=step.name)
        self.place.run(["useradd", *_ACCOUNT, "--home-dir", step.home, step.name])
        return "done"

    def _check_group(self, name: str) -> None:
        """The group of an existing user gets to read the password: nobody else may be in it."""
        shared = self.place.shared_group(name) if self.place.owns else ""
        if shared:
            raise Failure(
                f"the user {name} exists, and others may be in its group {shared}, which gets to read the "
                f"password. Give it a group of its own: groupadd --system {name}; usermod --gid {name} {name}"
            )

    def _folder(self, step: MakeFolder) -> str:
        path, (uid, gid) = self.place.at(step.path), self.place.owner(step.owner)
        if not (step.owner or step.exact) and os.path.isdir(path):
            return "exists"
        if os.path.lexists(path):
            with held(path) as fd:
                self._check(fd, path, step)
            return "exists"
        self.manifest.note("folder", paths=_missing(path))
        self._make(path, 0o755 if step.mode > 0o700 else step.mode)
        with held(path) as fd:
            os.fchown(fd, uid, gid)
            os.fchmod(fd, step.mode)
        return "done"

    def _give(self, step: GiveFolder) -> str:
        """The folder is given last: a set-up that is killed before finds it root's, and begins anew."""
        path, (uid, gid) = self.place.at(step.path), self.place.owner(step.owner)
        with held(path) as fd:
            names = sorted(os.listdir(fd))
            stats = [os.fstat(fd), *(os.stat(name, dir_fd=fd, follow_symlinks=False) for name in names)]
            was = [(name, found.st_uid, found.st_gid) for name, found in zip([".", *names], stats)]
            self.manifest.note("given", path=step.path, was=was)
            kept = [name for name in names if not given(fd, name, uid, gid)]
            os.fchown(fd, uid, gid)
        return f"done, but not {', '.join(kept)}: it has a second name elsewhere" if kept else "done"

    def _check(self, fd: int, path: str, step: MakeFolder) -> None:
        """Others rely on owner and mode of an existing folder. One that we made, and were interrupted at, is
        put right.
        """
        found, (uid, gid) = os.fstat(fd), self.place.owner(step.owner)
        fits = uid in (-1, found.st_uid)
        if fits and (not step.exact or stat.S_IMODE(found.st_mode) == step.mode):
            return
        if any(path in entry["paths"] for entry in self.manifest.entries if entry["kind"] == "folder"):
            os.fchown(fd, uid, gid)
            os.fchmod(fd, step.mode)
            return
        all_of_it = "" if step.exact else "-R "
        chown = f"chown {all_of_it}{step.owner}:{step.owner} {path}"
        cure = f"chmod {step.mode:04o} {path}" if fits else chown
        raise Failure(
            f"{path} exists, and belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}; "
            f"the service needs it otherwise. If nobody else uses it: {cure}"
        )

    def _make(self, path: str, mode: int) -> list[str]:
        """Make a folder and the missing ones above it; the paths that were made, the topmost first."""
        missing = _missing(path)
        for one in missing:
            os.mkdir(one, mode)
        return missing

    def _file(self, step: WriteFile) -> str:
        path, content = self.place.at(step.path), step.text.encode()
        known, found = self.manifest.entry("file", step.path), read(path)
        uid, gid = (0, self.place.owner(step.group)[1]) if step.group and self.place.owns else (-1, -1)
        if found == content and known is None:
            return "is so already"
        ours = known is not None and (found is None or is_noted(found, known["written"]))
        copy = "" if found is None or ours else _free(path + COPY)
        if known is None:
            written = [note_of(content, secret=step.secret)]
            known = self.manifest.note("file", path=step.path, written=written, copy=copy)
        else:
            if not is_noted(content, known["written"]):
                known["written"].append(note_of(content, secret=step.secret))
            known["copy"] = known["copy"] or copy
            self.manifest.save()
        if copy and found is not None:
            self._copy(path, copy, found)
        write(path, content, step.mode, uid, gid)
        return f"done; what was there is {copy}" if copy else "done"

    def _copy(self, path: str, copy: str, content: bytes) -> None:
        """Keep a file of somebody else, with owner and mode; a link as a link."""
        if os.path.islink(path):
            os.symlink(os.readlink(path), copy)
            return
        found = os.lstat(path)
        uid, gid = (found.st_uid, found.st_gid) if self.place.owns else (-1, -1)
        write(copy, content, stat.S_IMODE(found.st_mode), uid, gid)

    def _name(self, step: TakeName) -> str:
        path, content = self.place.at(step.path), step.text.encode()
        known = self.manifest.entry("name", step.path)
        if known is None:
            if os.path.lexists(self.place.at(step.aside)):
                raise Failure(
                    f"{self.place.at(step.aside)} exists already: look what it is, and move it away"
                )
            known = self.manifest.note(
                "name", path=step.path, aside=step.aside, diverted=step.diverted, written=[], kept=False
            )
        if not known["kept"]:
            self._put_aside(step, path)
        known["kept"] = True
        if not is_noted(content, known["written"]):
            known["written"].append(note_of(content))
        self.manifest.save()
        self._make(os.path.dirname(path), 0o755)
        write(path, content, 0o755)
        return "done"

    def _put_aside(self, step: TakeName, path: str) -> None:
        """Keep what is at the path, unless an interrupted set-up has done that."""
        if step.diverted:
            words = ["--quiet", "--local", "--rename", "--divert", step.aside, "--add", step.path]
            self.place.run(["dpkg-divert", *words])
        elif os.path.lexists(path) and not os.path.lexists(self.place.at(step.aside)):
            os.rename(path, self.place.at(step.aside))

    def _cron(self, step: AddCronLine) -> str:
        lines = crontab(self.place)
        if step.line in lines:
            return "is so already"
        self.manifest.note("cron", line=step.line)
        write_crontab(self.place, [*lines, step.line])
        return "done"

    def _line(self, step: AddLine) -> str:
        path, line = self.place.target(step.path), step.line.encode()
        found = read(path)
        if found is not None and line in found.splitlines():
            return "is so already"
        before = found or b""
        begun = b"" if not before or before.endswith(b"\n") else b"\n"
        self.manifest.note("line", path=step.path, line=step.line, made=found is None, ended=not begun)
        rewrite(self.place, path, before + begun + line + b"\n")
        return "done"

    def _run(self, step: Run) -> str:
        if not any(entry.get("undo") == list(step.undo) for entry in self.manifest.entries):
            self.manifest.note("late" if step.late else "command", undo=list(step.undo))
        self.place.run(step.words)
        return "done"


def crontab(place: Place) -> list[str]:
    """The lines of this user's crontab."""
    try:
        return place.run(["crontab", "-l"]).decode("utf-8", "surrogateescape").splitlines()
    except Failure as problem:
        if "no crontab" in str(problem):
            return []
        raise


def write_crontab(place: Place, lines: Sequence[str]) -> None:
    """Give this user these lines; without lines there is no crontab."""
    if lines:
        place.run(["crontab", "-"], "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    else:
        place.run(["crontab", "-r"])


def rewrite(place: Place, path: str, content: bytes) -> None:
    """Write a file of the system anew, with the owner and mode that it has."""
    path = os.path.realpath(path)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        write(path, content, 0o644)
        return
    uid, gid = (found.st_uid, found.st_gid) if place.owns else (-1, -1)
    write(path, content, stat.S_IMODE(found.st_mode), uid, gid)


def _free(path: str) -> str:
    """The path, or the first one with a number behind it where nothing is."""
    n, free = 1, path
    while os.path.lexists(free):
        n += 1
        free = f"{path}-{n}"
    return free


@contextlib.contextmanager
def held(path: str) -> Iterator[int]:
    """The descriptor of a folder. What is done through it is done to this folder, whatever its name comes to
    mean. Raises `Failure` for a symbolic link, and for what is no folder.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        what = "a symbolic link" if os.path.islink(path) else "no folder"
        raise Failure(
            f"{path} is {what}, and outmail does not use it: find out who made it, and remove it"
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)


def given(folder: int, name: str, uid: int, gid: int) -> bool:
    """Give what lies in an open folder to a user. False for a file with a second name, which is not given: it
    may be somebody else's file.
    """
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) and found.st_nlink != 1:
        return False
    os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
    return True


def _missing(folder: str) -> list[str]:
    """The folders that must be made so that this one exists, the topmost first."""
    return [one for one in _way(folder) if not os.path.isdir(one)]


def quietly_removed(path: str) -> bool:
    """Remove an empty folder; False when it is not empty, or not there."""
    with contextlib.suppress(OSError):
        os.rmdir(path)
        return True
    return False
