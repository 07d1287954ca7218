"""A runtime plug-in for edgekit. ACME's accelerator does not exist: what it would compute, the null
runtime of edgekit does. A real one imports the vendor's package where this one imports that.

Its models are files that end in `.acme`: four bytes of mark, then a model of the null runtime.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit_contract.manifest import TensorSpec
from edgekit_contract.messages import Execution
from edgekit_contract.profile import RuntimeKind
from edgekit_runtime.session import ModelUnloadable, RuntimeMissing, Session, SessionOptions

suffixes = (".acme",)
_MARK = b"ACME"


def version() -> str | None:
    """Of the vendor's runtime. The driver's device file tells whether it is there at all."""
    return "2.1.0" if Path(os.environ.get("ACME_DEVICE", "/dev/null")).exists() else None


def open_model(path: Path, options: SessionOptions) -> AcmeSession:
    if version() is None:
        raise RuntimeMissing(RuntimeKind("acme"))
    data = path.read_bytes()
    if not data.startswith(_MARK):
        raise ModelUnloadable(path, "it is no model of ACME's compiler")
    from edgekit_runtime import backend_null  # a real plug-in: the vendor's package

    with tempfile.TemporaryDirectory() as directory:
        inner = Path(directory, path.name)
        inner.write_bytes(data.removeprefix(_MARK))
        return AcmeSession(backend_null.open_model(inner, options))


class AcmeSession:
    def __init__(self, inner: Session) -> None:
        self._inner = inner

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inner.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._inner.outputs

    @property
    def execution(self) -> Execution:
        return Execution(asked=("ACME core 0",), used=("ACME core 0",))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._inner.run(feeds)

    def close(self) -> None:
        self._inner.close()
