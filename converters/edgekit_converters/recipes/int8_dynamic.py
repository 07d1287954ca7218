"""Dynamic 8-bit quantization: weights beforehand, activations while the model runs.

Source: onnxruntime's MatMulInteger and DynamicQuantizeLSTM.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Final

from edgekit_converters.qdq import Granularity, quantize_dynamic
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.selection import DYNAMIC_OPERATORS

__all__ = ["RECIPES"]

_MIN_OPSET: Final = 11
"""The first with DynamicQuantizeLinear."""


def _make(granularity: Granularity, reduced: bool) -> Callable[[Ingredients], None]:
    def make(ingredients: Ingredients) -> None:
        quantize_dynamic(
            ingredients.normalized,
            ingredients.out,
            granularity=granularity,
            reduce_range=reduced,
        )

    return make


RECIPES: Final = tuple(
    Recipe(
        id=f"int8-dynamic/{granularity.value}" + ("/reduced" if reduced else ""),
        title="8-bit weights" + (" of 7 bits" if reduced else "") + ", activations as they come",
        needs=Needs(
            weighted=DYNAMIC_OPERATORS,
            nested=True,
            min_opset=_MIN_OPSET,
            full_range=not reduced,
        ),
        make=_make(granularity, reduced),
        output_step=1 / 255,
    )
    for granularity, reduced in product(Granularity, (False, True))
)
