"""Reports for tests, and bundles that hold one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
from bundles import null_bundle

from edgekit.build.pack import report_bytes
from edgekit.build.report import (
    Candidate,
    ErrorSample,
    Latency,
    ModelCard,
    NodeSensitivity,
    Outcome,
    Report,
    Score,
)
from edgekit.build.request import Objective
from edgekit_contract.manifest import TensorSpec
from edgekit_converters.recipes.tuning import Tuning


def candidate(
    recipe: str,
    metric: float | None = None,
    ratio: float | None = None,
    *,
    size_bytes: int = 5_000_000,
    outcome: Outcome = Outcome.LOST,
    reason: str = "less accurate than the chosen",
    **fields: Any,
) -> Candidate:
    """One that was measured as far as the figures say."""
    return Candidate(
        recipe=recipe,
        outcome=outcome,
        reason=reason,
        size_bytes=size_bytes if metric is not None else None,
        score=None if metric is None else score(metric),
        held_out=None if metric is None else score(metric - 0.001),
        latency=None if ratio is None else latency(ratio),
        **fields,
    )


def score(value: float) -> Score:
    return Score(value=value, low=value - 0.008, high=min(1.0, value + 0.007), rows=500)


def latency(ratio: float) -> Latency:
    return Latency(
        median_ms=11.7 * ratio, ratio=ratio, low=ratio * 0.97, high=ratio * 1.04, rounds=40
    )


def small_report(**changes: Any) -> Report:
    """As an older edgekit wrote it: nothing that has a default."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "version": "1.0",
        "profile": "demo-small",
        "runtime": "onnxruntime 1.20.0",
        "threads": 1,
        "measured_threads": 1,
        "objective": Objective.LATENCY,
        "metric": "top1",
        "max_drop": 0.01,
        "measured_on": "a small machine",
        "on_target": True,
        "calibration_samples": 0,
        "validation_samples": 0,
        "chosen": "float32",
        "candidates": (
            candidate("float32", 0.99, 1.0, outcome=Outcome.CHOSEN, reason="nothing beats float32"),
        ),
        "normalization": (),
        "remarks": (),
        "peak_ram_bytes": 1 << 20,
    }
    return Report(**(fields | changes))


def full_report(**changes: Any) -> Report:
    """Of a search that tried much: every outcome, every table."""
    fields: dict[str, Any] = {
        "name": "efficientnet-lite0",
        "version": "2.1.0",
        "profile": "raspberry-pi-4",
        "runtime": "onnxruntime 1.22.1",
        "threads": 4,
        "measured_threads": 2,
        "metric": "agreement",
        "measured_on": "Cascade Lake, x86_64, 2 cores, VNNI",
        "on_target": False,
        "calibration_samples": 200,
        "validation_samples": 1000,
        "chosen": "int8-static/per-channel/s8s8/mse",
        "candidates": _candidates(),
        "normalization": ("opset raised from 9 to 17", "112 Constant nodes became initializers"),
        "remarks": (
            "Latency was measured on HOST (Cascade Lake), not on raspberry-pi-4.",
            "The metric agreement compares with the float32 model, not with truth.",
        ),
        "peak_ram_bytes": 47_300_000,
        "sensitivity": _sensitivity(),
        "errors": tuple(
            ErrorSample(sample=n, label=n % 10, expected="tabby cat", got="tiger cat", margin=0.01)
            for n in (17, 403, 88, 951)
        ),
        "model": ModelCard(
            operators={"Conv": 49, "Relu6": 34, "Add": 9, "Gemm": 1, "Softmax": 1},
            opset=9,
            parameters=4_652_008,
            size_bytes=18_590_332,
            inputs=(TensorSpec(name="images", dtype="float32", shape=("batch", 3, 224, 224)),),
            outputs=(TensorSpec(name="Softmax", dtype="float32", shape=("batch", 1000)),),
        ),
        "sizes": {"int8": 4_600_000, "float32": 164_000, "int32": 42_000},
        "seconds": {
            "reading the model": 1.9,
            "calibration": 8.2,
            "making variants": 11.7,
            "running the validation data": 19.4,
            "measuring latency": 12.1,
            "packing": 0.4,
        },
    }
    return small_report(**(fields | changes))


def bundle_with(report: Report, path: Path) -> Path:
    """A bundle file that holds the report."""
    bundle = null_bundle()
    return bundle.with_files(bundle.files | {"files/report.json": report_bytes(report)}).write(path)


def bundle_with_raw(raw: bytes, path: Path) -> Path:
    """A bundle file whose report is these bytes."""
    bundle = null_bundle()
    return bundle.with_files(bundle.files | {"files/report.json": raw}).write(path)


def as_json(report: Report) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(report_bytes(report))
    return decoded


def _candidates() -> tuple[Candidate, ...]:
    chance = random.Random(7)
    tried = [
        candidate("float32", 1.0, 1.0, size_bytes=18_590_332, reason="slower and larger"),
        candidate("float32-optimized", 1.0, 0.93, size_bytes=18_560_000, closeness_db=118.0),
        candidate("float16", 0.998, 1.38, size_bytes=9_300_000, closeness_db=61.2),
        candidate(
            "int8-static/per-channel/s8s8/mse",
            0.994,
            0.41,
            size_bytes=4_940_000,
            outcome=Outcome.CHOSEN,
            reason="best by latency: 27% of float32's size and 0.41 of its time",
            tuning=Tuning(corrected=True, spared=("/stem/Conv", "/head/Gemm")),
            closeness_db=24.1,
        ),
        candidate("int8-static/per-channel/s8s8/percentile", 0.989, 0.39, closeness_db=19.0),
        candidate("int8-static/per-tensor/s8s8/minmax", 0.71, closeness_db=3.1),
        candidate("int8-dynamic/per-tensor", 0.985, 8.6, reason="slower than float32"),
        candidate(
            "weight-only/int4/block-32",
            outcome=Outcome.FAILED,
            reason="does not load: node '/head/Gemm' has no kernel",
        ),
        candidate("int16x8", outcome=Outcome.SKIPPED, reason="it is for litert"),
    ]
    for spared in range(1, 13):
        tried.append(
            candidate(
                "int8-static/per-channel/s8s8/entropy",
                0.97 + 0.0022 * spared + chance.uniform(-0.004, 0.002),
                0.38 + 0.022 * spared + chance.uniform(-0.01, 0.05),
                size_bytes=4_700_000 + 300_000 * spared,
                tuning=Tuning(spared=tuple(f"n{i}" for i in range(spared))),
                closeness_db=15.0 + spared,
            )
        )
    return tuple(tried)


def _sensitivity() -> tuple[NodeSensitivity, ...]:
    return tuple(
        NodeSensitivity(
            node=f"/blocks.{n // 3}/conv_{n % 3}/Conv",
            operator="Gemm" if n == 1 else "Conv",
            noise_db=-12.0 - 1.4 * n,
            spared=n < 2,
            parameters=1 << (8 + n % 9),
        )
        for n in range(26)
    )
