"""Float16: numbers of half the size."""

from __future__ import annotations

from typing import Final

from edgekit_converters.facts import WEIGHTED_INPUTS
from edgekit_converters.quantization.halves import compute_in_half
from edgekit_converters.quantization.weight_only import halve_weights
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.recipes.tuning import Knob

__all__ = ["RECIPES"]

_STEP: Final = 2.0**-11
"""Half a unit in the last place of 1."""


def _stored(ingredients: Ingredients) -> None:
    halve_weights(ingredients.normalized, ingredients.out)


def _computed(ingredients: Ingredients) -> None:
    compute_in_half(ingredients.normalized, ingredients.out, spared=ingredients.tuning.spared)


RECIPES: Final = (
    Recipe(
        id="float16/weights",
        title="constants stored in float16, widened when the model loads",
        needs=Needs(weighted=frozenset(WEIGHTED_INPUTS), nested=True),
        make=_stored,
        output_step=_STEP,
        bits=16,
    ),
    Recipe(
        id="float16/arithmetic",
        title="convolutions and what lies between them in float16",
        needs=Needs(
            weighted=frozenset({"Conv"}),
            features=frozenset({"asimdhp"}),
            min_runtime_version="1.22",
        ),
        make=_computed,
        output_step=_STEP,
        knobs=frozenset({Knob.SPARED}),
    ),
)
