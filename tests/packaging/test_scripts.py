"""The scripts on machines that lack something: what they say, and that they go on."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSION = "Python 3.11.0 (of the test)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts in a tree of their own: they remove files beside them."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    for name in ("pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, root)
    return root


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def run(checkout: Path, script: str, python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As somebody who is not root."""
    somebody = program(checkout.parent / "bin" / "id", "echo 1000")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [checkout / "scripts" / script, *words],
        check=False,
        capture_output=True,
        text=True,
        env={
            **environment,
            "PATH": f"{somebody.parent}:{os.environ['PATH']}",
            "EDGEKIT_PYTHON": str(python),
            "EDGEKIT_VENV": str(checkout / "venv"),
        },
    )


def test_demo_without_venv_says_what_to_install_and_nothing_of_tests(checkout: Path) -> None:
    python = program(
        checkout.parent / "python3",
        f'case "$1" in -VV) echo "{VERSION}";; *) exit 1;; esac',
    )
    done = run(checkout, "demo", python)
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr.splitlines()[-1]
    assert "without it there is no virtual environment" in done.stderr
    assert "tests" not in done.stderr
    assert not (checkout / "venv").exists()


@pytest.mark.parametrize("code", [0, 1])
def test_coverage_is_told_of_a_run_that_fails_as_of_one_that_passes(
    checkout: Path, code: int
) -> None:
    python = program(
        checkout / "venv" / "bin" / "python",
        f"""case "$*" in
        -VV) echo "{VERSION}";;
        "-m coverage run"*) exit {code};;
        "-m coverage report"*) echo TOTAL 100%;;
        esac""",
    )
    parts = ("pyproject.toml", "hatch_build.py", "scripts/environment")
    whole = b"".join((checkout / part).read_bytes() for part in parts) + f"{VERSION}\n".encode()
    stamp = checkout / "venv" / "edgekit-check"
    stamp.write_text(f"{hashlib.sha256(whole).hexdigest()}  -\n")
    done = run(checkout, "test", python, "--coverage")
    assert (done.returncode, done.stdout) == (code, "TOTAL 100%\n"), done.stderr
