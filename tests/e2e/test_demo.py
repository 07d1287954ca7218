"""The whole product at once: `edgekit demo` ends well, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from parts import need, need_package

ENDINGS = {
    "1.0": "committed",
    "1.1": "refused",
    "1.2": "rolled-back",
    "1.3": "committed",
}


def play(tmp_path: Path, broker: str) -> tuple[dict[str, object], str]:
    """Run the demo with this broker; its JSON and what it told."""
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "demo", "--json", "--broker", broker],
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def processes_below(directory: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(directory) in line:
                found.append(line)
    return found


def check(result: dict[str, object], tmp_path: Path) -> None:
    chapters = {chapter["version"]: chapter for chapter in result["chapters"]}  # type: ignore[attr-defined]
    assert {version: set(c["endings"].values()) for version, c in chapters.items()} == {
        version: {ending} for version, ending in ENDINGS.items()
    }
    assert all(len(chapter["endings"]) == 3 for chapter in chapters.values())
    assert chapters["1.1"]["served"] == 0
    assert chapters["1.2"]["failed"] > 0
    assert [chapters[version]["failed"] for version in ("1.0", "1.1", "1.3")] == [0, 0, 0]
    assert result["accuracy"] > 0.9  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []
    assert processes_below(tmp_path) == []


def test_demo_with_mosquitto_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    need("mosquitto")
    result, told = play(tmp_path, "mosquitto")
    assert "mosquitto" in told
    check(result, tmp_path)


def test_demo_with_the_pip_broker_says_what_it_lacks(tmp_path: Path) -> None:
    need_package("iotcore", install="iotcore")
    result, told = play(tmp_path, "iotcore")
    assert "no client certificates and no ACL" in told
    check(result, tmp_path)
