"""What a page shows to be typed is typed, in its order; what it only names is there.

Typed are the lines that begin with `$ ` inside ```console blocks, and ```python blocks, in one
shell, in an empty directory that has only `examples`; what fails fails the test. Of commands that
stand elsewhere (in other blocks, where words are placeholders, and in the text) it is looked at
whether `edgekit` and `edgekit-agent` have the command and its options, and whether a script is
there.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from itertools import product, takewhile
from pathlib import Path

import pytest
from command_line import edgekit
from parts import need, need_package
from tools import need_environment, need_sysroot

import edgekit_profiles
from edgekit_agent.__main__ import main as agent
from edgekit_converters.environments import LITERT

ROOT = Path(__file__).parents[2]
EVERY_PAGE = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
BY_OTHER_TESTS = ("local-api.md",)
"""Its blocks need a running worker: tests/machine/test_local_api_docs.py."""
PAGES = [
    page
    for page in EVERY_PAGE
    if re.search(r"^```(console|python)$", page.read_text(), re.MULTILINE)
    and page.name not in BY_OTHER_TESTS
]
TIMEOUT_S = 300


def commands(page: Path) -> list[str]:
    """Lines for a shell, in the page's order."""
    found = []
    text = page.read_text()
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if kind == "console":
            lines = block.splitlines()
            found += [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif kind == "python":
            found.append(f"python3 - <<'PYTHON'\n{block}PYTHON")
    return found


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


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a reader, who goes from page to page: what one built, the next need not."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_page_work_when_typed(page: Path, tmp_path: Path, cache: Path) -> None:
    need("mosquitto")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "EDGEKIT_PASSPHRASE": "",
        "EDGEKIT_CACHE": str(cache),
        "EDGEKIT_CACHE_MIB": "500",
    }
    if page.name == "sources.md":
        need_package("skl2onnx", install="scripts/models")
    if page.name == "emulation.md":
        environment["EDGEKIT_CACHE"] = str(need_sysroot(edgekit_profiles.load("raspberry-pi-4")))
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


def named(page: Path) -> list[str]:
    """What follows `edgekit` or `edgekit-agent`, wherever the page has it as code."""
    text = page.read_text()
    inline = re.findall(r"`(edgekit(?:-agent)? [^`\n]+)`", text)
    blocks = re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^    (?=\S)(.*)$", text, re.MULTILINE)
    typed = (re.match(r"(?:sudo -u \w+ )?(edgekit(?:-agent)? .*)", line.strip()) for line in lines)
    return inline + [match[1] for match in typed if match]


def help_of(program: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """What `--help` says, or nothing where there is no such command."""
    if program == "edgekit":
        answer = edgekit(*words, "--help")
        return answer.out if answer.code == 0 else ""
    with pytest.raises(SystemExit) as end:
        agent([*words, "--help"])
    said = capsys.readouterr().out
    return said if end.value.code == 0 else ""


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_names_are_there_with_their_options(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shown in named(page):
        program, *words = shown.split()
        path = list(takewhile(lambda word: re.fullmatch(r"[a-z|-]*[a-z]", word), words))
        groups = ("devices", "fleet", "keys", "profiles", "release", "rollout")
        path = path[: 2 if path[:1] and path[0] in groups else 1]
        options = re.findall(r"(?<![\w-])--[a-z][a-z-]*", shown)
        for choice in product(*(word.split("|") for word in path)):
            said = help_of(program, choice, capsys)
            assert said, f"{page.name}: there is no {program} {' '.join(choice)}"
            missing = [option for option in options if option not in said]
            assert not missing, f"{page.name}: {shown}"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_scripts_that_a_page_names_are_there(page: Path) -> None:
    for path in re.findall(r"\b(?:scripts|benchmarks)/[a-z_]+(?:\.[a-z]+)?\b", page.read_text()):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


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
