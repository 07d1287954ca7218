"""Peak memory of a variant, measured in a process of its own.

Invariant: what is measured is the growth of resident memory from before the model is loaded to the
greatest that running it reaches; the interpreter, numpy and the runtime's library are not in it.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Final

from edgekit.build.model_file import ModelFile
from edgekit_contract.profile import RuntimeKind
from edgekit_converters import isolation
from edgekit_converters.tensorfile import read_tensors
from edgekit_runtime.session import SessionOptions, open_session

__all__ = ["measure", "peak_ram_bytes"]

_RUNS: Final = 3
_LIBRARIES: Final = {
    RuntimeKind.ONNXRUNTIME: ("onnxruntime",),
    RuntimeKind.LITERT: ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"),
}


def peak_ram_bytes(model: Path, *, kind: RuntimeKind, feeds: Path, threads: int) -> int:
    """Bytes by which loading and running `model` on the tensors in `feeds` grows a process."""
    arguments = {
        "model": str(model),
        "kind": kind.value,
        "feeds": str(feeds),
        "threads": threads,
    }
    bounds = isolation.limits_for(ModelFile(path=model, kind=kind).size_bytes)
    step = "measuring memory"
    return int(isolation.run(step, "edgekit.build.memory:measure", arguments, bounds))


def measure(model: str, kind: str, feeds: str, threads: int) -> int:
    """In the child: growth from before the load to the greatest reached, in bytes."""
    runtime = RuntimeKind(kind)
    tensors = read_tensors(Path(feeds))
    _import_runtime(runtime)
    # importing may have reached further than what follows: 5 resets the high-water mark (proc(5))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    session = open_session(runtime, Path(model), SessionOptions(threads=threads))
    for _ in range(_RUNS):
        session.run(tensors)
    return max(0, _status_bytes("VmHWM") - before)


def _import_runtime(kind: RuntimeKind) -> None:
    for module in _LIBRARIES.get(kind, ()):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def _status_bytes(field: str) -> int:
    """A field of /proc/self/status (proc(5)), which are in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
