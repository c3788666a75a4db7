"""What a wheel has beside the package: manual pages, completion for shells, and the commit it was built from.

None of it is committed: pages and scripts are made by the code that is packed, which needs no other package
for that. Where there is no git, or no checkout, no commit is named. An sdist carries it on to the wheel that
is made of it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMMIT = "src/outmail/COMMIT"


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling for each target."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._made = tempfile.TemporaryDirectory()
        if version == "editable":
            return
        commit = self._commit()
        if self.target_name == "sdist":
            build_data["force_include"] |= dict.fromkeys(commit, COMMIT)
            return
        build_data["force_include"] |= dict.fromkeys(commit, COMMIT.removeprefix("src/"))
        build_data["shared_data"] |= self._shared()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._made.cleanup()

    def _commit(self) -> list[str]:
        """The file that names the commit; none where it is not known, or is in the source already."""
        root = Path(self.root)
        if not (root / ".git").exists():
            return []
        try:
            words = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return []
        return [self._file("COMMIT", done.stdout)]

    def _shared(self) -> dict[str, str]:
        """File → its path below the environment."""
        sys.path.insert(0, str(Path(self.root, "src")))
        sys.dont_write_bytecode = True
        from outmail.cli import completion_scripts, manual

        files = {f"share/man/{path}": text for path, text in manual.files().items()}
        files |= {f"share/{path}": text for path, text in completion_scripts.FILES.items()}
        return {self._file(path, text): path for path, text in files.items()}

    def _file(self, path: str, text: str) -> str:
        file = Path(self._made.name, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(0o644)
        return str(file)
