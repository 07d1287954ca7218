"""What the build makes of four real models, and what it costs.

    python benchmarks/build_real_models.py [--model NAME]... [--markdown]

One JSON object on stdout (or a table): the machine, and for each model every candidate, the choice,
and the build's seconds beside those of running the float32 model once over the same data (all
calibration and validation samples, one thread).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import real_models
from real_models import RealModel

import edgekit_profiles
from edgekit.build import BuildRequest, build
from edgekit.build.data import open_data
from edgekit.build.host import read_host
from edgekit.build.report import Outcome, Report
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_runtime.session import SessionOptions, installed_runtimes, open_session


class Stopwatch:
    """The build's progress, as seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Callable[[int], None]]:
        began = time.perf_counter()
        yield lambda steps: None
        self.seconds[title] = self.seconds.get(title, 0.0) + time.perf_counter() - began


def this_machine() -> Profile:
    """A profile of the machine that measures: its ISA, one thread."""
    base = edgekit_profiles.load(
        "linux-arm64" if platform.machine() == "aarch64" else "linux-x86-64"
    )
    host = read_host()
    return msgspec.structs.replace(
        base,
        name="this-machine",
        cpu=msgspec.structs.replace(
            base.cpu, core=host.core, features=tuple(sorted(host.features))
        ),
        runtimes=tuple(msgspec.structs.replace(r, threads=1) for r in base.runtimes),
    )


def float_once_s(real: RealModel) -> float:
    """Seconds of the float32 model over all samples, data reading not counted."""
    kind = RuntimeKind.LITERT if real.model.suffix == ".tflite" else RuntimeKind.ONNXRUNTIME
    session = open_session(kind, real.model, SessionOptions(threads=1))
    spent = 0.0
    for data in (real.calibration, real.validation):
        if data is None:
            continue
        for sample in open_data(str(data)).samples(session.inputs):
            began = time.perf_counter()
            session.run(sample.feeds)
            spent += time.perf_counter() - began
    return spent


def measured(real: RealModel, directory: Path) -> dict[str, Any]:
    once_s = float_once_s(real)
    watch = Stopwatch()
    began = time.perf_counter()
    result = build(
        BuildRequest(
            model=real.model,
            profiles=(this_machine(),),
            name=real.name,
            version="1.0",
            output=directory / "out",
            calibration=str(real.calibration) if real.calibration else None,
            validation=str(real.validation),
            max_drop=real.max_drop,
        ),
        progress=watch,
    )
    build_s = time.perf_counter() - began
    return {
        "model": real.name,
        "build_s": build_s,
        "float32_once_s": once_s,
        "stages_s": watch.seconds,
        "bundle_bytes": result.built[0].bundle.size_bytes,
        "report": result.built[0].report,
    }


def machine() -> dict[str, Any]:
    return {
        "cpu": read_host().title,
        "features": sorted(read_host().features),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "runtimes": {kind.value: version for kind, version in installed_runtimes().items()},
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The two tables of docs/benchmarks.md."""
    lines = [
        "| model | chosen recipe | metric | float32 | chosen | size | latency | build s | once s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in found["models"]:
        report: Report = entry["report"]
        by_recipe = {c.recipe: c for c in report.candidates}
        baseline, winner = report.candidates[0], by_recipe[report.chosen]
        scores = [c.held_out or c.score for c in (baseline, winner)]
        values = [f"{s.value:.4f} ({s.rows})" if s else "" for s in scores]
        share = (winner.size_bytes or 0) / (baseline.size_bytes or 1)
        ratio = f"{winner.latency.ratio:.2f}" if winner.latency else ""
        lines.append(
            f"| {entry['model']} | {report.chosen} | {report.metric.value} | {values[0]} "
            f"| {values[1]} | {share:.0%} | {ratio} | {entry['build_s']:.1f} "
            f"| {entry['float32_once_s']:.1f} |"
        )
    for entry in found["models"]:
        lines += ["", f"{entry['model']}:", "", "| recipe | metric | MB | ms | ratio | outcome |",
                  "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
        for c in entry["report"].candidates:
            if c.outcome is Outcome.SKIPPED:
                continue
            score = c.held_out or c.score
            lines.append(
                f"| {c.recipe} | {score.value if score else float('nan'):.4f} "
                f"| {(c.size_bytes or 0) / 1e6:.3f} "
                f"| {c.latency.median_ms if c.latency else float('nan'):.3f} "
                f"| {c.latency.ratio if c.latency else float('nan'):.2f} "
                f"| {c.outcome.value}: {c.reason} |"
            )
    return "\n".join(lines).replace("nan", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(real_models.MODELS))
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "models": []}
    for name in chosen.model or real_models.MODELS:
        with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as directory:
            print(name, file=sys.stderr)
            home = Path(directory)
            found["models"].append(measured(real_models.MODELS[name](home), home))
    found["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if chosen.markdown:
        print(as_markdown(found))
    else:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())


if __name__ == "__main__":
    main()
