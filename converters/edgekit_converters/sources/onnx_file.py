"""ONNX files: from whatever is on disk to one closed model.

Invariant: the file that comes in is only read; external data come from beside it or not at all.
Everything here runs in a child process (see `isolation`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, inliner

from edgekit_contract import limits
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import external, graph, proof
from edgekit_converters.sources import classical

__all__ = ["NotAModel", "close", "weigh"]

MIN_OPSET: Final = 7
"""What onnxruntime still runs."""


_TREES: Final = "ai.onnx.ml"
_OPSET: Final = 15
"""For a model that names none, since all its operators are of another domain."""


class NotAModel(Refused):
    """The file is not an ONNX model, or only a part of one."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name} is not an ONNX model ({detail}): export or download it again.")
        self.detail = detail


def weigh(source: str, name: str) -> int:
    """Bytes of a model with the data beside it. Errors: as `close`, but for those of loading."""
    path = Path(source)
    with _readable(name):
        data = external.checked_files(_parse(path, name), path)
    total = sum(file.stat().st_size for file in (path, *data))
    if total > limits.MAX_BUNDLE_BYTES:
        raise Refused(
            f"{name} and its data have {total >> 20} MiB, a bundle holds at most 4 GiB: "
            "choose a smaller model."
        )
    return total


def close(source: str, name: str, out: str, embedded_bytes: int) -> Any:
    """Write `source` as one model without loose ends: functions inlined, remarks gone, and data
    embedded, or where there are more than `embedded_bytes` gathered in one file beside `out`.
    `name` is what the user calls it.

    Returns the signature of the loaded file, the data files that were read, and what became of
    outputs that are no tensors of numbers, as JSON.
    Errors: `NotAModel`, `Refused` where no bundle holds or describes it, `Misused` where it cannot
    be read, `external.ExternalDataRefused`, and those of `proof.load`.
    """
    path = Path(source)
    with _readable(name):
        data, remarks = _write_closed(path, name, Path(out), embedded_bytes)
    signature = proof.load(out, RuntimeKind.ONNXRUNTIME.value, name=name)
    return {"signature": signature, "data": [str(file) for file in data], "remarks": remarks}


def _write_closed(
    path: Path, name: str, out: Path, embedded_bytes: int
) -> tuple[tuple[Path, ...], Sequence[str]]:
    """The data files that were read, and what is to be said of outputs."""
    model = _parse(path, name)
    data = external.checked_files(model, path)
    total = path.stat().st_size + sum(file.stat().st_size for file in data)
    if total <= embedded_bytes:
        external.embed(model, path)
    else:
        graph.bake_constants(model)
    if model.functions:
        try:
            model = inliner.inline_local_functions(model)
        except Exception as error:  # onnx raises classes of its own
            raise Refused(
                f"the local functions of {name} cannot be inlined: export it without them."
            ) from error
    graph.close_inputs(model)
    remarks = classical.close_outputs(model)
    graph.strip_remarks(model)
    graph.prune_opsets(model)
    graph.clamp_ir(model)
    if total <= embedded_bytes:
        onnx.save_model(model, out)
    else:
        external.gather(model, path, out)
    return data, remarks


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Say what makes a file none that can be read. Errors: `NotAModel`."""
    try:
        yield
    except DecodeError as error:
        raise NotAModel(name, "it does not parse, or is cut short") from error
    except UnicodeDecodeError as error:  # protobuf looks at text when it is asked for it
        raise NotAModel(name, "a name in it is no text") from error


def _parse(path: Path, name: str) -> ModelProto:
    try:
        model = onnx.load_model(path, load_external_data=False)
    except OSError as error:
        raise Misused(f"cannot read {path}: {error.strerror}; check the path.") from error
    if not model.graph.output or not model.graph.node:
        raise NotAModel(name, "it has no graph")
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    for value in model.graph.output:
        if names.count(value.name) > 1:
            raise Refused(
                f"{name} has the output {value.name[:100]!r} more than once, or as an input, "
                "too: export it with a name of its own for each."
            )
    if model.opset_import and all(node.domain == _TREES for node in model.graph.node):
        _add_opset(model)
    if not graph.opset(model):
        raise NotAModel(name, "it names no operator set")
    if graph.opset(model) < MIN_OPSET:
        raise Refused(
            f"{name} is of opset {graph.opset(model)}; edgekit reads {MIN_OPSET} and newer: "
            "export it again with a newer opset."
        )
    return model


def _add_opset(model: ModelProto) -> None:
    """Exporters of trees leave it out; runtimes do not mind, and rewriting needs one."""
    if not graph.opset(model):
        model.opset_import.append(onnx.helper.make_opsetid("", _OPSET))
