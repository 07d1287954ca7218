"""Observe a model's tensors while it runs over samples: one pass, statistics only.

Invariant: one sample and its tensors are in memory at a time; tensors that together are larger than
`_OUTPUT_BYTES` are observed in several runs of the same sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from edgekit_contract import limits
from edgekit_contract.profile import RuntimeKind
from edgekit_converters.calibration.statistics import TensorStatistics
from edgekit_runtime.session import Session, SessionOptions, open_session

__all__ = ["observe"]

_OUTPUT_BYTES: Final = 256 * limits.MIB


def observe(
    model: Path,
    tensors: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, TensorStatistics]:
    """Statistics of each named float tensor of an ONNX model over the samples' feeds.

    Tensors that are not float32 or float16 are left out. Errors: those of the runtime.
    """
    statistics = {name: TensorStatistics() for name in tensors}
    sessions: list[Session] = []
    for feeds in samples:
        if not sessions:
            sessions = _sessions(model, tensors, feeds, threads=threads, scratch=scratch)
        seen: set[str] = set()
        for name in statistics.keys() & feeds.keys():
            _enter(statistics[name], feeds[name])
            seen.add(name)
        for session in sessions:
            for name, array in session.run(feeds).items():
                if name in statistics and name not in seen:
                    _enter(statistics[name], array)
                    seen.add(name)
        advance(1)
    for session in sessions:
        session.close()
    return {name: found for name, found in statistics.items() if found.observations}


def _enter(statistics: TensorStatistics, array: np.ndarray) -> None:
    if array.dtype in (np.float32, np.float16):
        statistics.observe(array)


def _sessions(
    model: Path,
    tensors: Sequence[str],
    feeds: Mapping[str, np.ndarray],
    *,
    threads: int,
    scratch: Path,
) -> list[Session]:
    """Sessions that together give out all tensors, each within `_OUTPUT_BYTES` for such feeds."""
    proto = onnx.load_model(model)
    known = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    made = {output for node in proto.graph.node for output in node.output}
    wanted = [name for name in tensors if name in made - known]
    first = _session(proto, wanted, scratch / "observed-all.onnx", threads)
    sizes = {name: array.nbytes for name, array in first.run(feeds).items()}
    if sum(sizes.values()) <= _OUTPUT_BYTES:
        return [first]
    first.close()
    chunks: list[list[str]] = [[]]
    used = 0
    for name in wanted:
        if chunks[-1] and used + sizes[name] > _OUTPUT_BYTES:
            chunks.append([])
            used = 0
        chunks[-1].append(name)
        used += sizes[name]
    return [
        _session(proto, chunk, scratch / f"observed-{index}.onnx", threads)
        for index, chunk in enumerate(chunks)
    ]


def _session(proto: onnx.ModelProto, added: Sequence[str], path: Path, threads: int) -> Session:
    augmented = onnx.ModelProto()
    augmented.CopyFrom(proto)
    # the runtime infers the type of an output that states none
    augmented.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    onnx.save_model(augmented, path)
    session = open_session(RuntimeKind.ONNXRUNTIME, path, SessionOptions(threads=threads))
    path.unlink()
    return session
