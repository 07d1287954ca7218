"""The split: which samples search and choice may see, and which are held out for the report.

Invariant: it follows from the number of samples alone, so that whoever asks gets the same one. Of
each two neighbours one is held out, and a hash of their number says which: halves are equal, and a
period in the data (classes that take turns) does not become a difference between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from edgekit.build.samples import Sample

__all__ = ["MIN_HELD_OUT", "Split"]

MIN_HELD_OUT: Final = 100
"""Samples from which on half are kept from the choice and used for the report alone."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Of so many samples."""

    samples: int

    @property
    def holds_out(self) -> bool:
        """Whether there are enough samples to keep half of them from the choice."""
        return self.samples >= MIN_HELD_OUT

    @property
    def selected(self) -> int:
        """How many samples the choice may see."""
        if not self.holds_out:
            return self.samples
        pairs, single = divmod(self.samples, 2)
        return pairs + (single and self.selects(self.samples - 1))

    def selects(self, index: int) -> bool:
        """Whether the choice may see the sample of this number."""
        if not self.holds_out:
            return True
        pair, place = divmod(index, 2)
        return blake2b(pair.to_bytes(8, "little"), digest_size=1).digest()[0] & 1 == place

    def selection(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Those of all the samples that the choice may see."""
        return (sample for index, sample in enumerate(samples) if self.selects(index))

    def held_out(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The others."""
        return (sample for index, sample in enumerate(samples) if not self.selects(index))
