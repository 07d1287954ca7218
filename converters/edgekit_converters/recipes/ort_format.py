"""onnxruntime's own file format: a model that is optimized beforehand and loads without parsing.

Optimizations are those of any CPU: ones for the core that builds would not fit another. Found by
trying: files of onnxruntime 1.32 load in 1.20.1, 1.22.1 and 1.23.2, if these have all operators
that the optimizer put in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgekit_contract.errors import Refused
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.runtime_operators import named_in_ort_format, newer_than

__all__ = ["RECIPES", "convert"]

_OLDEST: Final = "1.20"
_STEP: Final = 1e-4
"""As of float32: fused operators sum in another order."""


def convert(*, source: str, out: str, version: str) -> None:
    """Write an ONNX file in onnxruntime's format, for this version of it or later.

    Errors: those of onnxruntime; `Refused` where that version lacks what the optimizer put in.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = out
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(
        source, settings, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    held = named_in_ort_format(Path(out).read_bytes())
    if newer := newer_than(version, held):
        named = ", ".join(sorted(newer))
        raise Refused(f"optimized, it uses {named}, which onnxruntime {version} does not have.")


def _make(ingredients: Ingredients) -> None:
    source, out = str(ingredients.normalized), str(ingredients.out)
    convert(source=source, out=out, version=_OLDEST)


RECIPES: Final = (
    Recipe(
        id="ort-format",
        title="onnxruntime's format: optimized beforehand",
        needs=Needs(min_runtime_version=_OLDEST),
        make=_make,
        output_step=_STEP,
    ),
)
