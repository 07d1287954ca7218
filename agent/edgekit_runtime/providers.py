"""ONNX Runtime's execution providers: which of those asked for are used, and why the others not.

onnxruntime falls back by itself and says so on standard output, or not at all: a provider that the
build lacks is a Python warning, one whose library does not load is a line in a log, one that takes
no operator of the model is nothing. Invariant: here each is a name and a reason, and a session
comes about with what is left, the CPU's provider at the least.

Sources of the options: onnxruntime.ai/docs/execution-providers, the pages of each.
"""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from edgekit_runtime.session import SessionOptions

__all__ = ["CPU", "XNNPACK", "Opened", "open_with", "record_assignment", "why_not_loaded"]

CPU: Final = "CPUExecutionProvider"
XNNPACK: Final = "XnnpackExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_TENSORRT: Final = "TensorrtExecutionProvider"

_LIBRARIES: Final = {
    _CUDA: "libonnxruntime_providers_cuda.so",
    _TENSORRT: "libonnxruntime_providers_tensorrt.so",
}
_RECORD: Final = "session.record_ep_graph_assignment_info"
"""Of onnxruntime 1.24 and later; older ones ignore the key."""
_STDERR: Final = 2
_VERBOSE: Final = 0
_PLACED: Final = re.compile(rb"placed on \[(\w+)\]")
"""In what it logs then (onnxruntime/core/framework/session_state.cc)."""


def _xnnpack(options: SessionOptions) -> dict[str, str]:
    # a pool of its own, as large as the session's would be; the session keeps one thread
    return {"intra_op_num_threads": str(options.threads)}


def _cuda(options: SessionOptions) -> dict[str, str]:
    # The board's memory is the CPU's, too: an arena that doubles, or an exhaustive search for the
    # fastest convolution with its workspaces, takes it from whatever else runs. TF32 keeps 10 bits
    # of a float32's 23, and golden vectors were made with all of them (the option is of 1.18).
    return {
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
    }


def _tensorrt(options: SessionOptions) -> dict[str, str]:
    # building an engine takes minutes: once for a bundle on a device, not at each start of a worker
    if options.cache is None:
        return {}
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(options.cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(options.cache),
    }


_OPTIONS: Final[Mapping[str, Callable[[SessionOptions], dict[str, str]]]] = {
    XNNPACK: _xnnpack,
    _CUDA: _cuda,
    _TENSORRT: _tensorrt,
}


class Opened:
    """A session of onnxruntime and what became of the providers asked for."""

    def __init__(self, session: Any, used: Sequence[str], lost: Mapping[str, str]) -> None:
        self.session, self.used, self.lost = session, tuple(used), dict(lost)


def open_with(
    ort: Any, path: str, settings: Callable[[Sequence[str]], Any], options: SessionOptions
) -> Opened:
    """Open a session with the providers of `options`, less those that are not to be had.

    `settings` makes the session's options for the providers that it is tried with. Errors: those of
    onnxruntime where the CPU's provider does not load the model either.
    """
    asked = list(dict.fromkeys(options.providers)) or [CPU]
    libraries = Path(ort.__file__).parent / "capi"
    available = ort.get_available_providers()
    lost = {
        name: "this onnxruntime is built without it." for name in asked if name not in available
    }
    left = [name for name in asked if name in available and name != CPU]

    def try_with(names: Sequence[str], *, aloud: bool = False) -> Any:
        wanted = settings(names)
        if aloud:
            wanted.log_severity_level = _VERBOSE
        return ort.InferenceSession(
            path,
            sess_options=wanted,
            providers=list(names),
            provider_options=[_options_of(name, options) for name in names],
            enable_fallback=0,
        )

    try:
        session = try_with([*left, CPU])
    except Exception as error:  # onnxruntime raises bare Exception subclasses of its own
        if not left:
            raise
        # which of them it was, the words do not tell
        failed = {name: str(found) for name in left if (found := _failure(try_with, [name, CPU]))}
        failed = failed or {name: str(error) for name in left}
        for name, words in failed.items():
            # onnxruntime's are of its source lines; a library that does not load is the cause
            lost[name] = why_not_loaded(name, libraries) or words
        left = [name for name in left if name not in failed]
        session = try_with([*left, CPU])
    registered = session.get_providers()
    busy = _busy(session, lambda: try_with([*left, CPU], aloud=True)) if left else None
    for name in left:
        if name not in registered:
            lost[name] = why_not_loaded(name, libraries) or "onnxruntime did not register it."
        elif busy is not None and name not in busy:
            lost[name] = "it takes none of this model's operators."
    if any(name in lost for name in left):
        # what idles holds memory, and XNNPACK the threads that the CPU's provider could have
        session = try_with([*(name for name in left if name not in lost), CPU])
    return Opened(session, session.get_providers(), lost)


def _failure(try_with: Callable[[Sequence[str]], Any], names: Sequence[str]) -> Exception | None:
    try:
        try_with(names)
    except Exception as error:
        return error
    return None


def _options_of(name: str, options: SessionOptions) -> dict[str, str]:
    make = _OPTIONS.get(name)
    return make(options) if make is not None else {}


def record_assignment(settings: Any, providers: Sequence[str]) -> None:
    """Have a session note which provider takes which node, where there is more than the CPU's."""
    if any(name != CPU for name in providers):
        settings.add_session_config_entry(_RECORD, "1")


def _busy(session: Any, open_aloud: Callable[[], Any]) -> set[str] | None:
    """The providers that have a node of the model; None where nothing tells.

    Before 1.24 only the log of a session being opened tells, so `open_aloud` opens another one: the
    level is a session's for life, and would have every run logged.
    """
    try:
        if hasattr(session, "get_provider_graph_assignment_info"):
            return {part.ep_name for part in session.get_provider_graph_assignment_info()}
        with _standard_error() as said:
            open_aloud()
            said.seek(0)
            return {name.decode() for name in _PLACED.findall(said.read())} or None
    except Exception:  # it did not record, or there is no room for another session or for its log
        return None


@contextmanager
def _standard_error() -> Iterator[IO[bytes]]:
    """A file that takes what this process, native code included, writes to its standard error."""
    kept = os.dup(_STDERR)
    try:
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), _STDERR)
            yield said
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


def why_not_loaded(provider: str, directory: Path) -> str | None:
    """Why the library of a provider in onnxruntime's `directory` does not load; None where it does,
    or is none of its own.

    onnxruntime tells its log alone; what its loader found is found again by loading the library.
    """
    name = _LIBRARIES.get(provider)
    if name is None:
        return None
    try:
        ctypes.CDLL(str(directory / name))
    except OSError as error:
        missing = str(error).removesuffix(": No such file or directory")
        return f"its library does not load ({missing})."
    return None
