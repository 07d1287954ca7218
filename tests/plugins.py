"""The example's runtime plug-in, installed by pip into a directory of its own; a model of it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]
MODEL = b'ACME{"inputs": [{"name": "x", "dtype": "float32", "shape": ["n", 4]}], "scale": 2.0}'
"""`y` is twice the sum of each row."""
PROFILE = """
name = "acme-box"
title = "A box with ACME's accelerator"
platform = "linux"
[cpu]
arch = "x86_64"
core = "Haswell"
cores = 1
[memory]
ram_mib = 512
[[runtimes]]
kind = "acme"
version = "2.0"
python = "3.11"
threads = 1
wheel = "edgekit-acme, from ACME"
[budget]
bundle_mib = 16
ram_mib = 256
"""


_SITE = TemporaryDirectory(prefix="edgekit-plugin-")


@cache
def _site() -> str:
    directory = _SITE.name
    source = ROOT / "examples" / "runtime-plugin"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--target", directory, str(source)]
    subprocess.run(command, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    return directory


def add_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the installed plug-in on the path of this process and of its children."""
    monkeypatch.syspath_prepend(_site())
    monkeypatch.setenv("PYTHONPATH", _site())
