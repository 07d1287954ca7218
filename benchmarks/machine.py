"""What every benchmark says of itself: the machine, the commit, the command; and medians.

A benchmark prints one JSON object on stdout, the `envelope`; docs/benchmarks.md quotes it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["describe", "emit", "envelope", "spread"]


def describe() -> dict[str, Any]:
    """The machine: CPU, cores, memory, load before the run, kernel, Python, libraries."""
    load = os.getloadavg()
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "arch": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_mib": int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) // 1024,
        "load_1_min": round(load[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("edgekit", "numpy", "onnxruntime")},
    }


def envelope(results: Any) -> dict[str, Any]:
    """Results with the machine that they hold for."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return {"command": command, "commit": _commit(), "machine": describe(), "results": results}


def emit(results: Any) -> None:
    """Print the envelope of `results`."""
    print(json.dumps(envelope(results), indent=2))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 5th and 95th percentile (nearest rank)."""
    ranked = sorted(values)
    return {
        "p50": statistics.median(ranked),
        "p5": ranked[max(0, -(-len(ranked) * 5 // 100) - 1)],
        "p95": ranked[-(-len(ranked) * 95 // 100) - 1],
    }


def _field(path: str, name: str) -> str | None:
    try:
        for line in Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip() or None
