"""LiteRT: the model converted, and in fewer bits by ai-edge-quantizer.

An ONNX model is converted once; all others start from that, or from the LiteRT model that was
given. Inputs and outputs keep their number formats in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import onnx

from edgekit_contract.profile import RuntimeKind
from edgekit_converters import graph
from edgekit_converters.facts import WEIGHTED_INPUTS
from edgekit_converters.litert.conversion import convert
from edgekit_converters.litert.quantization import Granularity, Kind, Scheme, quantize
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.recipes.tuning import Knob

__all__ = ["RECIPES"]

_FLOAT_STEP: Final = 1e-4
"""As of float32: kernels of another runtime sum in another order."""
_HALF_STEP: Final = 2.0**-11


def _convert(ingredients: Ingredients) -> None:
    assert ingredients.signature is not None
    spellings = dict.fromkeys((ingredients.normalized, ingredients.given))
    convert(
        sorted(spellings, key=_is_vendors),
        ingredients.out,
        signature=ingredients.signature,
        trials=ingredients.trials,
        home=ingredients.home,
    )


def _is_vendors(model: Path) -> bool:
    """Whether it has operators outside ONNX, as fusion leaves: onnx2tf knows no shapes of them."""
    held = graph.operators(onnx.load_model(model, load_external_data=False))
    return any(":" in operator for operator in held)


def _quantized(scheme: Scheme) -> Callable[[Ingredients], None]:
    def make(ingredients: Ingredients) -> None:
        quantize(
            ingredients.normalized,
            ingredients.out,
            scheme,
            spared=ingredients.tuning.spared,
            samples=ingredients.samples,
            home=ingredients.home,
        )

    return make


_STATIC: Final = "litert/int8-static"
_DYNAMIC: Final = "litert/int8-dynamic"
_WEIGHTS: Final = "litert/int8-weights"


def _recipe(name: str, title: str, scheme: Scheme, *, varies: str | None = None) -> Recipe:
    halves = scheme.kind is Kind.FLOAT16
    return Recipe(
        id=name,
        title=title,
        needs=Needs(
            runtime=RuntimeKind.LITERT,
            weighted=frozenset(WEIGHTED_INPUTS),
            samples=scheme.kind is Kind.STATIC,
        ),
        make=_quantized(scheme),
        bits=scheme.weight_bits,
        output_step=_HALF_STEP if halves else 1 / (2 ** min(scheme.weight_bits, 8) - 1),
        knobs=frozenset() if halves else frozenset({Knob.SPARED}),
        varies=varies,
    )


RECIPES: Final = (
    Recipe(
        id="litert/float32",
        title="converted to LiteRT",
        needs=Needs(runtime=RuntimeKind.LITERT),
        make=_convert,
        output_step=_FLOAT_STEP,
        converts=True,
    ),
    _recipe(
        "litert/float16",
        "LiteRT, weights in float16, widened when the model loads",
        Scheme(kind=Kind.FLOAT16, weight_bits=16),
    ),
    _recipe(
        _DYNAMIC,
        "LiteRT, weights of 8 bits, activations as they come",
        Scheme(kind=Kind.DYNAMIC, weight_bits=8),
    ),
    _recipe(
        f"{_DYNAMIC}/per-tensor",
        "LiteRT, weights of 8 bits, one scale per weight, activations as they come",
        Scheme(kind=Kind.DYNAMIC, weight_bits=8, granularity=Granularity.PER_TENSOR),
        varies=_DYNAMIC,
    ),
    _recipe(
        "litert/int4-dynamic/block-32",
        "LiteRT, weights of 4 bits, a scale for 32, activations as they come",
        Scheme(kind=Kind.DYNAMIC, weight_bits=4, granularity=Granularity.BLOCK_32),
        varies=_DYNAMIC,
    ),
    _recipe(
        _STATIC,
        "LiteRT, 8 bits, a scale per output channel",
        Scheme(kind=Kind.STATIC, weight_bits=8, activation_bits=8),
    ),
    _recipe(
        f"{_STATIC}/per-tensor",
        "LiteRT, 8 bits, one scale per weight",
        Scheme(
            kind=Kind.STATIC,
            weight_bits=8,
            activation_bits=8,
            granularity=Granularity.PER_TENSOR,
        ),
        varies=_STATIC,
    ),
    _recipe(
        "litert/int16x8",
        "LiteRT, activations of 16 bits, weights of 8",
        Scheme(kind=Kind.STATIC, weight_bits=8, activation_bits=16),
        varies=_STATIC,
    ),
    _recipe(
        _WEIGHTS,
        "LiteRT, weights stored in 8 bits, widened when the model runs",
        Scheme(kind=Kind.WEIGHTS, weight_bits=8),
    ),
    _recipe(
        "litert/int4-weights",
        "LiteRT, weights stored in 4 bits, widened when the model runs",
        Scheme(kind=Kind.WEIGHTS, weight_bits=4),
        varies=_WEIGHTS,
    ),
)
