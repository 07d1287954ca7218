"""ONNX to LiteRT, and the proof that it still is the same model. Runs in a child process.

A model with open axes is first converted at the lengths of the data and opened again: its graph
then computes no shapes, and what was fixed is fast. Where it does not hold at other lengths, or on
any sample, it is converted with its axes open.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from edgekit_contract.errors import Refused
from edgekit_contract.manifest import TensorSpec
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import environments, external
from edgekit_converters.proof import Signature, Trial, same_outputs
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import (
    InferenceFailed,
    InputRejected,
    Session,
    Tensors,
    open_session,
)

__all__ = ["ConversionFailed", "check_signature", "convert"]

Sample: TypeAlias = tuple[Tensors, Tensors]
"""What goes in, and what the ONNX model makes of it."""

_TOOL: Final = Path(__file__).parent / "tools" / "convert_onnx.py"
_MAX_BYTES: Final = (1 << 31) - 1
"""Offsets in a flatbuffer are of 32 bits with a sign."""


class ConversionFailed(Refused):
    """There is no LiteRT model that computes what the ONNX model does."""


def convert(
    models: Sequence[Path],
    out: Path,
    *,
    signature: Signature,
    trials: Sequence[Trial],
    home: Path,
) -> None:
    """Write `out`, proved on `trials`; `home` is a scratch directory.

    `models` are spellings of one model, the likeliest to do first: a converter may know the
    operators of one and not of another. Errors: `ConversionFailed` with why the first did not do,
    `EnvironmentMissing`.
    """
    if external.size_bytes(models[0]) > _MAX_BYTES:
        raise ConversionFailed("a .tflite file ends at 2 GiB, and the model is larger")
    first = read_tensors(Path(trials[0].feeds))
    fixed = {
        spec.name: list(first[spec.name].shape)
        for spec in signature.inputs
        if any(isinstance(axis, str) for axis in spec.shape)
    }
    samples: list[Sample] = [
        (read_tensors(Path(trial.feeds)), read_tensors(Path(trial.reference))) for trial in trials
    ]
    samples += _stretched(models[-1], signature, first)
    failures = []
    ways: list[dict[str, list[int]]] = [fixed, {}] if fixed else [{}]
    attempts = list(product(models, ways))
    for index in range(len(attempts)):
        model, shapes = attempts.pop(0)
        place = home / f"attempt{index}"
        try:
            _attempt(model, out, signature=signature, shapes=shapes, home=place)
            _prove(out, signature, samples)
        except environments.EnvironmentMissing:
            raise
        except Refused as error:
            failures.append(str(error).rstrip("."))
            if isinstance(error, environments.ToolRefused):  # for an operator, whatever the lengths
                attempts.sort(key=lambda attempt: attempt[0] == model)
            continue
        return
    raise ConversionFailed(failures[0])


def _attempt(
    model: Path, out: Path, *, signature: Signature, shapes: dict[str, list[int]], home: Path
) -> None:
    home.mkdir(parents=True)
    copy = home / "model.onnx"
    shutil.copyfile(model, copy)
    for data in external.files(model)[1:]:
        shutil.copyfile(data, home / data.name)
    arguments = {
        "model": str(copy),
        "out": str(out),
        "home": str(home),
        "inputs": [spec.name for spec in signature.inputs],
        "shapes": shapes,
    }
    told = environments.call(environments.LITERT, _TOOL, arguments, home=home)
    shutil.rmtree(home, ignore_errors=True)
    if custom := told["custom"]:
        raise ConversionFailed(
            f"it would need the operator {custom[0]}, which LiteRT does not have built in"
        )


def _prove(out: Path, signature: Signature, samples: Sequence[Sample]) -> None:
    """Demand the numbers of the ONNX model. Errors: `ConversionFailed`, those of a session."""
    session = open_session(RuntimeKind.LITERT, out)
    check_signature(session, signature)
    as_given = _shapes(samples[0][0])
    for feeds, reference in samples:
        difference: str | None
        try:
            difference = same_outputs(session.run(feeds), reference)
        except InferenceFailed as error:
            difference = str(error).rstrip(".")
        if difference is None:
            continue
        if _shapes(feeds) != as_given:
            told = ", ".join(f"{name!r} {shape}" for name, shape in _shapes(feeds).items())
            raise ConversionFailed(
                f"it holds for inputs as the data have them and not for {told} ({difference}): "
                "export it with the lengths that it is used with"
            )
        raise ConversionFailed(f"what it computes is not what the ONNX model does: {difference}")
    session.close()


def _shapes(feeds: Tensors) -> dict[str, list[int]]:
    return {name: list(array.shape) for name, array in feeds.items()}


def _stretched(model: Path, signature: Signature, feeds: Tensors) -> list[Sample]:
    """The first sample with open axes one longer: each alone, and all that are as long.

    As far as the model itself takes it: data may have one length, and the model more.
    """
    lengths = {
        axis: length
        for spec in signature.inputs
        for axis, length in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
    if not lengths:
        return []
    groups = [frozenset({name}) for name in lengths]
    groups += [
        frozenset(n for n in lengths if lengths[n] == size) for size in set(lengths.values())
    ]
    session = open_session(RuntimeKind.ONNXRUNTIME, model)
    found: list[Sample] = []
    for group in dict.fromkeys(groups):
        longer = {
            spec.name: _longer(feeds[spec.name], [axis in group for axis in spec.shape])
            for spec in signature.inputs
        }
        with contextlib.suppress(InputRejected, InferenceFailed):
            found.append((longer, session.run(longer)))
    return found


def _longer(array: np.ndarray, grows: Sequence[bool]) -> np.ndarray:
    """Each axis that grows begins anew behind its end."""
    for axis, wanted in enumerate(grows):
        if wanted:
            array = np.take(array, range(array.shape[axis] + 1), axis=axis, mode="wrap")
    return np.ascontiguousarray(array)


def check_signature(session: Session, signature: Signature) -> None:
    """Demand the same names in the same order, number formats and shapes.

    Axes that are open in the one are open in the other, whatever they are called. Errors:
    `ConversionFailed`.
    """
    for side, have, want in (
        ("input", session.inputs, signature.inputs),
        ("output", session.outputs, signature.outputs),
    ):
        if [spec.name for spec in have] != [spec.name for spec in want]:
            raise ConversionFailed(
                f"its {side}s are {[s.name for s in have]}, not {[s.name for s in want]}"
            )
        for mine, its in zip(have, want, strict=True):
            if mine.dtype != its.dtype or not _same_shape(mine, its, loose=side == "output"):
                raise ConversionFailed(
                    f"its {side} {its.name!r} is {mine.dtype} {list(mine.shape)}, not "
                    f"{its.dtype} {list(its.shape)}"
                )


def _same_shape(have: TensorSpec, want: TensorSpec, *, loose: bool) -> bool:
    """`loose`: an output's lengths are what comes out; the trials have proved them."""
    return len(have.shape) == len(want.shape) and all(
        loose or (isinstance(a, str) if isinstance(b, str) else a == b)
        for a, b in zip(have.shape, want.shape, strict=True)
    )
