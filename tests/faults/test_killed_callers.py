"""A caller that is killed takes what it had others compute along: emulators, converters, tools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PATIENCE_S = 20.0
QEMU = """#!/bin/sh
case "$*" in
--version) echo "qemu-aarch64 version 7.2.0" ;;
"-cpu help") echo cortex-a53 cortex-a72 ;;
*) echo $$ > {witness}; exec sleep 3600 ;;
esac
"""
EMULATION = """
import sys
from pathlib import Path
from edgekit.emulation.debian import suite_for
from edgekit.emulation.machine import Machine
from edgekit.emulation.sysroot import Sysroot
from edgekit_contract.profile import Arch, Cpu
from edgekit_converters.isolation import Limits

empty = Path(sys.argv[1])
sysroot = Sysroot(suite=suite_for("3.11"), base=empty, wheels=empty, own=empty)
cpu = Cpu(arch=Arch.AARCH64, core="cortex-a72", cores=1, features=())
Machine(sysroot, cpu).run_python(["-c", "pass"], step="a nap", bounds=Limits(timeout_s=600.0))
"""
HELD_STILL = """
import sys, time
from pathlib import Path
from edgekit_converters.isolation import Limits, Workshop

class Neighbours:
    def are_waiting(self):
        return Path(sys.argv[2]).exists()
    def give_way(self):
        Path(sys.argv[2]).with_suffix(".held").touch()
        time.sleep(3600)

command = ["sh", "-c", "echo $$ > $0; exec sleep 3600", sys.argv[2]]
with Workshop(warm=(), neighbours=Neighbours()) as workshop:
    words = {"command": command, "python_path": ""}
    workshop.run("a nap", "edgekit.emulation.machine:in_child", words, Limits(timeout_s=600.0))
"""


def killed_after(program: str, directory: Path, awaited: str) -> None:
    """Run a program, kill it once `awaited` is there, and demand that all it had started ends."""
    empty, witness = directory / "empty", directory / "pid"
    empty.mkdir()
    environment = os.environ | {
        "PATH": f"{directory}:{os.environ['PATH']}", "TMPDIR": str(directory),
    }  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", program, empty, witness], env=environment) as run:
        wait_for(lambda: (directory / awaited).exists() and witness.read_text().strip())
        started = psutil.Process(run.pid).children(recursive=True)
        assert int(witness.read_text()) in {process.pid for process in started}
        run.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
    left = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert left == []


def wait_for(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_an_emulator_ends_with_whoever_called_it(tmp_path: Path) -> None:
    """A command stands for qemu; launcher, bounds and end are those of `edgekit verify`."""
    qemu = tmp_path / "qemu-aarch64-static"
    qemu.write_text(QEMU.format(witness=tmp_path / "pid"))
    qemu.chmod(0o755)
    killed_after(EMULATION, tmp_path, "pid")


def test_a_call_that_was_held_still_ends_with_its_caller_as_well(tmp_path: Path) -> None:
    killed_after(HELD_STILL, tmp_path, "pid.held")
