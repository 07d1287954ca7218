"""Converters that crash, hang, fill the disk or eat memory: stopped, named, and nothing is left.

The tool that misbehaves is a process in an environment, started, bounded and ended as any other.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
from build_requests import DIGITS
from command_line import Answer, edgekit

from edgekit.build import pantry
from edgekit_converters.environments import LITERT, TENSORFLOW, Environment, installation
from edgekit_converters.isolation import calls

FAULTS = {
    "hang": "time.sleep(3600)",
    "memory": "held = []\nwhile True: held.append(bytes(64 << 20))",
    "disk": "n, there = 0, os.environ['TMPDIR']\n"
    "while n := n + 1: open(f'{there}/{n}', 'wb').write(bytes(1 << 20))",
    "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
}
LITERT_ONLY = """
name = "lite"
title = "A device with LiteRT alone"
platform = "linux"
[cpu]
arch = "x86_64"
core = "Haswell"
cores = 1
[memory]
ram_mib = 512
[[runtimes]]
kind = "litert"
version = "2.1.0"
python = "3.11"
threads = 1
[budget]
bundle_mib = 16
ram_mib = 256
"""


class Place:
    """Where a command runs: all that it may write is in here, and the tool says who it was."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.out, self.scratch = root, root / "out", root / "tmp"
        self.witness = root / "witness"
        self.scratch.mkdir()
        monkeypatch.setenv("TMPDIR", str(self.scratch))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("EDGEKIT_CACHE", str(root / "cache"))

    def limit(self, monkeypatch: pytest.MonkeyPatch, fault: str) -> float:
        """Short limits for what runs into them; seconds for a conversion."""
        seconds = 3.0 if fault == "hang" else 60.0
        monkeypatch.setattr(pantry, "_MAKE_TIMEOUT_S", seconds)
        monkeypatch.setattr(calls, "_WRITTEN_BYTES", 64 << 20)
        return seconds

    def put_tool(self, environment: Environment, fault: str) -> None:
        """An environment whose Python does this, whatever it is asked."""
        home = self.root / "cache" / "environments" / f"{environment.name}-of-a-test"
        python = home / "bin" / "python"
        python.parent.mkdir(parents=True)
        program = home / "program.py"
        program.write_text(f"{self._introduction}\n{FAULTS[fault]}\n")
        python.write_text(f"#!/bin/sh\nexec {sys.executable} -I {program}\n")
        python.chmod(0o755)
        contents = installation._contents(environment, "3.12.0")
        (home / "complete.json").write_text(json.dumps(contents))

    def put_callable(self, fault: str) -> str:
        """A function of a module of the user's."""
        body = "\n    ".join(f"{self._introduction}\n{FAULTS[fault]}".splitlines())
        module = f"misbehaving_{fault}"
        (self.root / f"{module}.py").write_text(f"def model():\n    {body}\n")
        return f"{module}:model"

    @property
    def _introduction(self) -> str:
        witness = f"pathlib.Path({str(self.witness)!r}).write_text(str(os.getpid()))"
        return f"import os, pathlib, signal, time\n{witness}"

    def build(self, model: object, profile: object, *words: object) -> Answer:
        return edgekit("build", model, "--profile", profile, "-o", self.out, "--no-cache", *words)

    def check_nothing_is_left(self) -> None:
        """Nor what was put into the cache: it is whole."""
        assert list(self.scratch.iterdir()) == []
        assert not self.out.exists()
        pid, ends = int(self.witness.read_text()), time.monotonic() + 5.0
        while is_running(pid):
            assert time.monotonic() < ends, "the tool goes on"
            time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


@pytest.fixture
def litert_only(tmp_path: Path) -> Path:
    path = tmp_path / "lite.toml"
    path.write_text(LITERT_ONLY)
    return path


@pytest.fixture
def keras_model(tmp_path: Path) -> Path:
    """As far as edgekit itself looks into one."""
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "metadata.json"):
            archive.writestr(name, "{}")
    return path


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("hang", "did not end within 3.0"),
        ("memory", "it needs more memory than it may have"),
        ("disk", "MiB to the disk and was stopped"),
        ("crash", "it crashed (SIGSEGV)"),
    ],
)
def test_tool_that_writes_litert_models_and_misbehaves_is_stopped_and_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, litert_only: Path, fault: str, told: str
) -> None:
    place.limit(monkeypatch, fault)
    place.put_tool(LITERT, fault)
    answer = place.build(DIGITS / "digits.onnx", litert_only)
    assert (answer.code, answer.out) == (1, "")
    said = answer.err.strip().splitlines()[-1]
    assert said.startswith("edgekit: digits.onnx cannot be converted for litert (")
    assert told in said
    assert said.endswith("choose a profile with onnxruntime, or change the model.")
    place.check_nothing_is_left()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("hang", "it did not end within 3 s; give it longer (--conversion-time), or convert it"),
        ("memory", "it needs more memory than it may have; save it again, or convert it"),
        ("disk", "MiB to the disk and was stopped; save it again, or convert it"),
        ("crash", "it crashed (SIGSEGV); save it again, or convert it"),
    ],
)
def test_tool_that_reads_keras_models_and_misbehaves_is_stopped_and_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, keras_model: Path, fault: str, told: str
) -> None:
    seconds = place.limit(monkeypatch, fault)
    place.put_tool(TENSORFLOW, fault)
    answer = place.build(keras_model, "demo-small", "--conversion-time", seconds)
    assert (answer.code, answer.out) == (1, "")
    said = answer.err.strip().splitlines()[-1]
    assert said.startswith("edgekit: converting net.keras failed: ")
    assert told in said
    assert said.endswith("to ONNX yourself.")
    place.check_nothing_is_left()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("hang", "it did not end within 3 s; give it longer (--conversion-time), or convert it"),
        ("memory", "it needs more than 4096 MiB of memory; mend that function."),
        ("disk", "MiB to the disk and was stopped; mend that function."),
        ("crash", "it crashed (SIGSEGV); mend that function."),
    ],
)
def test_callable_that_misbehaves_is_stopped_and_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    seconds = place.limit(monkeypatch, fault)
    name = place.put_callable(fault)
    monkeypatch.syspath_prepend(str(place.root))
    answer = place.build(name, "demo-small", "--conversion-time", seconds)
    assert (answer.code, answer.out) == (1, "")
    said = answer.err.strip().splitlines()[-1]
    assert said.startswith(f"edgekit: converting {name} failed: ")
    assert told in said
    place.check_nothing_is_left()


def test_tool_that_fails_costs_a_build_no_more_than_its_variants(
    place: Place, tmp_path: Path
) -> None:
    """Where the device has another runtime, too."""
    place.put_tool(LITERT, "crash")
    words = ("--recipe", "litert/float*", "--search-time", 2, "--json")
    answer = place.build(DIGITS / "digits.onnx", "demo-small", *words)
    assert answer.code == 0, answer.err
    candidates = json.loads(answer.out)["bundles"][0]["report"]["candidates"]
    reasons = {c["recipe"]: c["reason"] for c in candidates if c["outcome"] == "failed"}
    assert "it crashed (SIGSEGV)" in reasons["litert/float32"]
