"""Normalize an ONNX model: constants to initializers, opset raised, graph simplified (by
onnxruntime's basic optimizations, which keep to ONNX's operators) and fused.

Invariant: a rewritten model is kept only if it loads, reproduces the original's outputs on every
trial and did not grow; a step that crashes, hangs or changes a number leaves the model of the step
before, with the reason said. All steps together take no longer than a budget that follows from the
model's size and from how long it runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import onnx

from edgekit_contract import limits
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external, graph, isolation
from edgekit_converters.normalization import structure
from edgekit_converters.normalization.fusion import fuse
from edgekit_converters.normalization.upgrades import QUANTIZABLE_OPSET, raise_opset
from edgekit_converters.proof import Trial, same_outputs
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import open_session

__all__ = ["QUANTIZABLE_OPSET", "Normalized", "normalize", "rewrite"]

_BUDGET_S: Final = 20.0
"""For all steps, beside reading and writing the model and running it on the trials at each."""
_FOLDED_BYTES: Final = 64 * limits.KIB
"""Where folding constants made a model larger, only ones up to here are folded."""
_MAX_GROWTH: Final = 0.01
"""Of the file; besides a constant of `_FOLDED_BYTES`."""


@dataclass(frozen=True, kw_only=True)
class Normalized:
    """The model that recipes start from."""

    path: Path
    steps: tuple[str, ...]
    """Steps that held."""
    remarks: tuple[str, ...]
    """What a user should know of it: steps that did not hold, and what the first runs showed."""
    is_cut: bool = False
    """Whether there was no time for some steps."""


def normalize(
    given: Path,
    *,
    trials: Sequence[Trial],
    scratch: Path,
    run: isolation.Run = isolation.run,
    run_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Normalized:
    """Take `given` through the steps, each proved on all trials, which take `run_s` to run.

    `given` may keep data in `scratch`, beside what is written there. Never fails: at worst the
    result is the model as given.
    """
    current, held, remarks = given, [], []
    late: list[str] = []
    budget_s = _BUDGET_S + len(_STEPS) * run_s
    bounds = isolation.limits_for(external.size_bytes(given), timeout_s=budget_s)
    ends = clock() + bounds.timeout_s
    is_external = external.is_external(given)
    proof = msgspec.to_builtins(trials)
    simplified = False
    for step in _STEPS:
        if (step.simplifies and simplified) or not step.is_needed(current):
            continue
        if step.simplifies and is_external:
            remarks.append(f"A model of 2 GiB or more goes without {step.title}.")
            simplified = True
            continue
        left = replace(bounds, timeout_s=ends - clock())
        if left.timeout_s <= 0:
            late.append(step.title)
            continue
        out = scratch / f"{step.name}.onnx"
        words = {"step": step.name, "source": str(current), "out": str(out), "trials": proof}
        try:
            run(step.title, "edgekit_converters.normalization.steps:rewrite", words, left)
        except Refused as error:
            out.unlink(missing_ok=True)
            if isinstance(error, isolation.StepFailed) and error.timed_out:
                late.append(step.title)
            else:
                remarks.append(str(error))
            continue
        simplified = simplified or step.simplifies
        current = out
        held.append(step.title)
    if late:
        remarks.append(
            f"Normalization ended after {bounds.timeout_s:.0f} s, without {', '.join(late)}."
        )
    return Normalized(path=current, steps=tuple(held), remarks=tuple(remarks), is_cut=bool(late))


def rewrite(step: str, source: str, out: str, trials: Sequence[Any]) -> None:
    """One step, in the child. Errors: `Refused` where the result computes something else, or is
    larger."""
    chosen = next(s for s in _STEPS if s.name == step)
    chosen.apply(Path(source), Path(out))
    before, after = (Path(path).stat().st_size for path in (source, out))
    if after > before * (1 + _MAX_GROWTH) + _FOLDED_BYTES:
        raise Refused(
            f"{chosen.title} made the model larger ({before >> 10} to {after >> 10} KiB); it was "
            "left out."
        )
    session = open_session(RuntimeKind.ONNXRUNTIME, Path(out))
    for trial in msgspec.convert(trials, tuple[Trial, ...]):
        got = session.run(read_tensors(Path(trial.feeds)))
        if difference := same_outputs(got, read_tensors(Path(trial.reference))):
            raise Refused(f"{chosen.title} changed the model ({difference}); it was left out.")


def _load(source: Path) -> onnx.ModelProto:
    """The model; weights that are in another file stay there."""
    return onnx.load_model(source, load_external_data=False)


def _tidy(source: Path, out: Path) -> None:
    model = _load(source)
    graph.bake_constants(model)
    graph.densify(model)
    structure.simplify(model)
    graph.name_nodes(model)
    onnx.save_model(model, out)


def _is_old(source: Path) -> bool:
    return graph.opset(_load(source)) < QUANTIZABLE_OPSET


def _raise_opset(source: Path, out: Path) -> None:
    model = _load(source)
    raise_opset(model)
    graph.clamp_ir(model)
    graph.name_nodes(model)
    onnx.save_model(model, out)


def _fold(source: Path, out: Path) -> None:
    _simplified(source, out)


def _fold_nothing(source: Path, out: Path) -> None:
    """Fusion folds what stays small."""
    _simplified(source, out, disabled_optimizers=["ConstantFolding"])


def _simplified(source: Path, out: Path, **options: Any) -> None:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(out)
    settings.log_severity_level = 4
    onnxruntime.InferenceSession(
        str(source), settings, providers=["CPUExecutionProvider"], **options
    )
    model = _load(out)
    graph.bake_constants(model)
    structure.simplify(model)
    _finish(model, out)


def _fuse(source: Path, out: Path) -> None:
    model = _load(source)
    fuse(model, normalizations=False)
    _finish(model, out)


def _has_roots(source: Path) -> bool:
    return graph.operators(_load(source))["Sqrt"] > 0


def _fuse_normalizations(source: Path, out: Path) -> None:
    model = _load(source)
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
    """Only the first of these that holds is used. They need all weights in the model file."""


_STEPS: Final = (
    _Step(name="tidy", title="constants to initializers", apply=_tidy),
    _Step(
        name="opset",
        title=f"raising the opset to {QUANTIZABLE_OPSET}",
        apply=_raise_opset,
        is_needed=_is_old,
    ),
    _Step(name="fold", title="simplification", apply=_fold, simplifies=True),
    _Step(
        name="fold-nothing",
        title="simplification without large constants",
        apply=_fold_nothing,
        simplifies=True,
    ),
    _Step(name="fuse", title="fusion of operators", apply=_fuse),
    # apart, since a model's own rounding of a variance can be so large that the proof fails
    _Step(
        name="fuse-normalizations",
        title="fusion of layer normalizations",
        apply=_fuse_normalizations,
        is_needed=_has_roots,
    ),
)
