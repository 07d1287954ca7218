"""Static 8-bit quantization (QDQ): ranges of activations are estimated beforehand.

Sources: Jacob et al., CVPR 2018 (per-tensor, asymmetric activations); Krishnamoorthi, "Quantizing
deep convolutional networks for efficient inference", 2018 (per-channel weights).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Final

from edgekit_converters.calibration.estimators import Estimator
from edgekit_converters.normalization import QUANTIZABLE_OPSET
from edgekit_converters.quantization.qdq import Activations, Granularity, quantize_static
from edgekit_converters.quantization.selection import STATIC_OPERATORS
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.recipes.tuning import Knob

__all__ = ["RECIPES"]

_TITLES: Final = {
    Granularity.PER_CHANNEL: "a scale per output channel",
    Granularity.PER_TENSOR: "one scale per weight",
}


def _make(
    granularity: Granularity, activations: Activations, reduced: bool
) -> Callable[[Ingredients], None]:
    def make(ingredients: Ingredients) -> None:
        quantize_static(
            ingredients.normalized,
            ingredients.out,
            ranges=ingredients.ranges,
            activations=activations,
            granularity=granularity,
            reduce_range=reduced,
            tuning=ingredients.tuning,
            moments=ingredients.moments,
        )

    return make


def _recipe(
    granularity: Granularity, activations: Activations, reduced: bool, estimator: Estimator
) -> Recipe:
    ending = "-reduced" if reduced else ""
    family = f"int8-static/{granularity.value}/{activations.value}{ending}"
    simplest = f"int8-static/{granularity.value}/{Activations.U8.value}{ending}/minmax"
    return Recipe(
        id=f"{family}/{estimator.value}",
        title=f"8 bits, {_TITLES[granularity]}"
        + (", weights of 7 bits" if reduced else "")
        + f", ranges by {estimator.value}",
        needs=Needs(
            weighted=STATIC_OPERATORS,
            min_opset=QUANTIZABLE_OPSET,
            estimator=estimator,
            full_range=not reduced,
        ),
        make=_make(granularity, activations, reduced),
        output_step=1 / 255,
        bits=8,
        knobs=frozenset({Knob.SPARED, Knob.WIDE, Knob.CORRECTED, Knob.RECONSTRUCTED})
        | {Knob.LEVELLED if granularity is Granularity.PER_CHANNEL else Knob.EQUALIZED},
        varies=_varied(f"{family}/{estimator.value}", f"{family}/minmax", simplest),
    )


def _varied(own: str, same_arithmetic: str, simplest: str) -> str | None:
    """By estimator first, then by the activations' number format."""
    return next((other for other in (same_arithmetic, simplest) if other != own), None)


RECIPES: Final = tuple(
    _recipe(*choices) for choices in product(Granularity, Activations, (False, True), Estimator)
)
