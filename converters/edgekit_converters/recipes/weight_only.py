"""Weights alone in 8 or 4 bits: a smaller file, and arithmetic as exact as that of float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgekit_converters.conditioning.moments import read_moments
from edgekit_converters.facts import WEIGHTED_INPUTS
from edgekit_converters.quantization.weight_only import Products, narrow_weights
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.recipes.tuning import Knob

__all__ = ["RECIPES"]

_MIN_OPSET: Final = 11
"""The first with BitShift, which unpacks 4 bits."""
_KNOBS: Final = frozenset({Knob.SPARED, Knob.RECONSTRUCTED})
_STORED: Final = "int8-weights/per-channel"
_SIMPLEST: Final = "int4-weights/block-32"
_PRODUCTS: Final = frozenset({"Gemm", "MatMul"})
_BLOCKS: Final = {
    "int8-weights/block-128/integer": Products(bits=8, block=128, integer=True),
    _SIMPLEST: Products(bits=4, block=32),
    "int4-weights/block-32/integer": Products(bits=4, block=32, integer=True),
    "int4-weights/block-32/asymmetric": Products(bits=4, block=32, symmetric=False),
    "int4-weights/block-64": Products(bits=4, block=64),
    "int4-weights/block-128": Products(bits=4, block=128),
}
_VERSIONS: Final = {8: "1.22", 4: "1.20"}
"""onnxruntime's first with MatMulNBits of so many bits, of those tried: 1.20.1 has no 8."""


def _make(products: Products | None) -> Callable[[Ingredients], None]:
    def make(ingredients: Ingredients) -> None:
        tuning, moments = ingredients.tuning, ingredients.moments
        narrow_weights(
            ingredients.normalized,
            ingredients.out,
            products=products,
            spared=frozenset(tuning.spared),
            moments=read_moments(moments) if tuning.reconstructed and moments else None,
        )

    return make


def _title(products: Products) -> str:
    return (
        f"weights of {products.bits} bits, a step for {products.block}"
        + ("" if products.symmetric else " and a zero point")
        + (", products in 8 bits" if products.integer else "")
    )


def _in_blocks(name: str, products: Products) -> Recipe:
    simplest = _STORED if products.bits == 8 else _SIMPLEST
    return Recipe(
        id=name,
        title=_title(products),
        needs=Needs(
            weighted=_PRODUCTS,
            nested=True,
            min_opset=_MIN_OPSET,
            min_runtime_version=_VERSIONS[products.bits],
            full_range=True if products.bits == 8 else None,
        ),
        make=_make(products),
        output_step=1 / (2 ** min(products.bits, 8) - 1),
        bits=products.bits,
        knobs=_KNOBS,
        varies=None if name == simplest else simplest,
    )


RECIPES: Final = (
    Recipe(
        id=_STORED,
        title="weights stored in 8 bits, widened when the model loads",
        needs=Needs(weighted=frozenset(WEIGHTED_INPUTS), nested=True, min_opset=_MIN_OPSET),
        make=_make(None),
        output_step=1 / 255,
        bits=8,
        knobs=_KNOBS,
    ),
    *(_in_blocks(name, products) for name, products in _BLOCKS.items()),
)
