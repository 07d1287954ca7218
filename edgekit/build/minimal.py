"""What a minimal build of onnxruntime needs: its own format, and the operators to build it with.

Invariant: the variant is the one that was chosen, in another format; what it computes, its golden
vectors say.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from edgekit.build.kitchen import Variant
from edgekit_contract.profile import Cpu, Runtime
from edgekit_converters import external, isolation
from edgekit_converters.required_operators import FILENAME
from edgekit_runtime.backend_onnxruntime import is_ort_format

__all__ = ["in_ort_format", "operators_of", "remark"]

_REMARK: Final = (
    "The chosen variant is packed in onnxruntime's own format, since a minimal build reads no "
    "other; figures are of the same model as ONNX."
)
_SLOWER: Final = (
    " A minimal build has no kernels for AVX-512, with which this machine may have measured: the "
    "device takes longer."
)


def remark(cpu: Cpu) -> str:
    """What a report for a minimal build on this core has to say."""
    has_avx512 = any(feature.startswith("avx512") for feature in cpu.features)
    return _REMARK + (_SLOWER if has_avx512 else "")


def in_ort_format(
    variant: Variant, runtime: Runtime, *, scratch: Path, run: isolation.Run
) -> Variant:
    """The same for a minimal build of this version. Errors: `StepFailed`; `StepRefused` where its
    optimized form uses an operator that is newer."""
    if is_ort_format(variant.path):
        return variant
    needs = replace(variant.recipe.needs, min_runtime_version=runtime.version)
    # the baseline may be the user's own file, which nothing is written beside
    out = scratch / f"{variant.path.stem}.ort"
    run(
        f"writing {variant.title} in onnxruntime's format",
        "edgekit_converters.recipes.ort_format:convert",
        {"source": str(variant.path), "out": str(out), "version": runtime.version},
        isolation.limits_for(external.size_bytes(variant.path)),
    )
    return replace(variant, recipe=replace(variant.recipe, needs=needs), path=out)


def operators_of(variant: Variant, *, run: isolation.Run) -> dict[str, bytes]:
    """The configuration of a build for this variant, by the name of its file; none where it is ONNX
    still. Errors: `StepFailed`."""
    if not is_ort_format(variant.path):
        return {}
    text = run(
        "listing operators",
        "edgekit_converters.required_operators:required_operators",
        {"model": str(variant.path)},
        isolation.limits_for(variant.path.stat().st_size),
    )
    return {FILENAME: text.encode()}
