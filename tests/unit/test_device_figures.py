"""What a device says that it measured: a figure only where it can be one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bundles import onnx_bundle
from fleets import utc_now

from edgekit.measure.fleet import _Candidate, _measured
from edgekit_contract.messages import Benched

ANSWER: dict[str, Any] = {
    "median_ms": 5.0,
    "low_ms": 4.0,
    "high_ms": 6.0,
    "p95_ms": 7.0,
    "runs": 100,
    "runtime": "onnxruntime 1.32.0",
}


def figure_of(**changes: Any) -> tuple[float | None, str]:
    candidate = _Candidate(
        path=Path("m.ekb"), manifest=onnx_bundle().manifest, structure="s", estimate=None
    )
    answer = Benched(id="b", at=utc_now(), **(ANSWER | changes))
    measured = _measured(candidate, "pi-1", answer)
    return measured.figure.median_ms if measured.figure else None, measured.reason


def test_a_latency_is_a_figure() -> None:
    assert figure_of() == (5.0, "")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"median_ms": -5.0}, "what it sent is no latency"),
        ({"low_ms": 5.5}, "what it sent is no latency"),
        ({"high_ms": float("inf")}, "what it sent is no latency"),
        ({"runs": 0}, "what it sent is no latency"),
        ({"runtime": "litert 2.3.0"}, "it says that litert ran it, and not onnxruntime"),
        ({"runtime": "onnxruntime"}, "it does not say which version of onnxruntime ran it"),
        ({"median_ms": None}, "it gave no figures"),
        ({"reason": "it is busy"}, "it is busy"),
    ],
)
def test_what_cannot_be_one_is_none(changes: dict[str, Any], reason: str) -> None:
    assert figure_of(**changes) == (None, reason)
