"""Activations of 16 bits, weights of 8: for models that 8-bit activations break."""

from __future__ import annotations

from typing import Final

from edgekit_converters.calibration.estimators import Estimator
from edgekit_converters.quantization.int16 import quantize_16x8
from edgekit_converters.quantization.selection import STATIC_OPERATORS
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.recipes.tuning import Knob

__all__ = ["RECIPES"]


def _make(ingredients: Ingredients) -> None:
    quantize_16x8(
        ingredients.normalized,
        ingredients.out,
        ranges=ingredients.ranges,
        spared=ingredients.tuning.spared,
    )


RECIPES: Final = (
    Recipe(
        id="int16x8",
        title="activations of 16 bits, weights stored in 8",
        needs=Needs(
            weighted=STATIC_OPERATORS,
            min_runtime_version="1.20",
            estimator=Estimator.MINMAX,
        ),
        make=_make,
        output_step=1 / 255,
        bits=8,
        knobs=frozenset({Knob.SPARED}),
        varies="int8-weights/per-channel",
    ),
)
