"""The commands of docs/benchmarks.md, in short: each ends well and prints figures as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from parts import need, need_package
from tools import need_environment, need_sysroot

import edgekit_profiles
from edgekit_converters.environments import LITERT

ROOT = Path(__file__).parents[2]
SHORT = {
    "agent_rss": (),
    "calibration": ("--short",),
    "estimates": ("--short",),
    "dashboard": ("--devices", "200", "--rate", "100", "--seconds", "1", "--rounds", "1"),
    "doors": ("--short",),
    "emulation": ("--model", "digits", "--inputs", "2"),
    "litert": ("--short",),
    "local_api": ("--rounds", "2"),
    "many": ("--short",),
    "pictures": ("--short",),
    "sensitivity": ("--short",),
    "transfer": ("--mib", "2", "--rounds", "1"),
}
LONG = ("build_real_models", "demo")
"""They do what test_build_real_models.py and test_demo.py do again, and have no short form."""
NO_PROGRAMS = (
    "door_models",
    "machine",
    "minilm",
    "more_models",
    "peers",
    "published_models",
    "real_models",
    "transformer_models",
)


def test_every_benchmark_is_run_or_said_not_to_be() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert modules == {*SHORT, *NO_PROGRAMS, *LONG}


@pytest.mark.parametrize("name", sorted(SHORT))
def test_benchmark_prints_its_figures_and_the_machine(name: str) -> None:
    need("mosquitto")
    need("chromium")
    if name == "doors":
        need_package("skl2onnx", install="scripts/models")
    environment = dict(os.environ)
    if name == "emulation":
        environment["EDGEKIT_CACHE"] = str(need_sysroot(edgekit_profiles.load("raspberry-pi-4")))
    if name == "litert":
        environment["EDGEKIT_CACHE"] = str(need_environment(LITERT))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *SHORT[name]],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["machine"]
    assert len(figures) > 1
