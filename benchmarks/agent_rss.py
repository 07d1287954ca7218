"""Resident memory of the agent's processes, on a device that takes an update.

    python benchmarks/agent_rss.py [--markdown]

A real fleet on loopback (see transfer.py): mutual TLS, an update of 16 MiB, then a worker with the
digits model of examples/digits. RSS counts shared libraries whole; PSS shares them out; USS is what
would be free if the process went. Bytecode is compiled beforehand, as `pip install` does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import psutil
import transfer

import edgekit_profiles
from edgekit.build import BuildRequest, build

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
_BARE = "import time, sys; sys.stdout.write('x'); sys.stdout.flush(); time.sleep(60)"
_SAMPLES_S = 0.02
_SETTLED_S = 4.0


def digits_bundle(directory: Path) -> Path:
    result = build(
        BuildRequest(
            model=DIGITS / "digits.onnx",
            profiles=(edgekit_profiles.load(transfer.PROFILE),),
            calibration=str(DIGITS / "calibration.npz"),
            validation=str(DIGITS / "validation.npz"),
            name="digits",
            version="1.0",
            output=directory,
            recipes=("float32*",),
            search_time_s=2.0,
        )
    )
    return result.built[0].bundle.path


class Peak:
    """Memory of a process: the most seen, in MiB."""

    def __init__(self) -> None:
        self.mib: dict[str, float] = {"rss": 0.0, "pss": 0.0, "uss": 0.0}

    def look(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            for name in self.mib:
                self.mib[name] = max(self.mib[name], round(getattr(memory, name) / 2**20, 1))


def bare_python() -> dict[str, float]:
    peak = Peak()
    with subprocess.Popen([sys.executable, "-c", _BARE], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        peak.look(psutil.Process(child.pid))
        child.kill()
    return peak.mib


@contextlib.contextmanager
def agent(device: Path, directory: Path) -> Iterator[psutil.Process]:
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(directory / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with device.with_suffix(".log").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "edgekit_agent", "run", "--dir", str(device)],
            env=environment,
            stderr=log,
        )
    try:
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(30)


def measure() -> dict[str, Any]:
    peaks = {name: Peak() for name in ("daemon, connected", "daemon, updating", "daemon, after")}
    peaks |= {name: Peak() for name in ("updater", "warm-up", "worker")}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        bulk, _ = transfer.bulky_bundle(directory, mib=16)
        digits = digits_bundle(directory)
        found = stack.enter_context(transfer.fleet(directory))
        fleet = ("--fleet", str(found.directory))
        transfer.edgekit("release", "add", *fleet, str(bulk), str(digits))
        device = transfer.enrol(found, "agent-0", directory)
        with (device / "device.toml").open("a") as stream:
            stream.write("probation_s = 3\nhealth_s = 1\n")
        with agent(device, directory):  # leaves its bytecode for the next
            time.sleep(_SETTLED_S)
        daemon = stack.enter_context(agent(device, directory))
        time.sleep(_SETTLED_S)
        peaks["daemon, connected"].look(daemon)
        for model in (transfer.MODEL, "digits"):
            transfer.edgekit("rollout", "start", f"{model}@1.0", "--to", "all", *fleet)
            while not (device / "models" / model / "active").exists():
                watch(daemon, peaks)
        until = time.monotonic() + _SETTLED_S
        while time.monotonic() < until:
            watch(daemon, {"worker": peaks["worker"], "daemon, updating": Peak()})
        peaks["daemon, after"].look(daemon)
    return {"bare Python": bare_python()} | {name: peak.mib for name, peak in peaks.items()}


def watch(daemon: psutil.Process, peaks: dict[str, Peak]) -> None:
    """Look at the daemon and its children by what they run."""
    time.sleep(_SAMPLES_S)
    peaks["daemon, updating"].look(daemon)
    for child in daemon.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = " ".join(child.cmdline())
            for module, name in (
                ("updater", "updater"),
                ("warmup", "warm-up"),
                ("worker", "worker"),
            ):
                bulk = f"/models/{transfer.MODEL}/" in command
                if f"edgekit_agent.{module}" in command and not bulk and name in peaks:
                    peaks[name].look(child)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    results = measure()
    if not options.markdown:
        machine.emit(results)
        return
    print("| process | RSS MiB | PSS MiB | USS MiB |\n| --- | ---: | ---: | ---: |")
    for name, mib in results.items():
        print(f"| {name} | {mib['rss']} | {mib['pss']} | {mib['uss']} |")


if __name__ == "__main__":
    main()
