"""Look at values inside a model while it runs over samples.

Invariant: one sample's values are in memory at a time; whatever ends the reading, no session and no
file of it is left.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external
from edgekit_runtime.session import Session, SessionOptions, open_session

__all__ = ["readings"]


@contextlib.contextmanager
def readings(
    model: onnx.ModelProto,
    tensors: Collection[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int,
    scratch: Path,
    embedded_bytes: int = external.MAX_EMBEDDED_BYTES,
) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """The named tensors of the outermost graph, its inputs among them, for each sample's feeds.

    Errors: those of the runtime.
    """
    session: Session | None = None

    def read() -> Iterator[dict[str, np.ndarray]]:
        nonlocal session
        for feeds in samples:
            session = session or _open(model, set(tensors), scratch, threads, embedded_bytes)
            values = {**session.run(feeds), **feeds}
            yield {name: values[name] for name in tensors}

    try:
        yield read()
    finally:
        if session is not None:
            session.close()


def _open(
    model: onnx.ModelProto, tensors: set[str], scratch: Path, threads: int, embedded_bytes: int
) -> Session:
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    # the runtime infers the type of an output that states none
    augmented.graph.output.extend(onnx.ValueInfoProto(name=n) for n in sorted(tensors - known))
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        path = Path(directory) / "probed.onnx"
        external.save(augmented, path, embedded_bytes=embedded_bytes)
        return open_session(RuntimeKind.ONNXRUNTIME, path, SessionOptions(threads=threads))
