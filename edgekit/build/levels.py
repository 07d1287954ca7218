"""What a variant gives when its runtime optimizes it less.

Invariant: it runs in a child. Other kernels compute there than those that all else has run on, and
of a broken model they may crash.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgekit.build.model_file import ModelFile
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.tensorfile import read_tensors, write_tensors
from edgekit_runtime.session import (
    InferenceFailed,
    ModelUnloadable,
    Optimization,
    SessionOptions,
    open_session,
)

__all__ = ["Levels", "Outputs", "run_at", "run_levels"]

_LOADING_S: Final = 40.0
_LESS: Final = (Optimization.NONE, Optimization.BASIC)
_SLOWER: Final = 20.0
"""Times that a run may take as long as with all optimizations."""

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Levels:
    outputs: tuple[Mapping[int, Outputs], ...]
    """By the number of the sample, of each level that the runtime runs the model at."""
    remarks: tuple[str, ...]
    """Of levels that ended otherwise, a sentence each."""


def run_levels(
    model: ModelFile,
    feeds: Mapping[int, Outputs],
    *,
    options: SessionOptions,
    run_s: float,
    run: isolation.Run,
) -> Levels:
    """Run `model` on all feeds, which takes `run_s` with all optimizations: the levels at once."""
    bounds = isolation.limits_for(model.size_bytes, timeout_s=_LOADING_S + _SLOWER * run_s)
    remarks: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-levels-") as directory:
        files = {index: Path(directory) / f"{index}.npz" for index in feeds}
        for index, path in files.items():
            write_tensors(path, feeds[index])

        def outputs_of(level: Optimization) -> Mapping[int, Outputs] | None:
            outputs = {index: path.with_suffix(f".{level.value}") for index, path in files.items()}
            words = {
                "model": str(model.path),
                "kind": model.kind.value,
                "options": msgspec.to_builtins(replace(options, optimization=level)),
                "files": [(str(files[index]), str(outputs[index])) for index in files],
            }
            step = f"running the model with optimization {level.value}"
            try:
                ran = run(step, "edgekit.build.levels:run_at", words, bounds)
            except isolation.StepFailed as error:
                remarks.append(f"Golden vectors are without a level: {error}")
                return None
            return {index: read_tensors(path) for index, path in outputs.items()} if ran else None

        pool = ThreadPoolExecutor(len(_LESS))
        try:
            found = [outputs for outputs in pool.map(outputs_of, _LESS) if outputs is not None]
        finally:
            pool.shutdown(wait=False)  # after an error the build's end ends the children, too
    return Levels(outputs=tuple(found), remarks=tuple(sorted(remarks)))


def run_at(
    model: str, kind: str, options: Mapping[str, Any], files: Sequence[Sequence[str]]
) -> bool:
    """In the child: write what the model gives for each file of inputs.

    False where the runtime does not run it so.
    """
    try:
        session = open_session(
            RuntimeKind(kind), Path(model), msgspec.convert(options, SessionOptions)
        )
        for feeds, out in files:
            write_tensors(Path(out), session.run(read_tensors(Path(feeds))))
    except (ModelUnloadable, InferenceFailed):
        return False
    return True
