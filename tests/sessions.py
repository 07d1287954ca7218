"""The sessions of ONNX Runtime that a test opens, also those that only a traceback keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from edgekit_runtime.backend_onnxruntime import OnnxSession


@contextmanager
def opened_sessions() -> Iterator[list[OnnxSession]]:
    """Every session that this process opens inside."""
    opened: list[OnnxSession] = []
    original = OnnxSession.__init__

    def recording(self: OnnxSession, *args: Any) -> None:
        original(self, *args)
        opened.append(self)

    with mock.patch.object(OnnxSession, "__init__", recording):
        yield opened


def still_open(sessions: list[OnnxSession]) -> list[OnnxSession]:
    return [session for session in sessions if session._session is not None]
