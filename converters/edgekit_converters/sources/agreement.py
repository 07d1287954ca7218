"""Does the ONNX file compute what the model computes in its own framework?

Invariant: nothing here runs a model; figures are added up output by output, sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from edgekit_contract.errors import Refused

__all__ = ["Agreement", "Disagrees", "Output", "add"]

_ABSOLUTE: Final = 1e-4
_RELATIVE: Final = 1e-3
"""What reordered float32 sums may differ by, of the output's greatest element and of each."""
_JUMPS: Final = 0.01
"""Share of rows that a model of steps may give otherwise: an input on the edge of a step falls to
either side, by a last bit."""


class Output(msgspec.Struct, frozen=True):
    """What was seen of one output."""

    difference: float = 0.0
    """Greatest absolute difference, infinity where shapes or NaN differ."""
    greatest: float = 0.0
    """Greatest magnitude that the framework gave."""
    rows: int = 0
    off: int = 0
    """Rows with an element beyond the tolerance."""
    clear: int = 0
    """Rows of scores whose first is further ahead than the tolerance."""
    same: int = 0
    """Those of them whose first is the same."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    samples: int = 0
    outputs: dict[str, Output] = {}
    left_out: tuple[str, ...] = ()
    """Outputs that the framework does not give by these names."""

    def demand(self, title: str, framework: str, *, jumps: bool) -> None:
        """Errors: `Disagrees`, `Refused` where no output could be compared."""
        if not self.outputs:
            raise Refused(
                f"nothing that {title} gives as ONNX could be compared with {framework}: "
                "convert it to ONNX yourself, and build that."
            )
        for name, output in self.outputs.items():
            allowed = _JUMPS * output.rows if jumps else 0
            if output.off > allowed or output.clear - output.same > allowed:
                raise Disagrees(title, framework, name, output)

    def sentence(self, framework: str, data: str) -> str:
        """For the report."""
        worst = max(self.outputs.values(), key=lambda output: (output.difference, output.clear))
        clear = sum(output.clear for output in self.outputs.values())
        same = sum(output.same for output in self.outputs.values())
        off = sum(output.off for output in self.outputs.values())
        return (
            f"Converted from {framework}, and compared with it on {self.samples} {data}: the "
            f"greatest difference is {worst.difference:.2g} where the greatest value is "
            f"{worst.greatest:.3g}"
            + (f"; of {clear} rows of scores {same} have the same first" if clear else "")
            + (f"; {off} rows are off by a step of the model" if off else "")
            + (f"; not compared: {', '.join(self.left_out)}" if self.left_out else "")
            + "."
        )


class Disagrees(Refused):
    """The conversion is wrong."""

    def __init__(self, title: str, framework: str, name: str, output: Output) -> None:
        what = (
            f"differs by up to {output.difference:.3g} (greatest value {output.greatest:.3g}) in "
            f"{output.off} of {output.rows} rows"
            if np.isfinite(output.difference)
            else f"has another shape, or NaN elsewhere, in {output.off} of {output.rows} rows"
        )
        super().__init__(
            f"{title} as ONNX does not compute what {framework} does: output {name!r} {what}. "
            "Export it with another version of the framework, or to ONNX yourself."
        )
        self.output, self.difference = name, output.difference


def add(
    sofar: Agreement, want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]
) -> Agreement:
    """With one more sample; outputs that only one side has are not compared."""
    outputs = dict(sofar.outputs)
    for name, value in got.items():
        if name in want:
            seen = _compared(np.asarray(want[name]), value)
            outputs[name] = _sum(outputs[name], seen) if name in outputs else seen
    left_out = tuple(sorted({*sofar.left_out, *(got.keys() - want.keys())}))
    return Agreement(samples=sofar.samples + 1, outputs=outputs, left_out=left_out)


def _sum(first: Output, second: Output) -> Output:
    return Output(
        max(first.difference, second.difference),
        max(first.greatest, second.greatest),
        first.rows + second.rows,
        first.off + second.off,
        first.clear + second.clear,
        first.same + second.same,
    )


def _compared(want: np.ndarray, got: np.ndarray) -> Output:
    rows = max(1, want.shape[0]) if want.ndim else 1
    if (
        got.shape != want.shape
        and got.size == want.size
        and got.squeeze().shape == (want.squeeze().shape)
    ):
        got = got.reshape(want.shape)  # a column for a row: as exporters of trees write it
    if got.shape != want.shape or want.dtype.kind not in "biuf":
        return Output(float("inf"), 0.0, rows, rows)
    if want.dtype.kind != "f":
        off = (got.astype(np.float64) != want.astype(np.float64)).reshape(rows, -1)
        return Output(float(off.any()), float(np.abs(want).max(initial=0)), rows, _rows(off))
    expected, value = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(expected)
    greatest = float(np.max(np.abs(expected), initial=0.0, where=finite))
    near = np.isclose(value, expected, rtol=_RELATIVE, atol=_ABSOLUTE * greatest, equal_nan=True)
    both = finite & np.isfinite(value)
    difference = float(np.max(np.abs(value - expected), initial=0.0, where=both))
    if (np.isfinite(value) != finite).any():
        difference = float("inf")
    clear = same = 0
    if expected.ndim > 1 and expected.shape[-1] > 1 and finite.all():
        scores, other = (a.reshape(-1, expected.shape[-1]) for a in (expected, value))
        ranked = np.sort(scores, -1)
        ahead = ranked[:, -1] - ranked[:, -2] > 2 * (_ABSOLUTE + _RELATIVE) * max(greatest, 1e-30)
        clear = int(ahead.sum())
        same = int((scores.argmax(-1) == other.argmax(-1))[ahead].sum())
    return Output(difference, greatest, rows, _rows(~near.reshape(rows, -1)), clear, same)


def _rows(off: np.ndarray) -> int:
    return int(off.any(-1).sum())
