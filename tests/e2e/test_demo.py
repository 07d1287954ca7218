"""The whole product at once: `edgekit demo` ends well, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parts import need, need_package

ENDINGS = {
    "1.0": ("committed", "commit"),
    "1.1": ("refused", "warmup"),
    "1.2": ("rolled-back", "probation"),
    "1.3": ("committed", "commit"),
}
PATIENCE_S = 280


def command(broker: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "edgekit", "demo", "--json", "--broker", broker, *more]


def play(tmp_path: Path, broker: str) -> tuple[dict[str, Any], str]:
    """Run the demo with this broker; its JSON and what it told."""
    done = subprocess.run(
        command(broker),
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@contextmanager
def kept(tmp_path: Path, broker: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The same with --keep, until the block ends with Ctrl-C, as a terminal sends it to all."""
    log = tmp_path.with_suffix(".log")
    with log.open("w") as stream:
        process = subprocess.Popen(
            # a job in the background has it ignored
            ["env", "--default-signal=INT", *command(broker, "--keep")],
            env=os.environ | {"TMPDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Ctrl-C ends it." not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        assert process.stdout is not None
        printed = os.read(process.stdout.fileno(), 1 << 20)
        yield json.loads(printed), log.read_text()
        assert process.poll() is None, "it did not stay"
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert (process.returncode, rest) == (0, ""), log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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


def check(result: dict[str, Any]) -> None:
    chapters = {chapter["version"]: chapter for chapter in result["chapters"]}
    assert {
        version: {(chapter["endings"][d], chapter["phases"][d]) for d in chapter["endings"]}
        for version, chapter in chapters.items()
    } == {version: {ending} for version, ending in ENDINGS.items()}
    assert all(len(chapter["endings"]) == 3 for chapter in chapters.values())
    assert chapters["1.1"]["served"] == 0
    assert chapters["1.2"]["failed"] > 0
    assert [chapters[version]["failed"] for version in ("1.0", "1.1", "1.3")] == [0, 0, 0]
    assert result["accuracy"] > 0.9
    assert 0 < sum(chapter["seconds"] for chapter in chapters.values()) < result["seconds"]


def check_nothing_is_left(tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    assert processes_below(tmp_path) == []


def test_demo_with_mosquitto_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    need("mosquitto")
    result, told = play(tmp_path, "mosquitto")
    assert "mosquitto" in told
    check(result)
    check_nothing_is_left(tmp_path)


def test_demo_with_the_pip_broker_says_what_it_lacks_and_stays_until_interrupted(
    tmp_path: Path,
) -> None:
    need_package("iotcore", install="iotcore")
    with kept(tmp_path, "iotcore") as (result, told):
        assert "no client certificates and no ACL" in told
        check(result)
        assert len(processes_below(tmp_path)) >= 5  # broker or hub, three agents, their workers
        with urllib.request.urlopen(result["dashboard"], timeout=30) as response:
            assert b"<html" in response.read()
    check_nothing_is_left(tmp_path)
