"""Recipes: ways to make a variant. A module here with `RECIPES` is a family; so is an entry point.

Invariant: a recipe declares what it needs, so that a plan lists only what can run; adding one adds
a module and touches nothing else. Other packages add theirs as entry points of `edgekit.recipes`,
each naming a module or object with `RECIPES`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.recipes.recipe import Recipe

__all__ = ["BASELINE", "ENTRY_POINTS", "all_recipes", "conversion_to", "find_recipe"]

ENTRY_POINTS: Final = "edgekit.recipes"
BASELINE: Final = "float32"
"""The recipe that every other is measured against: the model as given."""


@lru_cache(maxsize=1)
def all_recipes() -> tuple[Recipe, ...]:
    """Every recipe, the baseline first, then by id. Errors: `RuntimeError` where an id is twice."""
    recipes = sorted(_families(), key=lambda recipe: (recipe.id != BASELINE, recipe.id))
    ids = [recipe.id for recipe in recipes]
    if len(set(ids)) != len(ids):
        raise RuntimeError(f"two recipes have one id: {sorted(ids)}")
    return tuple(recipes)


def find_recipe(recipe_id: str) -> Recipe:
    """The recipe of this id. Errors: `RuntimeError`."""
    for recipe in all_recipes():
        if recipe.id == recipe_id:
            return recipe
    raise RuntimeError(f"there is no recipe {recipe_id!r}")


def conversion_to(kind: RuntimeKind, recipes: Iterable[Recipe]) -> Recipe | None:
    """The recipe that makes a model for this runtime of one for another."""
    return next((r for r in recipes if r.converts and r.needs.runtime is kind), None)


def _families() -> Iterator[Recipe]:
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        yield from getattr(module, "RECIPES", ())
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        yield from point.load().RECIPES
