"""Studies: what is learnt of a model by running rewritten copies of it over samples.

Each is the target of a call in a child process (`isolation`): a runtime that crashes, hangs or eats
memory on a model that was rewritten ends the child alone. Samples come as files of `tensorfile`.

Invariant: what a study gives back is JSON; what is larger is in the file `out`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.estimators import Estimator, Range
from edgekit_converters.conditioning.equalization import equalize_file
from edgekit_converters.conditioning.moments import collect_moments, write_moments
from edgekit_converters.conditioning.smoothing import smooth_file
from edgekit_converters.proof import same_outputs
from edgekit_converters.quantization.measuring import measure_ranges
from edgekit_converters.quantization.selection import select_static
from edgekit_converters.quantization.sensitivity import measure_noise
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import open_session

__all__ = ["equalized", "levelled", "moments", "noise", "ranges", "smoothed"]


def equalized(**arguments: Any) -> int:
    """`_rewritten` by `equalize_file`."""
    return _rewritten(equalize_file, **arguments)


def levelled(**arguments: Any) -> int:
    """`_rewritten` by `equalize_file`, for weights that have a scale per channel."""
    return _rewritten(partial(equalize_file, with_weights=False), **arguments)


def smoothed(*, paid_share: float, **arguments: Any) -> int:
    """`_rewritten` by `smooth_file`."""
    return _rewritten(partial(smooth_file, paid_share=paid_share), **arguments)


def _rewritten(
    rewrite: Callable[..., int],
    *,
    model: str,
    out: str,
    samples: Sequence[str],
    feeds: str,
    reference: str,
    threads: int,
) -> int:
    """Write the rewritten model; places changed, 0 where it no longer gives `reference` for `feeds`
    or nothing gains and there is no file."""
    path = Path(out)
    changed = rewrite(Path(model), path, _read(samples), threads=threads, scratch=path.parent)
    if not changed:
        return 0
    session = open_session(RuntimeKind.ONNXRUNTIME, path)
    got = session.run(read_tensors(Path(feeds)))
    session.close()
    return 0 if same_outputs(got, read_tensors(Path(reference))) else changed


def moments(
    *, model: str, out: str, samples: Sequence[str], least: int, most_s: float, threads: int
) -> None:
    """Write the moments of what a model's weighted nodes read: over the first `least` samples, and
    over the others for at most `most_s`."""
    path, start = Path(model), time.monotonic()
    nodes = select_static(onnx.load_model(path, load_external_data=False)).nodes

    def timely() -> Iterator[Mapping[str, np.ndarray]]:
        for index, feeds in enumerate(_read(samples)):
            if index >= least and time.monotonic() - start > most_s:
                return
            yield feeds

    found = collect_moments(
        path, nodes, timely(), threads=threads, scratch=Path(out).parent, least=least
    )
    write_moments(Path(out), found)


def noise(
    *,
    model: str,
    ranges: Mapping[str, Sequence[float]],
    samples: Sequence[str],
    threads: int,
    scratch: str,
) -> Any:
    """`NodeNoise` of each node that can be quantized, the noisiest first."""
    path = Path(model)
    found = measure_noise(
        path,
        select_static(onnx.load_model(path, load_external_data=False)),
        _ranges(ranges),
        _read(samples),
        per_channel=True,
        threads=threads,
        scratch=Path(scratch),
    )
    return msgspec.to_builtins(found)


def ranges(
    *,
    model: str,
    ranges: Mapping[str, Mapping[str, Sequence[float]]],
    samples: Sequence[str],
    threads: int,
    scratch: str,
) -> dict[str, tuple[float, float]]:
    """Of each tensor's ranges, by estimator, the one that the outputs suffer least from."""
    found = measure_ranges(
        Path(model),
        {Estimator(name): _ranges(estimated) for name, estimated in ranges.items()},
        _read(samples),
        threads=threads,
        scratch=Path(scratch),
    )
    return {name: (each.low, each.high) for name, each in found.items()}


def _ranges(told: Mapping[str, Sequence[float]]) -> dict[str, Range]:
    return {name: Range(low, high) for name, (low, high) in told.items()}


def _read(samples: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
    return (read_tensors(Path(path)) for path in samples)
