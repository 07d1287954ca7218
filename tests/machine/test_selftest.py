"""`edgekit-agent selftest`: every part is tried, and one that crashes does not end the others."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parts import need_package

from edgekit_agent import selftest
from edgekit_contract.errors import Refused


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit_agent", "selftest", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_all_that_an_agent_is_made_of_works_here() -> None:
    need_package("ai_edge_litert", install="'edgekit[tflite]'")
    done = run("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["passed"] is True
    assert [check["name"] for check in told["checks"]] == [
        "imports", "storage", "cryptography", "tls", "local API", "onnxruntime", "litert", "null",
    ]  # fmt: skip


def test_lines_for_people_say_what_was_found() -> None:
    done = run()
    assert done.returncode == 0, done.stdout
    assert "passed  local API: a worker started, answered and drained\n" in done.stdout
    assert "passed  onnxruntime: version " in done.stdout


def crash(_: Path) -> str:
    faulthandler.disable()  # pytest's would tell of it
    os.kill(os.getpid(), signal.SIGILL)
    raise AssertionError


def exit_early(_: Path) -> str:
    os._exit(3)


def hang(_: Path) -> str:
    time.sleep(600)
    return ""


def raise_oddly(_: Path) -> str:
    raise KeyError("odd")


def refuse(_: Path) -> str:
    raise Refused("it will not.")


@pytest.mark.parametrize(
    ("check", "detail"),
    [
        (crash, "it crashed (SIGILL)."),
        (exit_early, "it ended with code 3."),
        (hang, "it did not end within 0 s."),
        (raise_oddly, "KeyError: 'odd'."),
        (refuse, "it will not."),
    ],
)
def test_check_that_fails_is_told_and_the_next_runs(
    monkeypatch: pytest.MonkeyPatch, check, detail: str
) -> None:
    if check is hang:
        monkeypatch.setattr(selftest, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(
        selftest, "_checks", lambda: {"bad": check, "good": lambda directory: "fine"}
    )
    bad, good = selftest.run_checks()
    assert (bad.name, bad.passed, bad.detail) == ("bad", False, detail)
    assert good.passed or check is hang


def test_device_without_a_runtime_fails() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from edgekit_agent import selftest\n"
            "import edgekit_runtime.session as s\n"
            "s.installed_version = lambda *names: None\n"
            "import edgekit_runtime.backend_onnxruntime as o, edgekit_runtime.backend_litert as l\n"
            "o.installed_version = l.installed_version = s.installed_version\n"
            "print([c.detail for c in selftest.run_checks() if not c.passed])",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "no runtime is installed: pip install 'edgekit[agent,onnx]'" in done.stdout


def test_broken_plug_in_is_a_check_of_its_own_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[edgekit.runtimes]\nacme = broken_plugin\n")
    (tmp_path / "broken_plugin.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run("--json")
    assert done.returncode == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["acme"]["detail"] == "it crashed (SIGKILL)."
    assert [name for name, check in checks.items() if not check["passed"]] == ["acme"]
