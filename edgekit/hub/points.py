"""The newest points of a few measured series, packed: what a live chart shows first.

Invariant: between `keep` and 2 x `keep` rows are held at most, in the order they came, each with
one float per column; a value that was not measured is NaN inside and None outside.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence

__all__ = ["Points"]


class Points:
    """Rows of (`at`, one value per column), where `at` is in Unix seconds.

    An array of doubles: a tenth of the memory of tuples, which counts with 10,000 devices.
    """

    __slots__ = ("_keep", "_values", "columns")

    def __init__(self, columns: Sequence[str], *, keep: int) -> None:
        self.columns = tuple(columns)
        self._keep = keep
        self._values = array("d")

    def __len__(self) -> int:
        return len(self._values) // self._stride

    @property
    def _stride(self) -> int:
        return 1 + len(self.columns)

    def append(self, at: float, values: Sequence[float | None]) -> None:
        """Add a row; the oldest rows go when there are more than twice `keep`."""
        if len(values) != len(self.columns):
            raise RuntimeError(f"{len(values)} values for the columns {self.columns}")
        self._values.append(at)
        self._values.extend(math.nan if value is None else value for value in values)
        if len(self) > 2 * self._keep:
            del self._values[: self._keep * self._stride]

    def after(self, at: float) -> Iterator[tuple[float, tuple[float | None, ...]]]:
        """The rows later than `at`, oldest first."""
        stride = self._stride
        for start in range(0, len(self._values), stride):
            if self._values[start] > at:
                row = self._values[start + 1 : start + stride]
                yield self._values[start], tuple(None if math.isnan(v) else v for v in row)

    def newest(self, column: str) -> float | None:
        """The column's value in the newest row; None where there is none."""
        if not self._values:
            return None
        value = self._values[self.columns.index(column) - len(self.columns)]
        return None if math.isnan(value) else value
