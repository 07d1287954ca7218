"""onnxruntime's own quantizers, as its documentation says to use them, for comparison.

Source: onnxruntime.ai, "Quantize ONNX models": pre-processing first, dynamic quantization for
recurrent and transformer models, static in QDQ format for the rest, with 8-bit activations of
either sign; "Transformers Model Optimization Tool" for BERT.

Invariant: each way runs in a process of its own, with a time limit, on the same calibration data
as edgekit; what a way raises is its result.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from real_models import RealModel

from edgekit.build.data import open_data
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import open_session

__all__ = ["WAYS", "Made", "make"]

_TIMEOUT_S: Final = 240.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a way made, or why it made nothing."""

    way: str
    path: Path
    seconds: float
    failure: str | None = None


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, real: RealModel) -> None:
        session = open_session(RuntimeKind.ONNXRUNTIME, real.model)
        data = open_data(str(real.calibration or real.validation))
        self._rest: Iterator[dict[str, np.ndarray]] = (
            sample.feeds for sample in data.samples(session.inputs)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rest, None)


def _prepared(real: RealModel, out: Path) -> Path:
    """The pre-processing, as far as it gets: the documentation calls it optional."""
    prepared = out.with_suffix(".prepared.onnx")
    for skips in (False, True):
        with contextlib.suppress(Exception):
            quant_pre_process(str(real.model), str(prepared), skip_symbolic_shape=skips)
            return prepared
    return real.model


def _dynamic(real: RealModel, out: Path, *, per_channel: bool) -> None:
    quantize_dynamic(str(_prepared(real, out)), str(out), per_channel=per_channel)


def _static(real: RealModel, out: Path, *, per_channel: bool, activations: QuantType) -> None:
    quantize_static(
        str(_prepared(real, out)),
        str(out),
        _Reader(real),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=activations,
        weight_type=QuantType.QInt8,
    )


def _fused(real: RealModel, out: Path, *, quantized: bool) -> None:
    from onnxruntime.transformers import optimizer

    fused = out.with_suffix(".fused.onnx") if quantized else out
    # heads and width of 0: found in the graph
    optimizer.optimize_model(
        str(real.model), model_type="bert", num_heads=0, hidden_size=0
    ).save_model_to_file(str(fused))
    if quantized:
        quantize_dynamic(str(fused), str(out))


def _ways() -> Iterator[tuple[str, Callable[[RealModel, Path], None]]]:
    for per_channel, grain in ((False, "per-tensor"), (True, "per-channel")):
        yield (
            f"dynamic/{grain}",
            lambda real, out, p=per_channel: _dynamic(real, out, per_channel=p),
        )
        for kind, name in ((QuantType.QInt8, "s8s8"), (QuantType.QUInt8, "u8s8")):
            yield (
                f"static/{grain}/{name}",
                lambda real, out, p=per_channel, k=kind: _static(
                    real, out, per_channel=p, activations=k
                ),
            )
    yield "bert-fusion", lambda real, out: _fused(real, out, quantized=False)
    yield "bert-fusion/dynamic", lambda real, out: _fused(real, out, quantized=True)


WAYS: Final[Mapping[str, Callable[[RealModel, Path], None]]] = dict(_ways())


def make(real: RealModel, way: str, directory: Path) -> Made:
    """Run a way in a child process."""
    out = directory / f"{way.replace('/', '-')}.onnx"
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    began = time.perf_counter()
    child = spawning.Process(target=_run, args=(real, way, out, sender), daemon=True)
    child.start()
    sender.close()
    failure = _outcome(receiver)
    seconds = time.perf_counter() - began
    child.kill()
    child.join()
    if failure is None and not out.exists():
        failure = "ended without a file"
    return Made(way=way, path=out, seconds=seconds, failure=failure)


def _outcome(receiver: Connection[Any, Any]) -> str | None:
    if not receiver.poll(_TIMEOUT_S):
        return f"not ready after {_TIMEOUT_S:g} s"
    try:
        said: str | None = receiver.recv()
    except EOFError:
        return "ended the interpreter"
    return said


def _run(real: RealModel, way: str, out: Path, sender: Connection[Any, Any]) -> None:
    logging.disable()
    onnxruntime.set_default_logger_severity(4)
    os.chdir(out.parent)  # the pre-processing leaves files wherever it runs
    try:
        WAYS[way](real, out)
    except Exception as error:
        sender.send(" ".join(f"{type(error).__name__}: {error}".split())[:200])
    else:
        sender.send(None)
