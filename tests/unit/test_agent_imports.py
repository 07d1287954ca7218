"""What the daemon's process holds: no model and no update can take it down, and it stays small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import edgekit_agent

_RUN = """
import ast, sys
import edgekit_agent.__main__ as main

# what `run` imports inside its function, taken from its own code
tree = ast.parse(open(main.__file__).read())
(run,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "_run"]
imports = [node for node in run.body if isinstance(node, (ast.Import, ast.ImportFrom))]
assert len(imports) >= 5
exec(compile(ast.Module(imports, []), "_run", "exec"))
print("\\n".join(sorted(sys.modules)))
"""

_FORBIDDEN = (
    "asyncio",
    "cryptography",
    "edgekit",
    "edgekit_runtime",
    "email",
    "http",
    "numpy",
    "onnxruntime",
    "ai_edge_litert",
    "securesystemslib",
    "sqlite3",
    "tuf",
    "urllib.request",
    "uvicorn",
)
_CONTRACT = {"errors", "limits", "messages", "names", "topics"}


def daemon_modules() -> set[str]:
    # coverage would bring its own modules into the child
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    run = subprocess.run(
        [sys.executable, "-I", "-c", _RUN],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return set(run.stdout.split())


def test_the_daemon_imports_no_runtime_no_cryptography_and_no_asyncio() -> None:
    modules = daemon_modules()
    assert "edgekit_agent.daemon" in modules
    assert "paho.mqtt.client" in modules
    found = {m for m in modules for f in _FORBIDDEN if m == f or m.startswith(f + ".")}
    assert not found


def test_the_daemon_imports_topics_and_messages_of_the_contract_and_what_they_need() -> None:
    contract = {
        m.removeprefix("edgekit_contract.")
        for m in daemon_modules()
        if m.startswith("edgekit_contract.")
    }
    assert contract == _CONTRACT


def test_nothing_in_the_agent_is_written_for_a_newer_python() -> None:
    """Devices have Python 3.10 (JetPack 6)."""
    folder = Path(edgekit_agent.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text()
        for newer in ("datetime import UTC", "datetime.UTC", "StrEnum", "TaskGroup", "Self\n"):
            assert newer not in text, f"{path.name} uses {newer}"
