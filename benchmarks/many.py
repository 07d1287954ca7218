"""Many builds: what a second build costs, and several at a time.

    python benchmarks/many.py [--models 6] [--rounds 3] [--markdown]
    python benchmarks/many.py --short        # for CI

The digits model under several names, each for a profile of this machine, with the recipes of one
family and so much search time that every search ends by itself. Times are of whole `edgekit build`
commands, starting Python included. "Second" finds the first's bundle in the cache; the others run
with `--no-cache`.
Dask is a scheduler and two workers of one thread on this machine, started before the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import machine

from edgekit.build.host import read_host
from edgekit.demo.devices import small_profile

DIGITS: Final = Path(__file__).parents[1] / "examples" / "digits"
_CLUSTER: Final = """
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1",
                      dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        input()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    words = parser.parse_args()
    models, rounds = (2, 1) if words.short else (words.models, words.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        rows = _measure(Path(scratch), models=models, rounds=rounds, short=words.short)
    if not words.markdown:
        machine.emit(rows)
        return
    print("| what | models | seconds | 5% | 95% |\n| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        told = " | ".join(f"{row['seconds'][part]:.1f}" for part in ("p50", "p5", "p95"))
        print(f"| {row['what']} | {row['models']} | {told} |")


def _measure(home: Path, *, models: int, rounds: int, short: bool) -> list[dict[str, Any]]:
    paths = [home / f"digits{number}.onnx" for number in range(models)]
    for path in paths:
        shutil.copy(DIGITS / "digits.onnx", path)
    (home / "host.toml").write_bytes(small_profile(read_host()))
    (home / "cluster.py").write_text(_CLUSTER)
    common = [
        "--profile", str(home / "host.toml"), "-o", str(home / "out"),
        *(["--recipe", "float32", "--search-time", "1"] if short else
          ["--recipe", "int8-static/per-tensor/*", "--search-time", "120"]),
        *(w for role in ("calibration", "validation")
          for w in (f"--{role}", str(DIGITS / f"{role}.npz"))),
    ]  # fmt: skip
    times: dict[tuple[str, int], list[float]] = {}
    with _cluster(home) as dask:
        ways: dict[str, list[str]] = {
            "one after another": ["--jobs", "1"],
            "--jobs 2": ["--jobs", "2"],
            "Dask, 2 workers": ["--executor", dask],
        }
        for number in range(rounds):
            kept = {"EDGEKIT_CACHE": str(home / f"cache{number}"), "EDGEKIT_CACHE_MIB": "100"}
            for what in ("first build", "second build"):
                spent, told = _build(paths[:1], common, kept)
                assert told["bundles"][0]["cached"] == (what == "second build")
                times.setdefault((what, 1), []).append(spent)
            for what, how in ways.items():
                spent, _ = _build(paths, [*common, *how, "--no-cache"], {})
                times.setdefault((what, models), []).append(spent)
    return [
        {"what": what, "models": count, "seconds": machine.spread(spent)}
        for (what, count), spent in times.items()
    ]


def _build(
    models: Sequence[Path], words: Sequence[str], environment: dict[str, str]
) -> tuple[float, dict[str, Any]]:
    """Seconds of the whole command, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", "build", *map(str, models), *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    spent = time.perf_counter() - began
    if done.returncode:
        sys.exit(done.stderr)
    return spent, json.loads(done.stdout)


@contextmanager
def _cluster(home: Path) -> Iterator[str]:
    """The URL of a scheduler with two workers."""
    with (
        (home / "dask.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "cluster.py"], cwd=home, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        ) as cluster,
    ):  # fmt: skip
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        if not address:
            sys.exit((home / "dask.log").read_text())
        yield address.replace("tcp://", "dask://")
        cluster.communicate("\n", timeout=60)


if __name__ == "__main__":
    main()
