"""Which operators, with which types, a model of onnxruntime's format needs: what its build takes as
`--include_ops_by_config` to leave all others out.

Written by onnxruntime's own tool, but for the names of scratch files in it, so that the same model
gives the same text. Source: onnxruntime.ai/docs/reference/operators/reduced-operator-config-file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["FILENAME", "required_operators"]

FILENAME = "required_operators.config"
_HEADER = "# Operators and types of model.onnx, in onnxruntime's format"


def required_operators(model: str) -> str:
    """The configuration, with type reduction, of a model file. Runs in a child: the tool sets up
    logging for its whole process."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    logging.disable(logging.INFO)
    with TemporaryDirectory() as directory:
        out = Path(directory, FILENAME)
        create_config_from_models([Path(model)], out, True)
        lines = out.read_text(encoding="utf-8").splitlines()
    return "\n".join([_HEADER, *(line for line in lines if line and line[0] != "#"), ""])
