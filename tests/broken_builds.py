"""What a build must make of a broken model, and a program that builds a whole corpus (`mutants`,
or with `--tflite` `tflite_mutants`).

The program (`scripts/fuzz`) uses the real command, in children of its own, every other time with
data and int8 recipes, and prints how each kind ended. Invariant of a build that `trouble` checks:
it ends within 60 s with exit code 0 or 1, says one sentence where it refuses, and writes nothing
but bundles into the output directory: not beside the model, where it was started or into $HOME;
and no scratch file stays.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mutants import Mutant, mutants
from onnx import TensorProto
from small_models import SMALL_MODELS
from tflite_mutants import tflite_mutants

__all__ = ["Sandbox"]

SECONDS = 60
_RECIPES = {".onnx": "float32-optimized", ".tflite": "float32"}


@dataclass(frozen=True)
class Sandbox:
    """A directory for one build: what is in it afterwards tells what the build wrote.

    `home` and `cwd` are the command's $HOME and working directory, `tmp` its $TMPDIR.
    """

    root: Path
    dry_run: bool = False
    int8: bool = False
    """With data, and recipes that calibrate and quantize."""
    suffix: str = ".onnx"

    def put(self, mutant: Mutant) -> None:
        (self.root / "source").mkdir()
        for name in _EMPTY:
            (self.root / name).mkdir()
        (self.root / "outside.bin").write_bytes(struct.pack("<1024f", *range(1024)))
        (self.root / "source" / "link.bin").symlink_to("../outside.bin")
        os.mkfifo(self.root / "source" / "pipe")
        self.model.write_bytes(mutant.model)
        if mutant.data:
            (self.root / "source" / "weights.bin").write_bytes(mutant.data)
        if self.int8:
            np.savez(self.root / "data.npz", **_data(mutant.base))

    @property
    def model(self) -> Path:
        return self.root / "source" / f"m{self.suffix}"

    @property
    def words(self) -> tuple[str, ...]:
        """What follows `edgekit`."""
        recipes: tuple[str, ...] = ("--recipe", _RECIPES[self.suffix])
        if self.int8:
            recipes = (
                "--recipe", "int8-dynamic/per-channel*",
                "--recipe", "int8-static/per-channel/u8s8*/minmax",
                "--calibration", str(self.root / "data.npz"),
            )  # fmt: skip
        return (
            "build", str(self.model), "--profile", "demo-small", "--name", "m", "--version", "1.0",
            *recipes,
            "--search-time", "1", "-o", str(self.root / "out"),
            *(("--dry-run",) if self.dry_run else ()),
        )  # fmt: skip

    def trouble(self, mutant: Mutant, code: int, said: str, seconds: float) -> str | None:
        """What the build did that it must not."""
        lines = said.strip().splitlines()
        last = lines[-1] if lines else ""
        out = self.root / "out"
        written = sorted(p.name for p in out.iterdir()) if out.exists() else []
        kept = {self.model.name: mutant.model} | (
            {"weights.bin": mutant.data} if mutant.data else {}
        )
        found = {
            "took too long": seconds > SECONDS,
            f"ended with {code}": code not in (0, 1),
            "traceback": "Traceback" in said,
            "no sentence": code == 1 and not (last.endswith(".") and 10 < len(last) < 800),
            "bundle of a refused model": code == 1 and bool(written),
            "wrote other files": code == 0
            and written != ([] if self.dry_run else ["m-1.0-demo-small.ekb"]),
            **{f"left files in {n}": any((self.root / n).iterdir()) for n in _EMPTY},
            "wrote outside": {p.name for p in self.root.iterdir()}
            - {"source", "outside.bin", "out", "said", "data.npz", *_EMPTY}
            != set(),
            "wrote beside the model": {p.name for p in (self.root / "source").iterdir()}
            != {"link.bin", "pipe", *kept},
            "changed the model": any(
                (self.root / "source" / name).read_bytes() != data for name, data in kept.items()
            ),
        }
        return next((what for what, is_so in found.items() if is_so), None)


def _data(base: str) -> dict[str, np.ndarray]:
    """Rows for the inputs of the small model before it was broken."""
    graph = SMALL_MODELS[_WHOLE.get(base, base)]().graph
    random = np.random.default_rng(0)
    held = {tensor.name for tensor in graph.initializer}
    found = {}
    for value in graph.input:
        if value.name in held:
            continue
        tensor = value.type.tensor_type
        dims = [d.dim_value or d.dim_param for d in tensor.shape.dim]
        shape = [_OPEN if isinstance(d, str) else d for d in dims[isinstance(dims[0], str) :]]
        rows = random.integers(0, 9, (_ROWS, *shape))
        found[value.name] = rows if tensor.elem_type == TensorProto.INT64 else np.float32(rows)
    return found


_EMPTY = ("tmp", "home", "cwd")
"""Directories that must be as empty afterwards as before."""
_WHOLE = {"external": "several_outputs"}
_ROWS, _OPEN = 12, 8


# As a program


def _run(sandbox: Sandbox) -> tuple[int, str, float]:
    """The command in a fork: exit code (minus the signal), what it said, and how long it took."""
    began = time.monotonic()
    said = sandbox.root / "said"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            stream = os.open(said, os.O_WRONLY | os.O_CREAT)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            os.environ["TMPDIR"] = tempfile.tempdir = str(sandbox.root / "tmp")
            os.environ["HOME"] = str(sandbox.root / "home")
            os.environ["EDGEKIT_CACHE_MIB"] = "0"  # what a good build keeps is no leftover
            os.chdir(sandbox.root / "cwd")
            sys.argv = ["edgekit", *sandbox.words]
            from edgekit.cli import main

            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 98
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while time.monotonic() - began < SECONDS + 5:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    text = said.read_text(errors="replace")
    return os.waitstatus_to_exitcode(status), text, time.monotonic() - began


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant to build")
    parser.add_argument("--verbose", action="store_true", help="print what each build said")
    parser.add_argument("--tflite", action="store_true", help="build the corpus of TFLite files")
    asked = parser.parse_args()
    importlib.import_module("edgekit.build.builder")  # once, and not in every fork

    ends: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    bad, slowest = 0, 0.0
    digest = hashlib.sha256()
    corpus = tflite_mutants(asked.count) if asked.tflite else mutants(asked.count)
    for index, mutant in enumerate(corpus):
        digest.update(mutant.model + mutant.data)
        if index < asked.first:
            continue
        with tempfile.TemporaryDirectory(prefix="edgekit-fuzz-") as directory:
            is_int8 = index % 2 == 1 and not asked.tflite
            sandbox = Sandbox(Path(directory), int8=is_int8, suffix=mutant.suffix)
            sandbox.put(mutant)
            code, said, seconds = _run(sandbox)
            trouble = sandbox.trouble(mutant, code, said, seconds)
            slowest = max(slowest, seconds)
            ends[mutant.kind][trouble or ("built" if code == 0 else "refused")] += 1
            last = (said.strip().splitlines() or [""])[-1]
            if trouble:
                bad += 1
                kept = Path(tempfile.gettempdir()) / f"edgekit-mutant-{index}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(sandbox.root / "source", kept, symlinks=True,
                                ignore=shutil.ignore_patterns("pipe"))  # fmt: skip
                print(f"{mutant.name}: {trouble} ({seconds:.0f} s), kept in {kept}\n{said[-2000:]}")
            elif asked.verbose:
                print(f"{mutant.name}: {seconds:.1f} s: {last}", flush=True)
    for kind, counts in ends.items():
        print(f"{kind:28} " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    print(f"corpus {digest.hexdigest()[:12]}, slowest {slowest:.1f} s, {bad} in trouble")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(_main())
