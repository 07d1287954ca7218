"""What ranking nodes by sensitivity costs, beside quantizing one node at a time.

    python benchmarks/sensitivity.py [--model NAME]... [--samples 16]
    python benchmarks/sensitivity.py --short        # the digits model, for CI

One thread. "Switched" is `measure_noise`; "one at a time" makes a variant per node with all others
spared, runs the samples, and takes the noise of the outputs. The rank correlation (Spearman) tells
how far the two agree.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import machine
import numpy as np
import onnx
import real_models

from edgekit.build.data import open_data
from edgekit.build.material import Material, gather
from edgekit.build.progress import Silent
from edgekit.build.ranges import calibrate
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.calibration.estimators import Estimator, Range
from edgekit_converters.quantization.qdq import Activations, Granularity, quantize_static
from edgekit_converters.quantization.selection import select_static
from edgekit_converters.quantization.sensitivity import measure_noise
from edgekit_converters.recipes.tuning import Tuning
from edgekit_converters.sources import open_source
from edgekit_runtime.session import open_session

DIGITS = Path(__file__).parents[1] / "examples" / "digits"
Feeds = Mapping[str, np.ndarray]


def measured(name: str, model: Path, calibration: Path, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        source = open_source(model, scratch=scratch)
        material = gather(
            source, open_data(str(calibration)), None, normalizes=True, scratch=scratch
        )
        with isolation.Workshop() as workshop:
            found = calibrate(
                material, (Estimator.MINMAX,), workshop, scratch=scratch, progress=Silent()
            )
        ranges, samples = found.widest, [s.feeds for s in islice(material.samples(), count)]
        normalized = material.normalized.path
        selection = select_static(onnx.load_model(normalized))
        began = time.perf_counter()
        noise = measure_noise(
            normalized, selection, ranges, samples, per_channel=True, threads=1, scratch=scratch
        )
        once_s = time.perf_counter() - began
        taken = set(selection.nodes)  # others are ranked by their weights, in other recipes
        noise = tuple(found for found in noise if found.node in taken)
        began = time.perf_counter()
        alone = one_at_a_time(material, [n.node for n in noise], ranges, samples, scratch)
        each_s = time.perf_counter() - began
    ours = [n.noise_db for n in noise]
    return {
        "model": name,
        "nodes": len(noise),
        "samples": len(samples),
        "switched_s": once_s,
        "one_at_a_time_s": each_s,
        "ratio": once_s / each_s,
        "rank_correlation": float(np.corrcoef(ranks(ours), ranks(alone))[0, 1]),
    }


def one_at_a_time(
    material: Material,
    nodes: Sequence[str],
    ranges: Mapping[str, Range],
    samples: Sequence[Feeds],
    scratch: Path,
) -> list[float]:
    """Decibels of noise in the outputs, with each node in turn quantized by itself."""
    normalized = material.normalized.path
    session = open_session(RuntimeKind.ONNXRUNTIME, normalized)
    want = [session.run(feeds) for feeds in samples]
    found = []
    for node in nodes:
        out = scratch / "alone.onnx"
        quantize_static(
            normalized,
            out,
            ranges=ranges,
            activations=Activations.U8,
            granularity=Granularity.PER_CHANNEL,
            reduce_range=False,
            tuning=Tuning(spared=tuple(other for other in nodes if other != node)),
        )
        session = open_session(RuntimeKind.ONNXRUNTIME, out)
        error = power = 0.0
        for feeds, right in zip(samples, want, strict=True):
            for name, array in session.run(feeds).items():
                error += float(((array - right[name]) ** 2).sum())
                power += float((right[name] ** 2).sum())
        session.close()
        found.append(10 * float(np.log10(max(error, 1e-30) / power)))
    return found


def ranks(values: Sequence[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=("efficientnet-lite0", "magika"))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--short", action="store_true")
    asked = parser.parse_args()
    if asked.short:
        digits = DIGITS / "digits.onnx", DIGITS / "calibration.npz"
        machine.emit([measured("digits", *digits, count=4)])
        return
    results = []
    for name in asked.model or ("efficientnet-lite0", "magika"):
        with tempfile.TemporaryDirectory() as directory:
            real = real_models.MODELS[name](Path(directory))
            assert isinstance(real.calibration, Path)
            results.append(measured(name, real.model, real.calibration, asked.samples))
    machine.emit(results)


if __name__ == "__main__":
    main()
