"""Parts that tests need from the machine: a skip on a laptop, a failure under CI=true."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

_INSTALL = {
    "mosquitto": "apt-get install mosquitto",
    "chromium": "apt-get install chromium",
    "openssl": "apt-get install openssl",
    "unzip": "apt-get install unzip",
    "curl": "apt-get install curl",
    "qemu-aarch64-static": "apt-get install qemu-user-static",
}


def need(program: str) -> str:
    """The path of a program. Where it is missing the test is skipped, or fails under CI=true."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        missing(f"{program} is not installed: {_INSTALL.get(program, f'install {program}')}")
    return found


def need_package(module: str, *, install: str) -> None:
    """Demand an importable module; `install` is the pip requirement that brings it."""
    if importlib.util.find_spec(module) is None:
        missing(f"{module} is not installed: pip install {install}")


def need_path(path: Path, *, install: str) -> None:
    """Demand a file or directory; `install` says what brings it."""
    if not path.exists():
        missing(f"{path} is not there: {install}")


def need_command(*command: str, install: str) -> None:
    """Demand that a command works here; `install` says what makes it so."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        missing(f"{command[0]} does not work here ({done.stderr.strip()}): {install}")


def missing(sentence: str) -> NoReturn:
    """Skip, or fail under CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)
