"""ONNX to LiteRT: how exact, how long, how much memory, how large; and why not.

Each real model is closed and normalized as a build does, and converted in the `litert` environment
(`edgekit environments setup litert`). The difference is the greatest of any output element on real
samples that the conversion was not proved on, as a part of the output's range.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import machine
import msgspec
import numpy as np
import real_models

from edgekit.build.data import Data, open_data
from edgekit.build.material import Material, gather
from edgekit_contract.errors import Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import environments, isolation
from edgekit_converters.litert.conversion import convert
from edgekit_converters.proof import Signature, Trial
from edgekit_converters.sources import open_source
from edgekit_runtime.session import Tensors, open_session

_DIGITS: Final = Path(__file__).parents[1] / "examples" / "digits"
_UNSEEN: Final = 32
_SKIPPED: Final = 4
"""What the conversion was proved on."""


class Row(msgspec.Struct, kw_only=True):
    name: str
    onnx_bytes: int
    litert_bytes: int | None = None
    seconds: float | None = None
    rss_mib: float | None = None
    """Greatest resident memory of the processes that converted."""
    difference: float | None = None
    onnx_ms: float | None = None
    litert_ms: float | None = None
    failure: str | None = None


def run(
    *, given: str, normalized: str, out: str, signature: Any, trials: Any, home: str
) -> dict[str, float]:
    """In a child: convert, and tell what it took."""
    began = time.perf_counter()
    convert(
        tuple(dict.fromkeys((Path(normalized), Path(given)))),
        Path(out),
        signature=msgspec.convert(signature, Signature),
        trials=msgspec.convert(trials, tuple[Trial, ...]),
        home=Path(home),
    )
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": time.perf_counter() - began, "rss_mib": children / 1024}


def measured(name: str, model: Path, data: Data, scratch: Path) -> Row:
    with isolation.Workshop() as workshop:
        source = open_source(model, scratch=scratch, run=workshop.run)
        material = gather(source, None, data, normalizes=True, scratch=scratch, run=workshop.run)
        row = Row(name=name, onnx_bytes=source.size_bytes)
        out = scratch / "model.tflite"
        arguments = {
            "given": str(source.path),
            "normalized": str(material.normalized.path),
            "out": str(out),
            "signature": msgspec.to_builtins(source.signature),
            "trials": msgspec.to_builtins(material.trials),
            "home": str(scratch / "home"),
        }
        bounds = isolation.limits_for(source.size_bytes, timeout_s=300)
        try:
            found = workshop.run("converting", "litert:run", arguments, bounds)
        except Refused as error:
            row.failure = str(error)
            return row
    row.seconds, row.rss_mib = found["seconds"], found["rss_mib"]
    row.litert_bytes = out.stat().st_size
    _compare(material, out, row)
    return row


def _compare(material: Material, out: Path, row: Row) -> None:
    first = open_session(RuntimeKind.ONNXRUNTIME, material.source.path)
    second = open_session(RuntimeKind.LITERT, out)
    worst, spent = 0.0, ([], [])  # type: tuple[float, tuple[list[float], list[float]]]
    for sample in islice(material.samples(), _SKIPPED, _SKIPPED + _UNSEEN):
        want, got = (
            _timed(session, sample.feeds, times)
            for session, times in zip((first, second), spent, strict=True)
        )
        for output, expected in want.items():
            extent = float(np.ptp(expected.astype(np.float64))) or 1.0
            away = np.abs(got[output].astype(np.float64) - expected.astype(np.float64))
            worst = max(worst, float(away.max(initial=0.0)) / extent)
    row.difference = worst
    row.onnx_ms, row.litert_ms = (float(np.median(times)) for times in spent)


def _timed(session: Any, feeds: Tensors, times: list[float]) -> Any:
    began = time.perf_counter()
    outputs = session.run(feeds)
    times.append((time.perf_counter() - began) * 1e3)
    return outputs


def rows(names: list[str]) -> Iterator[Row]:
    for name in names:
        with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as directory:
            home = Path(directory)
            if name == "digits":
                model, data = _DIGITS / "digits.onnx", str(_DIGITS / "validation.npz")
            else:
                real = real_models.MODELS[name](home)
                model, data = real.model, str(real.validation)
            scratch = home / "scratch"
            scratch.mkdir()
            yield measured(name, model, open_data(data), scratch)


def as_markdown(found: list[Row]) -> str:
    lines = [
        "| model | ONNX MB | LiteRT MB | largest difference | s | RSS MiB | ONNX ms | LiteRT ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        if row.failure is not None:
            lines.append(
                f"| {row.name} | {row.onnx_bytes / 1e6:.2f} | no: {row.failure} | | | | | |"
            )
            continue
        lines.append(
            f"| {row.name} | {row.onnx_bytes / 1e6:.2f} | {(row.litert_bytes or 0) / 1e6:.2f} "
            f"| {row.difference:.1e} | {row.seconds:.1f} | {row.rss_mib:.0f} "
            f"| {row.onnx_ms:.3f} | {row.litert_ms:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--short", action="store_true", help="digits alone")
    words = parser.parse_args()
    known = [n for n in real_models.MODELS if not n.endswith("tflite")]
    names = ["digits"] if words.short else ["digits", *known]
    began = time.perf_counter()
    environments.set_up(environments.LITERT)
    ready_s = time.perf_counter() - began
    found = list(rows(names))
    if words.markdown:
        sys.stdout.write(as_markdown(found) + "\n")
        return
    machine.emit({"environment_s": ready_s, "models": [msgspec.to_builtins(r) for r in found]})


if __name__ == "__main__":
    main()
