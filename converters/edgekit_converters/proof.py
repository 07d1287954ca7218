"""Prove a model file: does it load, does it run, and does it compute what another computed?

Invariant: nothing that a third party rewrote is used before `same_outputs` has said that it
computes what the model did before. `load` and `try_out` run in a child process (see `isolation`).
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx

from edgekit_contract.errors import Refused
from edgekit_contract.manifest import TensorSpec
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import graph
from edgekit_converters.tensorfile import read_tensors, write_tensors
from edgekit_runtime.session import (
    InferenceFailed,
    InputRejected,
    ModelUnloadable,
    Session,
    Tensors,
    open_session,
)

__all__ = [
    "Signature",
    "Trial",
    "Tried",
    "UnsupportedOperator",
    "generated",
    "load",
    "same_outputs",
    "try_out",
]

_AXIS_LENGTHS: Final = (1, 8, 16, 64, 256, 512, 1024, 3, 224, 32)
"""Lengths to try on an axis that the model leaves open, where there are no data to tell."""
_UNSUPPORTED: Final = re.compile(
    r"([\w.]*:?\w+)\(-?\d+\) is not a registered function/op"
    r"|No Op registered for (\w+)"
    r"|implementation for (\w+)\("
    r"|custom op \"?(\w+)"
    r"|Encountered unresolved custom op: (\w+)"
    r"|Node number \d+ \((Flex\w+)\)"
)
"""How the runtimes say that they lack an operator."""
_INTERNAL: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|Load model from \S+ failed: ?"
    r"|\b\w+\.(?:cc|h):\d+ .*?\) (?=[A-Z\[])"
    r"|/\S+/(?=[\w.]+)"
)
"""What is of no use to the reader: error codes, the runtime's own sources, scratch files."""
_TEXT: Final = "tensor(string)"
_MORE_TRIALS_S: Final = 2.0
"""After this long no further trial begins: each costs its time again at every step to prove."""
_DRAWS: Final = 4
"""Runs that must agree to the bit where a model might draw."""
_ABSOLUTE: Final = 1e-4
_RELATIVE: Final = 1e-3
"""What reordered float32 sums may differ by, of the output's greatest element and of each."""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class UnsupportedOperator(Refused):
    """The runtime has no kernel for an operator of the model."""

    def __init__(self, name: str, operator: str, kind: RuntimeKind) -> None:
        super().__init__(
            f"{name} uses the operator {operator}, which {kind.value} does not have: "
            "export the model without it."
        )
        self.operator = operator


def load(path: str, kind: str, *, name: str) -> Any:
    """The signature of a model file, as JSON; `name` is the user's name for it.

    Errors: `UnsupportedOperator`, `Refused` where the runtime does not load it, `RuntimeMissing`.
    """
    runtime = RuntimeKind(kind)
    try:
        session = open_session(runtime, Path(path))
    except ModelUnloadable as error:
        if _TEXT in error.detail:
            raise Refused(
                f"{name} takes or gives text ({_plain(error.detail)}): on a device values are "
                "numbers, so export it from behind what encodes words, up to where classes get "
                "their names."
            ) from error
        if found := _UNSUPPORTED.search(error.detail):
            operator = next(group for group in found.groups() if group)
            raise UnsupportedOperator(name, operator, runtime) from error
        raise Refused(
            f"{name} does not load in {runtime.value} ({_plain(error.detail)}): "
            "export it again, or for an older operator set."
        ) from error
    if not session.outputs:
        raise Refused(f"{name} gives nothing: export it with an output.")
    return msgspec.to_builtins(Signature(inputs=session.inputs, outputs=session.outputs))


def _plain(detail: str) -> str:
    """What a runtime said, as a part of a sentence."""
    return _INTERNAL.sub("", " ".join(detail.split()))[:300].rstrip(".")


class Trial(msgspec.Struct, frozen=True):
    """A sample that the model has run on: tensor files of what went in and what came out."""

    feeds: str
    reference: str


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What the first runs of a model showed."""

    trials: tuple[Trial, ...]
    """At least one, and the first is the first sample's."""
    repeats: bool
    """Whether the same input gave the same outputs again."""
    drawing: tuple[str, ...] = ()
    """Operators for whose random numbers it did not, by name."""
    run_s: float
    """Seconds of all runs together, once on each trial."""


def try_out(path: str, kind: str, feeds: Sequence[str], directory: str) -> Any:
    """Run a model on the tensors in these files, or without any on generated ones; `Tried` as JSON.

    The first must run; others count if they do. Where an open first axis was 1 long, it is also
    tried 2 long, and so are other lengths of open axes where nothing was given: what a rewriting
    takes for fixed must come to light. Errors: `ModelUnloadable`, `InferenceFailed`,
    `InputRejected`.
    """
    session = open_session(RuntimeKind(kind), Path(path))
    tensors = (read_tensors(Path(file)) for file in feeds) if feeds else _made_up(session)
    first = next(tensors)
    try:
        reference = session.run(first)
    except InferenceFailed as error:
        raise Refused(f"inference failed: {_plain(error.detail)}.") from error
    results: list[tuple[Tensors, Tensors]] = [(first, reference)]
    began = time.monotonic()
    repeats = same_outputs(session.run(first), reference) is None
    run_s = time.monotonic() - began
    is_onnx = RuntimeKind(kind) is RuntimeKind.ONNXRUNTIME
    drawing = _drawing(Path(path), session, first) if is_onnx else ()
    ends = time.monotonic() + _MORE_TRIALS_S
    while time.monotonic() < ends and (more := next(tensors, None)) is not None:
        run_s += _run_too(session, more, results)
    for pair in _pairs(session.inputs, [given for given, _ in results]):
        if time.monotonic() < ends:
            run_s += _run_too(session, pair, results)
    trials = []
    for index, (given, got) in enumerate(results):
        names = (str(Path(directory, f"{part}{index}.npz")) for part in ("feeds", "reference"))
        trial = Trial(*names)
        write_tensors(Path(trial.feeds), given)
        write_tensors(Path(trial.reference), got)
        trials.append(trial)
    return msgspec.to_builtins(
        Tried(trials=tuple(trials), repeats=repeats, drawing=drawing, run_s=run_s)
    )


def _drawing(path: Path, session: Session, feeds: Tensors) -> tuple[str, ...]:
    """Operators that draw other random numbers in each run, if that shows in the outputs."""
    found = graph.random_operators(onnx.load_model(path, load_external_data=False))
    if not found:
        return ()
    runs = [session.run(feeds) for _ in range(_DRAWS)]
    same = all(
        np.array_equal(other[name], array, equal_nan=array.dtype.kind == "f")
        for other in runs[1:]
        for name, array in runs[0].items()
    )
    return () if same else found


def _run_too(session: Session, feeds: Tensors, results: list[tuple[Tensors, Tensors]]) -> float:
    """Enter one more result, if there is one; how many seconds it took."""
    began = time.monotonic()
    with contextlib.suppress(InputRejected, InferenceFailed):
        results.append((feeds, session.run(feeds)))
    return time.monotonic() - began


def _made_up(session: Session) -> Iterator[Tensors]:
    """Generated feeds: of the first length that runs, and a few of other seeds and lengths, each
    made when it is asked for."""
    failure: Exception | None = None
    for length in _AXIS_LENGTHS:
        feeds = generated(session.inputs, seed=0, axis_length=length)
        try:
            session.run(feeds)
        except Refused as error:  # the next length may fit
            failure = error
            continue
        yield feeds
        for seed, other in ((1, length), (2, length), (3, length + 1), (4, 2 * length + 1)):
            yield generated(session.inputs, seed=seed, axis_length=other)
        return
    assert failure is not None
    if isinstance(failure, InferenceFailed):
        raise Refused(f"inference failed: {_plain(failure.detail)}.") from failure
    raise failure


def _pairs(
    specs: tuple[TensorSpec, ...], tensors: Sequence[Tensors]
) -> list[dict[str, np.ndarray]]:
    """The first two samples as one batch, where the first axis of all inputs is open."""
    if not specs or not all(spec.shape and isinstance(spec.shape[0], str) for spec in specs):
        return []
    first, second = tensors[0], tensors[min(1, len(tensors) - 1)]
    if any(first[s.name].shape != second[s.name].shape for s in specs):
        second = first
    return [{s.name: np.concatenate([first[s.name], second[s.name]]) for s in specs}]


def generated(
    specs: tuple[TensorSpec, ...], *, seed: int, axis_length: int
) -> dict[str, np.ndarray]:
    """Feeds from nothing: a standard normal for floats, 0 and 1 for integers and booleans.

    The first axis, if open, is 1 long, the others `axis_length`.
    """
    random = np.random.default_rng(seed)
    feeds = {}
    for spec in specs:
        shape = tuple(
            axis if isinstance(axis, int) else (1 if index == 0 else axis_length)
            for index, axis in enumerate(spec.shape)
        )
        if spec.dtype.startswith("float"):
            feeds[spec.name] = np.asarray(random.standard_normal(shape)).astype(spec.dtype)
        else:
            feeds[spec.name] = np.asarray(random.integers(0, 2, shape)).astype(spec.dtype)
    return feeds


def same_outputs(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> str | None:
    """How a rewritten model's outputs differ from the original's, or None."""
    if list(got) != list(want):
        return f"its outputs are {list(got)}, not {list(want)}"
    for name, reference in want.items():
        value = got[name]
        if value.shape != reference.shape or value.dtype != reference.dtype:
            return (
                f"output {name!r} is {value.dtype} {list(value.shape)}, "
                f"not {reference.dtype} {list(reference.shape)}"
            )
        if value.dtype.kind != "f":
            if not np.array_equal(value, reference):
                return f"output {name!r} differs"
            continue
        wide, expected = value.astype(np.float64), reference.astype(np.float64)
        scale = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
        near = np.isclose(wide, expected, rtol=_RELATIVE, atol=_ABSOLUTE * scale, equal_nan=True)
        if not near.all():
            return f"output {name!r} differs in {int((~near).sum())} of {value.size} elements"
    return None
