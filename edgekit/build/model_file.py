"""A model file together with what runs it: variants of one contest may be of several runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external
from edgekit_runtime.session import Session, SessionOptions, open_session

__all__ = ["ModelFile", "Options"]

Options: TypeAlias = Mapping[RuntimeKind, SessionOptions]
"""How each runtime of a profile is opened; one that is not named has its defaults."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    path: Path
    kind: RuntimeKind

    @property
    def size_bytes(self) -> int:
        """With the files that its weights are in."""
        is_onnx = self.kind is RuntimeKind.ONNXRUNTIME
        return external.size_bytes(self.path) if is_onnx else self.path.stat().st_size

    def open(self, options: SessionOptions | None = None) -> Session:
        """Errors: as `open_session`."""
        return open_session(self.kind, self.path, options)

    def open_by(self, options: Options) -> Session:
        """As the profile runs this kind. Errors: as `open_session`."""
        return self.open(options.get(self.kind))
