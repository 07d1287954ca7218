"""Prove a model file: does it load, does it run, and does it compute what another computed?

Invariant: nothing that a third party rewrote is used before `same_outputs` has said that it
computes what the model did before. `load` and `outputs` run in a child process (see `isolation`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgekit_contract.errors import Refused
from edgekit_contract.manifest import TensorSpec
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.tensorfile import read_tensors, write_tensors
from edgekit_runtime.session import ModelUnloadable, Session, open_session

__all__ = ["Signature", "UnsupportedOperator", "generated", "load", "outputs", "same_outputs"]

_AXIS_LENGTHS: Final = (1, 8, 16, 64, 256, 512, 1024, 3, 224, 32)
"""Lengths to try on an axis that the model leaves open, where there are no data to tell."""
_UNSUPPORTED: Final = re.compile(
    r"([\w.]*:?\w+)\(-?\d+\) is not a registered function/op"
    r"|No Op registered for (\w+)"
    r"|implementation for (\w+)\("
    r"|custom op \"?(\w+)"
    r"|Encountered unresolved custom op: (\w+)"
)
"""How the runtimes say that they lack an operator."""
_INTERNAL: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : "
    r"|Load model from \S+ failed: ?"
    r"|\b\w+\.(?:cc|h):\d+ .*?\) (?=[A-Z\[])"
    r"|/\S+/(?=[\w.]+)"
)
"""What is of no use to the reader: error codes, the runtime's own sources, scratch files."""
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
        if found := _UNSUPPORTED.search(error.detail):
            operator = next(group for group in found.groups() if group)
            raise UnsupportedOperator(name, operator, runtime) from error
        detail = _INTERNAL.sub("", " ".join(error.detail.split()))[:300].rstrip(".")
        raise Refused(
            f"{name} does not load in {runtime.value} ({detail}): "
            "export it again, or for an older operator set."
        ) from error
    return msgspec.to_builtins(Signature(inputs=session.inputs, outputs=session.outputs))


def outputs(path: str, kind: str, feeds: str | None, out: str, feeds_out: str | None) -> None:
    """Run a model on the tensors in file `feeds`, or on generated ones, and write what it gave.

    Generated feeds that the model accepts go to `feeds_out`. Errors: `ModelUnloadable`,
    `InferenceFailed`.
    """
    session = open_session(RuntimeKind(kind), Path(path))
    if feeds is not None:
        write_tensors(Path(out), session.run(read_tensors(Path(feeds))))
        return
    tensors, results = _first_that_runs(session)
    write_tensors(Path(out), results)
    if feeds_out is not None:
        write_tensors(Path(feeds_out), tensors)


def _first_that_runs(session: Session) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    failure: Exception | None = None
    for length in _AXIS_LENGTHS:
        feeds = generated(session.inputs, seed=0, axis_length=length)
        try:
            return feeds, session.run(feeds)
        except Exception as error:  # the next length may fit
            failure = error
    assert failure is not None
    raise failure


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
