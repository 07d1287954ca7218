"""Float32: the model as given, and as the normalization left it."""

from __future__ import annotations

import shutil
from typing import Final

from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe

__all__ = ["RECIPES"]

_STEP: Final = 1e-4
"""Float32 sums in another order differ by about 1e-6 of the range in each layer."""


def _as_given(ingredients: Ingredients) -> None:
    shutil.copyfile(ingredients.given, ingredients.out)


def _normalized(ingredients: Ingredients) -> None:
    shutil.copyfile(ingredients.normalized, ingredients.out)


RECIPES: Final = (
    Recipe(
        id="float32",
        title="the model as given",
        needs=Needs(),
        make=_as_given,
        output_step=_STEP,
    ),
    Recipe(
        id="float32-optimized",
        title="simplified",
        needs=Needs(),
        make=_normalized,
        output_step=_STEP,
        optimizes=True,
    ),
)
