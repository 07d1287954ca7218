"""Every command that a page shows is typed, in the order in which the page shows it.

A page's commands are the lines that begin with `$ ` inside its ```console blocks. They run in one
shell, in an empty directory that has only `examples`; a command that fails fails the test.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from parts import need
from tools import need_environment

from edgekit_converters.environments import LITERT

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").glob("*/README.md")),
    )
    if "```console" in page.read_text()
]
TIMEOUT_S = 300


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def script(page: Path) -> str:
    """The page as one script that says which command failed, and ends what it left running."""
    typed = []
    for command in commands(page):
        typed.append(f"echo {command!r} >&2" if "'" not in command else "")
        if command.rstrip().endswith("&"):
            typed += [command, "sleep 3"]
        else:
            typed.append(command)
    return "\n".join(["set -euo pipefail", *typed, "echo all commands ran"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_page_work_when_typed(page: Path, tmp_path: Path) -> None:
    need("mosquitto")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "EDGEKIT_PASSPHRASE": "",
    }
    if page.name == "litert.md":
        environment["EDGEKIT_CACHE"] = str(need_environment(LITERT))
    log = tmp_path / "log"
    with log.open("wb") as stream:
        shell = subprocess.Popen(
            ["bash", "-c", script(page)],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=TIMEOUT_S)
        finally:
            end_session(shell.pid)
    said = log.read_text(errors="replace")
    assert code == 0, said
    assert "all commands ran" in said


def end_session(session: int) -> None:
    """End every process of the shell's session, politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        members = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and session_of(entry) == session
        ]
        for pid in members:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = 50
        while deadline and any(Path(f"/proc/{pid}").exists() for pid in members):
            deadline -= 1
            subprocess.run(["sleep", "0.1"], check=True)


def session_of(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[3])
