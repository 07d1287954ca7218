"""Normalize an ONNX model: constants to initializers, opset raised, graph simplified.

Invariant: a rewritten model is kept only if it loads and reproduces the original's outputs; a step
that crashes, hangs or changes a number leaves the model of the step before, with the reason said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import graph, isolation
from edgekit_converters.fusion import fuse
from edgekit_converters.proof import same_outputs
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import open_session

__all__ = ["QUANTIZABLE_OPSET", "Normalized", "normalize", "rewrite"]

QUANTIZABLE_OPSET: Final = 13
"""From here on DequantizeLinear has an axis: what per-channel weights need."""
_STEP_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, kw_only=True)
class Normalized:
    """The model that recipes start from."""

    path: Path
    steps: tuple[str, ...]
    """Steps that held."""
    remarks: tuple[str, ...]
    """Steps that did not, a sentence each."""


def normalize(given: Path, *, feeds: Path, reference: Path, scratch: Path) -> Normalized:
    """Take `given` through the steps, each proved on the tensors in `feeds` against `reference`.

    `feeds` and `reference` are tensor files (`tensorfile`). Never fails: at worst the result is
    the model as given.
    """
    current, held, remarks = given, [], []
    bounds = isolation.limits_for(given.stat().st_size, timeout_s=_STEP_TIMEOUT_S)
    simplified = False
    for step in _STEPS:
        if (step.simplifies and simplified) or not step.is_needed(current):
            continue
        out = scratch / f"{step.name}.onnx"
        arguments = {
            "step": step.name,
            "source": str(current),
            "out": str(out),
            "feeds": str(feeds),
            "reference": str(reference),
        }
        try:
            isolation.run(step.title, "edgekit_converters.normalization:rewrite", arguments, bounds)
        except Refused as error:
            remarks.append(str(error))
            out.unlink(missing_ok=True)
            continue
        simplified = simplified or step.simplifies
        current = out
        held.append(step.title)
    return Normalized(path=current, steps=tuple(held), remarks=tuple(remarks))


def rewrite(step: str, source: str, out: str, feeds: str, reference: str) -> None:
    """One step, in the child. Errors: `Refused` where the result computes something else."""
    chosen = next(s for s in _STEPS if s.name == step)
    chosen.apply(Path(source), Path(out))
    session = open_session(RuntimeKind.ONNXRUNTIME, Path(out))
    got = session.run(read_tensors(Path(feeds)))
    if difference := same_outputs(got, read_tensors(Path(reference))):
        raise Refused(f"{chosen.title} changed the model ({difference}); it was left out.")


def _tidy(source: Path, out: Path) -> None:
    model = onnx.load_model(source)
    graph.bake_constants(model)
    graph.name_nodes(model)
    onnx.save_model(model, out)


def _is_old(source: Path) -> bool:
    return graph.opset(onnx.load_model(source)) < QUANTIZABLE_OPSET


def _raise_opset(source: Path, out: Path) -> None:
    raised = onnx.version_converter.convert_version(onnx.load_model(source), QUANTIZABLE_OPSET)
    graph.clamp_ir(raised)
    # the converter writes the constants that attributes became as nodes
    graph.bake_constants(raised)
    graph.name_nodes(raised)
    onnx.save_model(raised, out)


def _slim(source: Path, out: Path) -> None:
    import onnxslim

    model = onnxslim.slim(onnx.load_model(source))
    if model is None:
        raise Refused("onnxslim gave no model.")
    _finish(model, out)


def _fold(source: Path, out: Path) -> None:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(out)
    settings.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), settings, providers=["CPUExecutionProvider"])
    _finish(onnx.load_model(out), out)


def _fuse(source: Path, out: Path) -> None:
    model = onnx.load_model(source)
    fuse(model)
    _finish(model, out)


def _finish(model: onnx.ModelProto, out: Path) -> None:
    graph.bake_constants(model)
    graph.name_nodes(model)
    graph.strip_remarks(model)
    graph.prune_opsets(model)
    graph.clamp_ir(model)
    onnx.save_model(model, out)


@dataclass(frozen=True, kw_only=True)
class _Step:
    name: str
    title: str
    apply: Callable[[Path, Path], None]
    """Write the rewritten model."""
    is_needed: Callable[[Path], bool] = lambda source: True
    simplifies: bool = False
    """Only the first of these that holds is used."""


_STEPS: Final = (
    _Step(name="tidy", title="constants to initializers", apply=_tidy),
    _Step(
        name="opset",
        title=f"raising the opset to {QUANTIZABLE_OPSET}",
        apply=_raise_opset,
        is_needed=_is_old,
    ),
    _Step(name="slim", title="simplification by onnxslim", apply=_slim, simplifies=True),
    _Step(name="fold", title="simplification by onnxruntime", apply=_fold, simplifies=True),
    _Step(name="fuse", title="fusion of operators", apply=_fuse),
)
