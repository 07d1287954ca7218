"""Tuning: what a search may change about a variant beyond the choice of its recipe.

Invariant: values only. The default tuning is the recipe as its id says.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final

import msgspec

__all__ = ["UNTUNED", "Knob", "Tuning"]


class Knob(enum.Enum):
    """What a recipe lets a search change; each is a field of `Tuning`."""

    SPARED = "spared"
    WIDE = "wide"
    EQUALIZED = "equalized"
    LEVELLED = "levelled"
    SMOOTHED = "smoothed"
    CORRECTED = "corrected"
    RECONSTRUCTED = "reconstructed"


_SWITCHES: Final = ("wide", "equalized", "levelled", "smoothed", "corrected", "reconstructed")


class Tuning(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    spared: tuple[str, ...] = ()
    """Nodes of the normalized model that keep the wider format that the recipe knows: float32 in
    8-bit recipes, 8 bits in 4-bit ones."""
    wide: bool = False
    """Quantize operators without weights, too, where the runtime has integer kernels for them."""
    equalized: bool = False
    """Start from the model with its weights' channels balanced across layers."""
    levelled: bool = False
    """Start from the model with the values of each tensor's channels made equally large."""
    smoothed: bool = False
    """Start from the model with outliers of activations moved into the weights that read them."""
    corrected: bool = False
    """Absorb the mean error of each channel in the bias."""
    reconstructed: bool = False
    """Round weights so that the layer's output changes least, not to the nearest level."""

    @property
    def is_rounded(self) -> bool:
        """Whether weights are rounded by moments of what layers read."""
        return self.corrected or self.reconstructed

    @property
    def label(self) -> str:
        """For tables: what differs from the recipe, or nothing; no two tunings share it."""
        parts = [name for name in _SWITCHES if getattr(self, name)]
        if self.spared:
            told = hashlib.sha256("\n".join(self.spared).encode()).hexdigest()
            parts.append(f"{len(self.spared)} spared: {told[:8]}")
        return ", ".join(parts)

    def title_of(self, recipe: str) -> str:
        """A variant's name: its recipe, and what the search changed about it."""
        return f"{recipe} ({self.label})" if self.label else recipe


UNTUNED: Final = Tuning()
"""A recipe as its id says."""
