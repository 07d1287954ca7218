"""The wheel of this checkout, and clean environments to put it in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "build_wheel", "clean_environment", "environment", "interpreters", "run"]

ROOT = Path(__file__).parents[1]


def clean_environment() -> dict[str, str]:
    """The environment less what would let this checkout or coverage leak into a child."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "COV", "VIRTUAL_ENV"))
    }


def run(
    *command: str | Path, check: bool = True, cwd: Path | str = "/"
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env=clean_environment(),
        cwd=cwd,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def build_wheel(out: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, ROOT)
    (built,) = out.glob("edgekit-*.whl")
    return built


def environment(where: Path, *requirements: str, python: str | Path = sys.executable) -> Path:
    """A fresh virtual environment with these requirements; its Python."""
    run(python, "-m", "venv", where)
    inner = where / "bin" / "python"
    # --no-compile: most modules are never imported
    options = ("--quiet", "--disable-pip-version-check", "--no-compile")
    run(inner, "-m", "pip", "install", *options, *requirements)
    return inner


def interpreters() -> dict[str, Path]:
    """Interpreters of the supported versions on this machine, besides the one that runs."""
    found: dict[str, Path] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in range(10, 14):
        name = f"3.{minor}"
        candidates = [*sorted(pyenv.glob(f"{name}.*/bin/python"))]
        if on_path := shutil.which(f"python{name}"):
            candidates.append(Path(on_path))
        for candidate in candidates:
            answer = subprocess.run(
                [candidate, "--version"], capture_output=True, text=True, check=False
            )
            if re.match(rf"Python {re.escape(name)}\.", answer.stdout):
                found[name] = candidate
                break
    found.pop(f"{sys.version_info.major}.{sys.version_info.minor}", None)
    return found
