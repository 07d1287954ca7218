"""Dynamic 8-bit quantization: weights beforehand, activations while the model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgekit_converters.conditioning.moments import read_moments
from edgekit_converters.quantization.dynamic import Storage, quantize_dynamic
from edgekit_converters.quantization.qdq import Granularity
from edgekit_converters.quantization.selection import DYNAMIC_OPERATORS
from edgekit_converters.recipes.recipe import Ingredients, Needs, Recipe
from edgekit_converters.recipes.tuning import Knob

__all__ = ["RECIPES"]

_MIN_OPSET: Final = 11
"""The first with DynamicQuantizeLinear, and BitShift."""
_MIN_PACKED_OPSET: Final = 13
"""The first with QuantizeLinear along an axis."""
_KNOBS: Final = frozenset({Knob.SPARED, Knob.SMOOTHED, Knob.RECONSTRUCTED})
_TABLES: Final = frozenset({"Gather"})
_WHOLE: Final = Storage()
_NARROW_TABLES: Final = Storage(table_bits=6)
_PACKED: Final = {
    "int8-dynamic/per-channel/tables-6": _NARROW_TABLES,
    "int6-dynamic/block-128": Storage(bits=6, block=128, table_bits=6),
    "int5-dynamic/block-64": Storage(bits=5, block=64, table_bits=4),
    "int4-dynamic/block-32": Storage(bits=4, block=32, table_bits=4),
}
"""Smaller files that compute in 8 bits all the same."""


def _make(
    granularity: Granularity, reduced: bool, storage: Storage
) -> Callable[[Ingredients], None]:
    def make(ingredients: Ingredients) -> None:
        tuning, moments = ingredients.tuning, ingredients.moments
        quantize_dynamic(
            ingredients.normalized,
            ingredients.out,
            per_channel=granularity is Granularity.PER_CHANNEL,
            reduce_range=reduced,
            storage=storage,
            spared=frozenset(tuning.spared),
            moments=read_moments(moments) if tuning.reconstructed and moments else None,
        )

    return make


def _recipe(
    name: str, granularity: Granularity, reduced: bool, storage: Storage, varies: str | None
) -> Recipe:
    suffix = "/reduced" if reduced else ""
    title = f"weights of {storage.bits} bits, tables of {storage.table_bits}, 8-bit products"
    return Recipe(
        id=name + suffix,
        title=title + (" of 7-bit weights" if reduced else "") + ", activations as they come",
        needs=Needs(
            weighted=_TABLES if storage == _NARROW_TABLES else DYNAMIC_OPERATORS | _TABLES,
            nested=True,
            min_opset=_MIN_PACKED_OPSET if storage.bits < 8 else _MIN_OPSET,
            full_range=not reduced,
        ),
        make=_make(granularity, reduced, storage),
        output_step=1 / 255,
        bits=(storage.bits + storage.table_bits) / 2,
        knobs=_KNOBS,
        varies=None if varies is None else varies + suffix,
    )


def _recipes(reduced: bool) -> tuple[Recipe, ...]:
    simplest = f"int8-dynamic/{Granularity.PER_CHANNEL.value}"
    return (
        _recipe(simplest, Granularity.PER_CHANNEL, reduced, _WHOLE, None),
        _recipe(
            f"int8-dynamic/{Granularity.PER_TENSOR.value}",
            Granularity.PER_TENSOR,
            reduced,
            _WHOLE,
            simplest,
        ),
        *(
            _recipe(name, Granularity.PER_CHANNEL, reduced, storage, simplest)
            for name, storage in _PACKED.items()
        ),
    )


RECIPES: Final = (*_recipes(reduced=False), *_recipes(reduced=True))
