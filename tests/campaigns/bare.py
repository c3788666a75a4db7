"""A bare machine: a fresh Debian that has git, make, gcc and python3 and nothing else runs `.ci/run` of the
last commit.

Run as root: python tests/campaigns/bare.py [--suite bookworm] [--keep DIR]. It needs Debian's package
debootstrap and about 3 GB of disk.
The mounts belong to a namespace of their own and end with it; the folder is removed unless it is kept.
Exit status: that of `.ci/run`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
PACKAGES = "ca-certificates,git,make,gcc,libc6-dev,python3"
#: How this machine reaches its package indexes, where that is not the default.
NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
#: Inside a mount namespace: nothing is left mounted when this ends, however it ends.
INSIDE = """
set -eu
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount --rbind /dev "$1/dev"
exec chroot "$1" /bin/bash -c 'cd /root/outmail && exec .ci/run'
"""


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--suite", default="bookworm")
    arguments.add_argument("--mirror", default="http://deb.debian.org/debian")
    arguments.add_argument(
        "--keep",
        type=Path,
        help="make the root file system there, or use the one that is there, and leave it",
    )
    arguments.add_argument("--minutes", type=float, default=60)
    options = arguments.parse_args()
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        print("this needs root and debootstrap (Debian: apt install debootstrap)", file=sys.stderr)
        return 69
    if options.keep is not None:
        return run(options.keep, options.suite, options.mirror, options.minutes)
    with tempfile.TemporaryDirectory(prefix="outmail-bare-") as folder:
        return run(Path(folder) / "root", options.suite, options.mirror, options.minutes)


def run(root: Path, suite: str, mirror: str, minutes: float) -> int:
    if not (root / "usr/bin/python3").exists():
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, root, mirror],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=1800,
        )
    for name in NETWORK:
        if os.path.exists(name):
            shutil.copy(name, f"{root}{name}")
    checkout = root / "root" / "outmail"
    shutil.rmtree(checkout, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", HERE, checkout], check=True, timeout=120)
    subprocess.run(["chown", "-R", "0:0", checkout], check=True, timeout=120)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.endswith("_proxy")
    }
    environment = {
        **kept,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    began = time.monotonic()
    command: list[str | Path] = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "/bin/bash",
        "-c",
        INSIDE,
        "bare",
        root,
    ]
    status = subprocess.run(command, env=environment, timeout=minutes * 60, check=False).returncode
    print(f".ci/run on a bare {suite}: exit status {status} after {time.monotonic() - began:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
