"""The user's own metric, `package.module:callable`: its mean over the samples.

It is called once for each sample as `callable(outputs, reference, labels)`: the variant's and
float32's outputs, dicts of arrays by name that cannot be written to, and the sample's labels, a
flat int64 or float64 array or None. It returns a number, of which greater is better; `--max-drop`
is in its unit.

Invariant: calls come one at a time, though variants run side by side; whatever the callable does,
the build goes on with a finite number or ends with a sentence that names it and the sample.
"""

from __future__ import annotations

import math
import numbers
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from edgekit.build.metrics.intervals import Replicates
from edgekit.build.metrics.meter import Meter, Outputs, Score
from edgekit_contract.errors import Refused
from edgekit_converters.callables import load_callable, said_by

__all__ = ["custom", "load_metric"]

_TURN: Final = threading.Lock()


def load_metric(name: str) -> Callable[..., Any]:
    """Errors: `Misused` where it cannot be imported or called."""
    return load_callable(name, wanted="a function of (outputs, reference, labels)")


def custom(name: str) -> Meter:
    """Errors: `Misused`."""
    return _Custom(name, load_metric(name))


class _Custom:
    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function
        self._replicates = Replicates()

    def add(self, got: Outputs, baseline: Outputs, labels: np.ndarray | None) -> None:
        where = f"{self._name}, sample {self._replicates.samples}"
        arguments = (_locked(got), _locked(baseline), None if labels is None else _view(labels))
        try:
            with _TURN:
                value = self._function(*arguments)
        except (Exception, SystemExit) as error:  # the user's own code
            raise Refused(
                f"{where}: the metric raised {said_by(error)}: it is called with (outputs, "
                "reference, labels)."
            ) from error
        self._replicates.add(np.array([_number(value, where), 1.0]))

    def score(self) -> Score | None:
        if not self._replicates.samples:
            return None
        total, count = self._replicates.sums
        low, high = self._replicates.interval(lambda sums: sums[:, 0] / sums[:, 1])
        return Score(value=float(total / count), low=low, high=high, rows=self._replicates.samples)

    def remarks(self) -> tuple[str, ...]:
        return ()


def _locked(outputs: Outputs) -> dict[str, np.ndarray]:
    """The same arrays in a dict of its own, which the callable may change as it likes."""
    return {name: _view(array) for name, array in outputs.items()}


def _view(array: np.ndarray) -> np.ndarray:
    view: np.ndarray = array.view()
    view.flags.writeable = False
    return view


def _number(value: object, where: str) -> float:
    """Errors: `Refused`."""
    if isinstance(value, np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        found = str(number)
    elif isinstance(value, np.ndarray):
        found = f"an array of shape {list(value.shape)}"
    else:
        found = "None" if value is None else f"a {type(value).__name__}"
    raise Refused(f"{where}: the metric gave {found}: return one finite number.")
