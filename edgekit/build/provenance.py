"""Where a variant comes from: versions of what made it, and the commit that its model is of."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["git_commit", "tool_versions"]

_TOOLS: Final = ("edgekit", "numpy", "onnx", "onnxruntime", "ai-edge-litert")
_MAKERS: Final = ("onnx2tf", "ai-edge-quantizer", "tensorflow-cpu")
"""What makes a variant in an environment of its own."""
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}\Z")
_GIT_TIMEOUT_S: Final = 5.0


def tool_versions(pins: Iterable[str] = ()) -> dict[str, str]:
    """Installed packages that take part in a build, and their versions; `pins` are those of the
    environment that a variant was made in."""
    found = dict(pin.split("==") for pin in pins if pin.split("==")[0] in _MAKERS)
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit(path: Path) -> str | None:
    """The commit checked out where `path` is, if Git tracks that very file and it is unchanged.

    None for a directory: what of it Git ignores would go unseen.
    """
    if path.is_dir():
        return None
    for command in (
        ["ls-files", "--error-unmatch", path.name],
        ["diff", "--quiet", "HEAD", "--", path.name],
        ["rev-parse", "HEAD"],
    ):
        try:
            done = subprocess.run(
                ["git", "-C", str(path.resolve().parent), *command],
                capture_output=True,
                text=True,
                timeout=_GIT_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
    commit = done.stdout.strip()
    return commit if _COMMIT.match(commit) else None
