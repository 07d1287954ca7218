"""Which operators a model runs, and on tensors of which shapes: one run under the profiler.

Invariant: what is listed did run, branches and rounds of loops included, in the form into which the
runtime rewrote the graph without knowing its processor (onnxruntime's level "extended"). Times are
not looked at: they are this machine's.
Source: onnxruntime docs, "Profiling tools"; its files are Chrome's trace event format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgekit.build.estimates.operators import Executed, Tensor
from edgekit_contract.errors import Refused
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.backend_onnxruntime import is_ort_format

__all__ = ["in_child", "trace"]

_KERNEL: Final = "_kernel_time"
_DTYPES: Final = {"float": "float32", "double": "float64"}


class _Event(msgspec.Struct):
    cat: str = ""
    name: str = ""
    args: dict[str, Any] = {}


def trace(model: Path, feeds: Mapping[str, Any], *, scratch: Path) -> tuple[Executed, ...]:
    """Run an ONNX model once. Errors: `Refused` where it does not run."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "trace")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # packed weights are no tensors any more, and the profile would not know their shapes
    options.add_session_config_entry("session.disable_prepacking", "1")
    if is_ort_format(model):
        options.add_session_config_entry("session.load_model_format", "ORT")
    try:
        session = ort.InferenceSession(
            str(model), sess_options=options, providers=["CPUExecutionProvider"]
        )
        session.run(None, dict(feeds))
        profile = Path(session.end_profiling())
    except Exception as error:  # onnxruntime raises bare Exception subclasses of its own
        raise Refused(f"{model.name} does not run: {error}") from error
    try:
        events = msgspec.json.decode(profile.read_bytes(), type=list[_Event])
    finally:
        profile.unlink()
    return tuple(_executed(events))


def in_child(path: str, feeds: str) -> Any:
    """`trace` as a step of `isolation`, whose directory is scratch; `Executed`s as JSON."""
    found = trace(Path(path), read_tensors(Path(feeds)), scratch=Path.cwd())
    return [msgspec.to_builtins(one) for one in found]


def _executed(events: list[_Event]) -> Iterator[Executed]:
    for event in events:
        if event.cat != "Node" or not event.name.endswith(_KERNEL):
            continue
        facts = event.args
        yield Executed(
            operator=facts["op_name"],
            inputs=_tensors(facts.get("input_type_shape", ())),
            outputs=_tensors(facts.get("output_type_shape", ())),
            weight_bytes=int(facts.get("parameter_size", 0)),
            activation_bytes=int(facts.get("activation_size", 0))
            + int(facts.get("output_size", 0)),
        )


def _tensors(listed: Any) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(dtype=_DTYPES.get(dtype, dtype), shape=tuple(shape))
        for entry in listed
        for dtype, shape in entry.items()
    )
